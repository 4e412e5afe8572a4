"""The rank the teacher gave to the item the user really chose, as a reward.

The maths is `anyo_rl.metrics.gains`; ranking itself happens once per batch, before the rewards, and arrives here as
the column `rank`.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from anyo_rl.metrics import gains

Gain = Literal["ndcg", "mrr", "hit", "log"]


class RankReward:
    """The gain of the target's rank.

    `ndcg` = 1/log2(1 + rank), `mrr` = 1/rank, `hit` = 1 if rank ≤ k, `log` = 1 − ln(rank)/ln(n_items); with a cut-off
    all of them are 0 beyond rank k. `log` keeps a slope deep in the catalog, where `ndcg` is nearly flat: it helps a
    teacher that ranks badly, `ndcg` one that ranks well.

    Popular items are chosen more often, and a teacher that only learns these is paid most of the time. With a
    `propensity_power` above 0 the gain is weighted by the inverse of how popular the target is: gain ·
    min(propensity^−power, max_weight), where propensity is the target's users in the training split over those of the
    most popular item, in (0, 1] (inverse propensity scoring; Schnabel et al. 2016, arXiv 1602.05352, whose weights are
    not clipped). The range is 0 … max_weight then. The weight belongs to the prompt: within a group it is constant,
    and where rewards are divided by the group's spread it cancels. So it is refused there.

    Args:
        gain: which gain.
        k: cut-off, 1 or more; `None` counts every rank. `hit` needs one.
        floor: reward of a completion without a rank (one that does not parse).
        n_items: size of the catalog, for `log`, where the column `n_items` is not there to say it.
        propensity_power: 0 for no correction, 1 for the whole of it; in between for less variance.
        max_weight: largest weight of a target, 1 or more.

    Raises:
        ValueError: on an unknown gain, a cut-off below 1, `hit` without a cut-off, a power outside 0 … 1, or a
            weight below 1.

    >>> RankReward("ndcg")(rank=[1, 3, None])
    [1.0, 0.5, 0.0]
    >>> RankReward("hit", k=10).__name__
    'hit@10'
    >>> RankReward("ndcg", propensity_power=0.5)(rank=[1, 3], propensity=[1.0, 0.25])
    [1.0, 1.0]
    """

    def __init__(
        self,
        gain: Gain = "ndcg",
        k: int | None = None,
        floor: float = 0.0,
        n_items: int | None = None,
        propensity_power: float = 0.0,
        max_weight: float = 10.0,
    ) -> None:
        if gain not in get_args(Gain):
            raise ValueError(f"unknown gain {gain!r}: choose one of {', '.join(get_args(Gain))}")
        if k is not None and k < 1:
            raise ValueError(f"k must be 1 or more, found {k}")
        if gain == "hit" and k is None:
            raise ValueError("the gain 'hit' needs a cut-off: name it 'hit@10', or give k: 10")
        if not math.isfinite(floor):
            raise ValueError(f"floor must be a finite number, found {floor}")
        if not 0 <= propensity_power <= 1:
            raise ValueError(f"propensity_power must be 0 to 1, found {propensity_power}")
        if not (max_weight >= 1 and math.isfinite(max_weight)):
            raise ValueError(f"max_weight must be 1 or more, found {max_weight}")
        self.gain = gain
        self.k = k
        self.floor = floor
        self.n_items = n_items
        self.propensity_power = propensity_power
        self.max_weight = max_weight
        self.__name__ = (gain if k is None else f"{gain}@{k}") + ("_ips" if propensity_power else "")
        # What the trainer looks at before it starts: a column that has to be made, and a factor that would cancel.
        self.columns = ("propensity",) if propensity_power else ()
        self.weighs_groups = propensity_power > 0

    def __call__(
        self,
        rank: list[int | None],
        n_items: list[int] | int | None = None,
        propensity: list[float] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """One reward per completion.

        Args:
            rank: the target's 1-based rank per completion; `None` where there is none.
            n_items: size of the catalog, one number or one per completion; read by `log` only, and only where the
                reward was not given one itself.
            propensity: of each target, in (0, 1]; read with a `propensity_power` only.
            **kwargs: the other columns, not used.

        Raises:
            ValueError: on a rank below 1, for `log` without a catalog size, or for a propensity that is missing or out
                of its range.
        """
        size = self.n_items if self.n_items is not None else n_items
        sizes = size if isinstance(size, list) else [size] * len(rank)
        weights = self._weights(propensity, len(rank))
        return [
            self.floor if one is None else weight * self._gain(one, catalog)
            for one, catalog, weight in zip(rank, sizes, weights, strict=True)
        ]

    def _weights(self, propensity: list[float] | None, n: int) -> list[float]:
        if not self.propensity_power:
            return [1.0] * n
        if propensity is None:
            raise ValueError(
                "propensity_power needs the column propensity: recipes make it from the training split; without one "
                "set propensity_power to 0"
            )
        wrong = [one for one in propensity if not 0 < one <= 1]
        if wrong:
            raise ValueError(f"a propensity is {wrong[0]}, expected above 0 and up to 1 ({len(wrong)} of {n})")
        return [min(one**-self.propensity_power, self.max_weight) for one in propensity]

    def _gain(self, rank: int, n_items: int | None) -> float:
        if self.gain == "ndcg":
            return float(gains.ndcg(rank, self.k))
        if self.gain == "mrr":
            return float(gains.mrr(rank, self.k))
        if self.gain == "hit" and self.k is not None:
            return float(gains.hit(rank, self.k))
        if n_items is None:
            raise ValueError("the gain 'log' needs the catalog's size: a column n_items, or the parameter n_items")
        return float(gains.log_gain(rank, n_items, self.k))
