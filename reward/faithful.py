"""Does the item follow from the reasoning: what the target loses when the reasoning is another user's."""

from __future__ import annotations

import math
from typing import Any


class FaithfulReward:
    """gain − gain of the same target when the reasoning is swapped for another user's of the batch: −1 … 1.

    A teacher may write one thing and rank by another, straight from the history. Its reasoning can then be swapped
    without a loss, and this reward is near 0. 1 is a target ranked first by its own reasoning and lost without it;
    below 0 the other's reasoning was the better one. The engine ranks each completion once more for it (the column
    `swapped_gain`), and the batch needs completions of two users or more.

    Args:
        floor: reward of a completion that does not parse.

    Raises:
        ValueError: on a floor that is not finite.

    >>> FaithfulReward()(gain=[1.0, 0.5, None, 0.5], swapped_gain=[0.25, 1.0, None, None])
    [0.75, -0.5, -1.0, None]
    """

    columns = ("swapped_gain",)

    def __init__(self, floor: float = -1.0) -> None:
        if not math.isfinite(floor):
            raise ValueError(f"floor must be a finite number, found {floor}")
        self.floor = floor
        self.__name__ = "faithful"

    def __call__(
        self, gain: list[float | None], swapped_gain: list[float | None], **kwargs: Any
    ) -> list[float | None]:
        """One reward per completion; `None` where no other user has a reasoning to swap with.

        Args:
            gain: of the target, 1/log2(1 + rank); `None` for a completion that does not parse.
            swapped_gain: the same after the other reasoning.
            **kwargs: the other columns, not used.
        """
        return [
            self.floor if own is None else None if other is None else own - other
            for own, other in zip(gain, swapped_gain, strict=True)
        ]
