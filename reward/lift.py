"""Is the reasoning worth anything: how much more probable it makes the target than no reasoning at all."""

from __future__ import annotations

import math
from typing import Any


class LiftReward:
    """log p(target | reasoning) − log p(target | no reasoning), cut at ± `bound` nats and divided by it: −1 … 1.

    0 means that the reasoning might as well have been left out, below 0 that it did harm. The teacher's answer without
    reasoning is read off by the engine, one context more for each prompt (the column `direct_log_prob`). It means
    something only for a teacher that was sometimes asked to answer at once: `early_answer_share` in SFT.

    What is subtracted is the same for all completions of a prompt, and GRPO subtracts the mean of the group: it
    cancels, whatever `scale_rewards` is. What a group learns from is the spread of `log_prob`, and where the cut lies.
    What this reward has over `log_prob` is its range, and a mean that says in the logs whether reasoning pays at all.

    Args:
        bound: lifts beyond it, in nats, count as it: 5 is 148 times as probable.
        floor: reward of a completion that does not parse.

    Raises:
        ValueError: on a bound that is not above 0, or a floor that is not finite.

    >>> LiftReward(bound=2.0)(log_prob=[-3.0, -9.0, None], direct_log_prob=[-4.0, -4.0, -4.0])
    [0.5, -1.0, -1.0]
    """

    columns = ("direct_log_prob",)

    def __init__(self, bound: float = 5.0, floor: float = -1.0) -> None:
        if not (bound > 0 and math.isfinite(bound)):
            raise ValueError(f"bound must be a number above 0, found {bound}")
        if not math.isfinite(floor):
            raise ValueError(f"floor must be a finite number, found {floor}")
        self.bound = bound
        self.floor = floor
        self.__name__ = "lift"

    def __call__(self, log_prob: list[float | None], direct_log_prob: list[float], **kwargs: Any) -> list[float]:
        """One reward per completion.

        Args:
            log_prob: log p(target | reasoning); `None` for a completion that does not parse.
            direct_log_prob: log p(target | no reasoning), of the prompt.
            **kwargs: the other columns, not used.
        """
        return [
            self.floor if after is None else max(-1.0, min(1.0, (after - before) / self.bound))
            for after, before in zip(log_prob, direct_log_prob, strict=True)
        ]
