"""Popularity: the baseline that looks at no history."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anyo_rl.students.protocol import Histories, Scores, event_arrays, user_counts


@dataclass(frozen=True)
class Popularity:
    """Scores every item by the number of training users who have it, `counts` (N,), whatever the history."""

    counts: NDArray[np.float64]

    @property
    def n_items(self) -> int:
        """Size N of the catalog."""
        return len(self.counts)

    def scores(self, histories: Histories) -> Scores:
        """Scores (B, N) float32: the same row for each history."""
        return np.tile(self.counts.astype(np.float32), (len(histories), 1))


def fit_popularity(sequences: Histories, n_items: int) -> Popularity:
    """Count the users of each item in the training sequences.

    Raises:
        ValueError: If an item index is outside the catalog.
    """
    return Popularity(user_counts(*event_arrays(sequences, n_items, "sequences"), n_items))


def propensities(counts_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Users of each item over those of the most popular one; an item without users counts as one with a single one.

    Args:
        counts_N: (N,) training users of each item.

    Returns:
        (N,) in (0, 1].

    >>> propensities(np.array([4.0, 1.0, 0.0])).tolist()
    [1.0, 0.25, 0.25]
    """
    least_one_N = np.maximum(counts_N, 1.0)
    return least_one_N / least_one_N.max(initial=1.0)
