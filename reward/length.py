"""A penalty on long reasonings: TRL's soft overlong punishment, counted in tokens, words or steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from trl.rewards import get_soft_overlong_punishment

Unit = Literal["tokens", "words", "steps"]


class LengthReward:
    """0 up to `max_length` − `buffer`, then down in a line to −1 at `max_length` and beyond: −1 … 0.

    DAPO's equation 13 (arXiv 2503.14476), as TRL has it: nobody is paid for being short. TRL's other reward of length,
    the cosine, is not here: it scales the correctness of an answer in mathematics.

    Args:
        max_length: from which length on the penalty is −1.
        buffer: over how many units before that it sets in; 0 for a cliff.
        unit: `tokens` of the whole completion (with the marker, and the item where it is written), or `words` or
            `steps` of the reasoning.

    Raises:
        ValueError: on an unknown unit, or a buffer that is not 0 … `max_length`.

    >>> LengthReward(max_length=4, buffer=2, unit="steps")(steps=[["a"], ["a", "b", "c"], ["a", "b", "c", "d", "e"]])
    [0.0, -0.5, -1.0]
    """

    def __init__(self, max_length: int, buffer: int, unit: Unit = "tokens") -> None:
        if unit not in get_args(Unit):
            raise ValueError(f"unknown unit {unit!r}: choose one of {', '.join(get_args(Unit))}")
        if max_length < 1 or not 0 <= buffer <= max_length:
            raise ValueError(
                f"expected max_length >= 1 and 0 <= buffer <= max_length, found {max_length} and {buffer}"
            )
        self.unit = unit
        self._punish = get_soft_overlong_punishment(max_length, buffer)
        self.__name__ = "length"

    def __call__(
        self,
        completion_ids: Sequence[Sequence[int]] | None = None,
        steps: Sequence[Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """One reward per completion.

        Args:
            completion_ids: token ids of each, for the unit `tokens`.
            steps: the steps of each, for `words` and `steps`.
            **kwargs: the other columns, not used.

        Raises:
            ValueError: the column that is counted is not there.
        """
        if self.unit == "tokens":
            if completion_ids is None:
                raise ValueError("the unit tokens needs the column completion_ids")
            return self._punish(completion_ids)
        if steps is None:
            raise ValueError(f"the unit {self.unit} needs the column steps")
        if self.unit == "words":
            return self._punish([" ".join(of_one).split() for of_one in steps])
        return self._punish(steps)
