"""A penalty on reasonings that repeat themselves: TRL's, on the words of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trl.rewards import get_repetition_penalty_reward


class RepetitionReward:
    """−`penalty` · (1 − distinct n-grams / n-grams) over the words of the steps: −`penalty` … 0.

    TRL's repetition penalty ("Demystifying Long Chain-of-Thought Reasoning", arXiv 2502.03373, C.2) counts tokens of
    the whole completion; here they are the words of the reasoning, case apart, from one step into the next. Names that
    a reasoning has to repeat are n-grams too: take `ngram` longer than those.

    Args:
        ngram: words of an n-gram; a reasoning with fewer gets 0.
        penalty: what a reasoning of nothing but one n-gram comes close to losing.

    Raises:
        ValueError: on an n-gram below 1 or a negative penalty.

    >>> RepetitionReward(ngram=2)(steps=[["wants tea", "wants tea", "wants tea"], ["wants tea"]])
    [-0.6, 0.0]
    """

    def __init__(self, ngram: int = 3, penalty: float = 1.0) -> None:
        if ngram < 1:
            raise ValueError(f"ngram must be 1 or more, found {ngram}")
        if not penalty >= 0:
            raise ValueError(f"penalty must be 0 or more, found {penalty}")
        self._punish = get_repetition_penalty_reward(ngram, -penalty)
        self.__name__ = "repetition"

    def __call__(self, steps: Sequence[Sequence[str]], **kwargs: Any) -> list[float]:
        """One reward per completion.

        Args:
            steps: the steps of each.
            **kwargs: the other columns, not used.
        """
        return self._punish([" ".join(of_one).casefold().split() for of_one in steps])
