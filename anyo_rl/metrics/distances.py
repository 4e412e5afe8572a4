"""How far apart item distributions are, and whose doing it is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of two distributions that are the same but for float32 rounding in another batch.
NOISE = 1e-4


def total_variation(p_B_N: Any, q_B_N: Any) -> NDArray[np.float64]:
    """Half the sum of |p − q| over the items: (B,), 0 for equal distributions and 1 for those that share no item.

    Args:
        p_B_N: probabilities, each row summing to 1.
        q_B_N: those to compare with.

    >>> total_variation([[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.75, 0.25]])
    array([1.  , 0.25])
    """
    p, q = np.asarray(p_B_N, np.float64), np.asarray(q_B_N, np.float64)
    if p.shape != q.shape or p.ndim != 2:
        raise ValueError(f"found distributions of shapes {p.shape} and {q.shape}, expected (B, N) twice")
    return 0.5 * np.abs(p - q).sum(axis=1)


def share_of_change(own_B: Any, other_B: Any, noise: float = NOISE) -> NDArray[np.float64]:
    """own / (own + other): the share of a change that is one side's doing, (B,) in [0, 1].

    Args:
        own_B: how much changes when this side alone is exchanged.
        other_B: how much changes when the other side alone is exchanged.
        noise: changes up to this are none.

    Returns:
        0 where this side changes nothing, 1 where the other changes nothing, NaN where neither does.

    >>> share_of_change([0.6, 0.0, 0.3, 0.0], [0.2, 0.5, 0.0, 0.0])
    array([0.75, 0.  , 1.  ,  nan])
    """
    own, other = (np.where(np.asarray(side) > noise, side, 0.0).astype(np.float64) for side in (own_B, other_B))
    total = own + other
    return np.divide(own, total, out=np.full(total.shape, np.nan), where=total > 0)


def share_moved(before: tuple[float, float], after: float, least: float = 0.01) -> float:
    """How much of the mass that could go over from one set of items to another did: in [0, 1].

    Args:
        before: the mass of the set that it leaves, and of the set that it goes to.
        after: the mass of the second set afterwards.
        least: by how much the first has to outweigh the second before; NaN where it does not.

    >>> share_moved((0.75, 0.25), 0.5), share_moved((0.8, 0.1), 0.1), share_moved((0.8, 0.1), 0.9)
    (0.5, 0.0, 1.0)
    """
    room = before[0] - before[1]
    if room < least:
        return float("nan")
    moved = (after - before[1]) / room
    return 0.0 if abs(after - before[1]) <= NOISE else min(max(moved, 0.0), 1.0)
