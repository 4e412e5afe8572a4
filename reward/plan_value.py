"""What an agent's answer to a goal is worth, beside the best answer that there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class PlanValueReward:
    """The share of the best value that a set reaches; a set that violates something gets less than nothing.

    Args:
        penalty: what each violation costs, 0 or more. Without it all sets that violate something are alike, and a
            policy that has found none that does not has nothing to climb.
        most: violations beyond this number cost nothing more.

    Raises:
        ValueError: a penalty below 0.

    >>> PlanValueReward(penalty=0.1, most=3)(regret=[0.25, 1.0, 1.0], n_violations=[0, 2, 7])
    [0.75, -0.2, -0.3]
    """

    def __init__(self, penalty: float = 0.1, most: int = 3) -> None:
        if penalty < 0:
            raise ValueError(f"plan_value: penalty is {penalty}, expected 0 or more")
        self.penalty = penalty
        self.most = most
        self.__name__ = "plan_value"

    def __call__(self, *, regret: Sequence[float], n_violations: Sequence[int], **kwargs: Any) -> list[float]:
        """One reward per answer.

        Args:
            regret: share of the best value that was missed, 1 with any violation.
            n_violations: of each answer.
            **kwargs: other columns.
        """
        return [
            round(1 - missed - self.penalty * min(number, self.most), 6)
            for missed, number in zip(regret, n_violations, strict=True)
        ]
