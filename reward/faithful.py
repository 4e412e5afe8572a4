"""Does the item follow from the reasoning: what the target loses, or keeps, when something is another user's."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

Exchange = Literal["reasoning", "history"]


class FaithfulReward:
    """What the target loses with another user's reasoning, or what it keeps with another user's history.

    A teacher may write one thing and rank by another, straight from the history.

    `reasoning`: gain − gain of the same target when the reasoning is swapped for another user's of the batch, −1 … 1.
    Near 0 the reasoning can be swapped without a loss; 1 is a target ranked first by its own reasoning and lost
    without it; below 0 the other's reasoning was the better one. What is subtracted does not depend on the reasoning
    that is paid, so that within a group the reward is the gain with noise: it says in the logs how faithful a teacher
    is, and trains little besides.

    `history`: gain of the target when the history is swapped for another user's and the reasoning stays, 0 … 1. It
    depends on the reasoning alone: 1 says all that the answer needs, 0 leaves it to the history. This trains
    reasonings that the item can follow.

    The engine ranks each completion once more for it (the column `swapped_gain` or `carried_gain`), and the batch
    needs completions of two users or more.

    Args:
        floor: reward of a completion that does not parse; −1 for `reasoning` and 0 for `history` if unset.
        exchange: what becomes another user's.

    Raises:
        ValueError: on a floor that is not finite, or something else to exchange.

    >>> FaithfulReward()(gain=[1.0, 0.5, None, 0.5], swapped_gain=[0.25, 1.0, None, None])
    [0.75, -0.5, -1.0, None]
    >>> FaithfulReward(exchange="history")(gain=[1.0, None, 0.5], carried_gain=[0.25, None, None])
    [0.25, 0.0, None]
    """

    def __init__(self, floor: float | None = None, exchange: Exchange = "reasoning") -> None:
        if exchange not in get_args(Exchange):
            raise ValueError(f"unknown exchange {exchange!r}: choose one of {', '.join(get_args(Exchange))}")
        if floor is None:
            floor = -1.0 if exchange == "reasoning" else 0.0
        if not math.isfinite(floor):
            raise ValueError(f"floor must be a finite number, found {floor}")
        self.floor = floor
        self.exchange = exchange
        self.columns = ("swapped_gain",) if exchange == "reasoning" else ("carried_gain",)
        self.__name__ = "faithful"

    def __call__(
        self,
        gain: list[float | None],
        swapped_gain: list[float | None] | None = None,
        carried_gain: list[float | None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """One reward per completion; `None` where there is no other user to exchange with.

        Args:
            gain: of the target, 1/log2(1 + rank); `None` for a completion that does not parse.
            swapped_gain: the same after the other reasoning.
            carried_gain: the same behind the other history.
            **kwargs: the other columns, not used.

        Raises:
            ValueError: the column that it needs is not there.
        """
        other = swapped_gain if self.exchange == "reasoning" else carried_gain
        if other is None:
            raise ValueError(f"the reward 'faithful' needs the column {self.columns[0]}, which recipes make")
        rewards: list[float | None] = []
        for own, one in zip(gain, other, strict=True):
            if own is None or one is None:
                rewards.append(self.floor if own is None else None)
            else:
                rewards.append(own - one if self.exchange == "reasoning" else one)
        return rewards
