"""Gains: a rank turned into a number in [0, 1], where a better (smaller) rank never gets less.

Every function takes one rank or an array of them and answers in kind: a float, or a float64 array of the same shape.
Ranks are 1-based. A rank of `inf` stands for "not ranked at all" and has gain 0.

>>> ndcg(1), ndcg(3), mrr(4), hit(11, k=10)
(1.0, 0.5, 0.25, 0.0)
>>> ndcg([1, 3, 20], k=10).tolist()
[1.0, 0.5, 0.0]
"""

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def _checked(rank: Any) -> FloatArray:
    ranks = np.asarray(rank, dtype=np.float64)
    wrong = ~(ranks >= 1)  # written so that NaN is wrong too
    if wrong.any():
        found = ranks[wrong].ravel()[0]
        raise ValueError(
            f"found a rank of {found:g}, expected 1 or more (ranks are 1-based): "
            f"add 1 to 0-based positions, give `inf` for an item that was not ranked ({wrong.sum()} of {ranks.size})"
        )
    return ranks


def _answer(gains: FloatArray, ranks: FloatArray, k: int | None) -> Any:
    if k is not None:
        if k < 1:
            raise ValueError(f"found a cut-off k={k}, expected 1 or more, or None for no cut-off")
        gains = np.where(ranks <= k, gains, 0.0)
    return float(gains) if ranks.ndim == 0 else gains


@overload
def ndcg(rank: float, k: int | None = None) -> float: ...
@overload
def ndcg(rank: Any, k: int | None = None) -> FloatArray: ...
def ndcg(rank: Any, k: int | None = None) -> float | FloatArray:
    """NDCG of one relevant item, 1 / log2(1 + rank), and 0 beyond the cut-off `k`.

    Raises:
        ValueError: If a rank is below 1 or NaN, or `k` is below 1.
    """
    ranks = _checked(rank)
    return _answer(1.0 / np.log2(1.0 + ranks), ranks, k)


@overload
def mrr(rank: float, k: int | None = None) -> float: ...
@overload
def mrr(rank: Any, k: int | None = None) -> FloatArray: ...
def mrr(rank: Any, k: int | None = None) -> float | FloatArray:
    """Reciprocal rank, 1 / rank, and 0 beyond the cut-off `k`.

    Raises:
        ValueError: If a rank is below 1 or NaN, or `k` is below 1.
    """
    ranks = _checked(rank)
    return _answer(1.0 / ranks, ranks, k)


@overload
def hit(rank: float, k: int) -> float: ...
@overload
def hit(rank: Any, k: int) -> FloatArray: ...
def hit(rank: Any, k: int) -> float | FloatArray:
    """1 where the target is among the first `k`, else 0 (hit rate, which is recall when there is one target).

    Raises:
        ValueError: If a rank is below 1 or NaN, or `k` is below 1.
    """
    ranks = _checked(rank)
    return _answer(np.ones_like(ranks), ranks, k)


@overload
def log_gain(rank: float, n_items: int, k: int | None = None) -> float: ...
@overload
def log_gain(rank: Any, n_items: int, k: int | None = None) -> FloatArray: ...
def log_gain(rank: Any, n_items: int, k: int | None = None) -> float | FloatArray:
    """1 - log(rank) / log(n_items): 1 at the top, 0 at the end of the catalog, equal steps for equal rank ratios.

    Unlike NDCG it still tells rank 300 from rank 3,000, so it gives a policy that ranks badly something to climb.
    Ranks past `n_items` have gain 0. A catalog of one item has gain 1 at rank 1.

    Raises:
        ValueError: If a rank is below 1 or NaN, or `n_items` or `k` is below 1.
    """
    if n_items < 1:
        raise ValueError(f"found n_items={n_items}, expected the size of the catalog, 1 or more")
    ranks = _checked(rank)
    scale = np.log(n_items) if n_items > 1 else 1.0
    gains = np.where(ranks <= n_items, np.maximum(0.0, 1.0 - np.log(ranks) / scale), 0.0)
    return _answer(gains, ranks, k)
