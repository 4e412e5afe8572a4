"""Process-supervised GRPO: rewards of steps, normalised over the group."""

from typing import Literal

import torch

from anyo_rl.training.advantages.batch import EPSILON, Batch, Scale

ProcessReduction = Literal["sum", "mean"]


def process(batch: Batch, reduction: ProcessReduction = "mean") -> torch.Tensor:
    """(B, T) advantages of tokens: those of the step that each is a part of, by `process_advantages`.

    The reward of a step is what its state gained. The last step's is what the path's weighted rewards hold above its
    state, so that every reward has its part; where the gain is the only one, that is what the state gained.
    """
    states_A_S = batch.states.clone()
    rows = torch.arange(len(states_A_S), device=states_A_S.device)
    last = (~states_A_S.isnan()).sum(1) - 1
    rewards_A = batch.rewards_A.to(states_A_S)
    states_A_S[rows, last] = torch.where(rewards_A.isnan(), states_A_S[rows, last], rewards_A)
    return batch.of_tokens(process_advantages(states_A_S.diff(dim=1), batch.group_size, reduction, batch.scale))


def process_advantages(
    step_rewards_A_S: torch.Tensor, group_size: int, reduction: ProcessReduction = "mean", scale: Scale = "group"
) -> torch.Tensor:
    """Process-supervised GRPO (DeepSeekMath, arXiv 2402.03300 §4.1.3): rewards of steps, normalised over the group.

    The tokens of a step get the sum of the normalised rewards r̃ of this step and those after it.

    Args:
        step_rewards_A_S: (A, S) a reward for each step; NaN where a path has fewer.
        group_size: paths of each prompt, G.
        reduction: `sum` is the paper's, which pays for steps: those that are better than the mean by anything make a
            path better the more there are of them. `mean` divides the sum by the number of steps in it, and padding
            a path with steps like its others gains nothing.
        scale: whose spread rewards are divided by. The group's is the paper's, and blows up what little differs where
            all steps are alike; `batch` takes that of all groups, `none` leaves rewards as they are.

    Raises:
        ValueError: an unknown reduction or scale.

    Returns:
        (A, S) advantages; 0 where a path has fewer steps.

    >>> process_advantages(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), 2, "sum").round(decimals=2)
    tensor([[ 1.7300,  0.8700],
            [-1.7300, -0.8700]])
    """
    there = ~step_rewards_A_S.isnan()
    groups, there_G = (
        step_rewards_A_S.nan_to_num().view(-1, group_size * there.shape[1]),
        there.view(-1, group_size * there.shape[1]),
    )
    n = there_G.sum(1, keepdim=True)
    centred = torch.where(there_G, groups - groups.sum(1, keepdim=True) / n.clamp(min=1), 0.0)
    squares, free = centred.square().sum(1, keepdim=True), (n - 1).clamp(min=0)
    if scale == "batch":
        squares, free = squares.sum(), free.sum()
    elif scale not in ("group", "none"):
        raise ValueError(f"scale_rewards is {scale!r}; expected group, batch or none")
    spread = 1.0 if scale == "none" else (squares / free.clamp(min=1)).sqrt() + EPSILON
    normal = (centred / spread).view_as(step_rewards_A_S)
    to_go = normal.flip(1).cumsum(1).flip(1)
    if reduction == "mean":
        to_go = to_go / there.flip(1).cumsum(1).flip(1).clamp(min=1)
    elif reduction != "sum":
        raise ValueError(f"the reduction is {reduction!r}; expected sum or mean")
    return torch.where(there, to_go, 0.0)
