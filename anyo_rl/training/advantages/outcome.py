"""GRPO's own advantage (DeepSeekMath, arXiv 2402.03300 §4.1.2): the outcome, the same for all tokens; and none."""

import torch

from anyo_rl.training.advantages.batch import Batch


def outcome(batch: Batch) -> torch.Tensor:
    """(B,) what TRL makes of the rewards, as its settings say (`scale_rewards`, `multi_objective_aggregation`)."""
    return batch.outcome_B


def none(batch: Batch) -> torch.Tensor:
    """(B,) zeros: samples, ranks and item loss are as with `outcome`, and the reasoning is left alone."""
    return torch.zeros_like(batch.outcome_B)
