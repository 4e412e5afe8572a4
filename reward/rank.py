"""The rank the teacher gave to the item the user really chose, as a reward in [0, 1].

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

    Args:
        gain: which gain.
        k: cut-off, 1 or more; `None` counts every rank. `hit` needs one.
        floor: reward of a completion without a rank (one that does not parse).
        n_items: size of the catalog, for `log`, where the column `n_items` is not there to say it.

    Raises:
        ValueError: on an unknown gain, a cut-off below 1, or `hit` without a cut-off.

    >>> RankReward("ndcg")(rank=[1, 3, None])
    [1.0, 0.5, 0.0]
    >>> RankReward("hit", k=10).__name__
    'hit@10'
    """

    def __init__(
        self, gain: Gain = "ndcg", k: int | None = None, floor: float = 0.0, n_items: int | None = None
    ) -> None:
        if gain not in get_args(Gain):
            raise ValueError(f"unknown gain {gain!r}: choose one of {', '.join(get_args(Gain))}")
        if k is not None and k < 1:
            raise ValueError(f"k must be 1 or more, found {k}")
        if gain == "hit" and k is None:
            raise ValueError("the gain 'hit' needs a cut-off: name it 'hit@10', or give k: 10")
        if not math.isfinite(floor):
            raise ValueError(f"floor must be a finite number, found {floor}")
        self.gain = gain
        self.k = k
        self.floor = floor
        self.n_items = n_items
        self.__name__ = gain if k is None else f"{gain}@{k}"

    def __call__(self, rank: list[int | None], n_items: list[int] | int | None = None, **kwargs: Any) -> list[float]:
        """One reward per completion.

        Args:
            rank: the target's 1-based rank per completion; `None` where there is none.
            n_items: size of the catalog, one number or one per completion; read by `log` only, and only where the
                reward was not given one itself.
            **kwargs: the other columns, not used.

        Raises:
            ValueError: on a rank below 1, or for `log` without a catalog size.
        """
        size = self.n_items if self.n_items is not None else n_items
        sizes = size if isinstance(size, list) else [size] * len(rank)
        return [
            self.floor if one is None else self._gain(one, catalog) for one, catalog in zip(rank, sizes, strict=True)
        ]

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
