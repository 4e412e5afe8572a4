"""A batch of sampled completions as advantages see it: arrays and a few numbers, and no trainer.

Axes: _B this process's completions, _A those of all processes, _T tokens, _S states between steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

Scale = Literal["group", "batch", "none"]
AddUp = Callable[[torch.Tensor], torch.Tensor]  # sums over all processes, element by element

EPSILON = 1e-4  # TRL's, under a spread


@dataclass(frozen=True)
class Batch:
    """Sampled completions with what was found out about them.

    Attributes:
        rewards_A: (A,) weighted rewards, groups of `group_size` in a row; NaN where no reward applies.
        outcome_B: (B,) what TRL makes of them: the advantage of each completion within its group.
        mask_B_T: (B, T) which tokens there are: the first ones of each row.
        ends_B: where each step of a completion ends, as a number of tokens (`Tokens.step_ends`); empty where states
            have no values.
        states_A_S: (A, S) V_0, V_1, … before each step and, last, the gain after them (0 without a marker); NaN
            beyond. `None` where states have no values.
        start: the place of this process's completions among all.
        group_size: completions of each prompt, G.
        scale: TRL's `scale_rewards`.
    """

    rewards_A: torch.Tensor
    outcome_B: torch.Tensor
    mask_B_T: torch.Tensor
    ends_B: Sequence[Sequence[int]]
    states_A_S: torch.Tensor | None
    start: int
    group_size: int
    scale: Scale

    @property
    def own(self) -> slice:
        """This process's completions among all."""
        return slice(self.start, self.start + len(self.mask_B_T))

    @property
    def states(self) -> torch.Tensor:
        """`states_A_S`, where it is known that there are values."""
        assert self.states_A_S is not None, "states have no values"
        return self.states_A_S

    @cached_property
    def step_B_T(self) -> torch.Tensor:
        """(B, T) the step of each token, from 0; what comes after the last one, the marker too, is a part of it."""
        step_B_T = torch.zeros_like(self.mask_B_T, dtype=torch.int64)
        for step_T, ends in zip(step_B_T, self.ends_B, strict=True):
            for end in ends[:-1]:
                step_T[end:] += 1
        return step_B_T

    def of_tokens(self, of_steps_A_S: torch.Tensor) -> torch.Tensor:
        """(B, T): each token gets what its step has, of (A, S) numbers of steps."""
        return of_steps_A_S[self.own].gather(1, self.step_B_T)


def padded_states(values_B: Sequence[np.ndarray], outcomes_B: Sequence[float], width: int) -> torch.Tensor:
    """(B, width) float32 values before each step, then the outcome, then NaN.

    Args:
        values_B: V_0 … V_{T−1} of each completion, at least V_0.
        outcomes_B: the gain after the last step.
        width: most states of any completion, the outcome included.
    """
    states_B_S = np.full((len(values_B), width), np.nan, np.float32)
    for row, values, outcome in zip(states_B_S, values_B, outcomes_B, strict=True):
        row[: len(values) + 1] = [*values, outcome]
    return torch.from_numpy(states_B_S)


def scaled(raw_A_S: torch.Tensor, square_A: torch.Tensor, group_size: int, scale: Scale) -> torch.Tensor:
    """Numbers over the root of the mean of `square_A`, by groups or over the batch.

    Args:
        raw_A_S: (A, S) numbers.
        square_A: (A,) the square that stands for each row.
        group_size: rows of a group, in a row.
        scale: `group`, `batch`, or `none`, which leaves them as they are.

    Raises:
        ValueError: an unknown scale.
    """
    if scale == "none":
        return raw_A_S
    if scale not in ("group", "batch"):
        raise ValueError(f"scale_rewards is {scale!r}; expected group, batch or none")
    size = group_size if scale == "group" else len(square_A)
    spread = square_A.view(-1, size).mean(1).sqrt().repeat_interleave(size)
    return raw_A_S / (spread[:, None] + EPSILON)


def masked_mean(numbers: torch.Tensor, mask: torch.Tensor, add_up: AddUp = lambda x: x) -> float:
    """The mean of what the mask leaves, on all processes together; 0 where it leaves nothing."""
    sums = add_up(torch.stack([(numbers * mask).sum().float(), mask.sum().float()]))
    return (sums[0] / sums[1].clamp(min=1)).item()
