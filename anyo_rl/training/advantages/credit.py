"""Credit for steps: how the tokens of a reasoning share the reward of its outcome."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch
from accelerate import Accelerator

from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.objectives import ProcessReduction, Scale, process_advantages, progress_advantages
from anyo_rl.values.source import StepSource

StepAdvantages = Literal["progress", "process"]


@dataclass(frozen=True)
class Credit:
    """What a step is credited with.

    Attributes:
        advantages: `progress` (the path's reward, less what was gained before the step) or `process` (what this step
            and those after it gained); see `anyo_rl.training.objectives`.
        source: what the states between steps are worth.
        reduction: for `process`.

    Raises:
        ValueError: an unknown name.
    """

    advantages: StepAdvantages = "progress"
    source: StepSource = field(default_factory=StepSource)
    reduction: ProcessReduction = "mean"

    def __post_init__(self) -> None:
        for name, kind in (("advantages", StepAdvantages), ("reduction", ProcessReduction)):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(get_args(kind))}")

    def token_advantages(
        self,
        values_B: Sequence[np.ndarray],
        outcomes_B: Sequence[float],
        rewards_N: torch.Tensor,
        completion_ids_B_T: torch.Tensor,
        tokens: Tokens,
        accelerator: Accelerator,
        *,
        group_size: int,
        scale: Scale,
    ) -> torch.Tensor:
        """Advantages of this process's completions: for each token those of the step that it is a part of.

        Called by all processes together, since a group may lie on several.

        Args:
            values_B: what `source` gave.
            outcomes_B: the gain after the last step; 0 for a completion without a marker.
            rewards_N: rewards of the completions of all processes.
            completion_ids_B_T: (B, T) token ids, padded on the right.
            tokens: the teacher's tokenizer and marker.
            accelerator: the processes.
            group_size: completions of each prompt, in a row.
            scale: TRL's `scale_rewards`; `process` is always scaled by the group.

        Returns:
            (B, T) advantages; the marker belongs to the last step.
        """
        device = completion_ids_B_T.device
        longest = torch.tensor([max(map(len, values_B))], device=device)
        states_B_S = np.full((len(values_B), int(accelerator.gather(longest).max()) + 1), np.nan, np.float32)
        for row, values, outcome in zip(states_B_S, values_B, outcomes_B, strict=True):
            row[: len(values) + 1] = [*values, outcome]
        states_N_S = accelerator.gather(torch.from_numpy(states_B_S).to(device))
        if self.advantages == "progress":
            before_N_S = states_N_S[:, :-1].masked_fill(states_N_S[:, 1:].isnan(), torch.nan)
            advantages_N_S = progress_advantages(rewards_N, before_N_S, group_size, scale)
        else:
            advantages_N_S = process_advantages(states_N_S.diff(dim=1), group_size, self.reduction)
        start = accelerator.process_index * len(values_B)
        step_B_T = steps_of_tokens(completion_ids_B_T, tokens)
        return advantages_N_S[start : start + len(values_B)].gather(1, step_B_T)


def steps_of_tokens(completion_ids_B_T: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """(B, T) which step each token is a part of, from 0; what comes after the last step, the marker too, is its part.

    Args:
        completion_ids_B_T: token ids, padded on the right.
        tokens: the teacher's tokenizer and marker.
    """
    step_B_T = torch.zeros_like(completion_ids_B_T)
    for step_T, ids in zip(step_B_T, completion_ids_B_T.tolist(), strict=True):
        for end in tokens.step_ends(ids)[:-1]:
            step_T[end:] += 1
    return step_B_T
