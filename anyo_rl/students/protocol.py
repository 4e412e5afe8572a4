"""What every student and baseline has: fitted on sequences of item indices, it scores all items after histories."""

import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Histories = Sequence[Sequence[int]]
Scores = NDArray[np.float32]
MOST_SCORES = 2**25  # numbers in a block of scores: 128 MB of float32


class Scorer(Protocol):
    """Whatever scores every item after a history, such as [`ItemKNN`] or a student."""

    @property
    def n_items(self) -> int:
        """Size N of the catalog."""

    def scores(self, histories: Histories) -> Any:
        """(B, N) float scores, numpy or torch."""


def event_arrays(sequences: Histories, n_items: int, name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The items of all sequences in one array, and the length of each sequence."""
    lengths = np.fromiter((len(sequence) for sequence in sequences), dtype=np.int64, count=len(sequences))
    items = np.fromiter(itertools.chain.from_iterable(sequences), dtype=np.int64, count=int(lengths.sum()))
    wrong = (items < 0) | (items >= n_items)
    if wrong.any():
        raise ValueError(
            f"found item index {items[wrong][0]} in `{name}`, expected 0 to {n_items - 1}: "
            "give indices of the catalog, and drop or add the items that it lacks"
        )
    return items, lengths


def user_counts(items: NDArray[np.int64], lengths: NDArray[np.int64], n_items: int) -> NDArray[np.float64]:
    """Number of users who have each item, (N,): a user who buys an item ten times is one user."""
    users = np.repeat(np.arange(len(lengths)), lengths)
    pairs = np.unique(users * n_items + items)
    return np.bincount(pairs % n_items, minlength=n_items).astype(np.float64)


def history_weights(histories: Histories, n_items: int, decay: float) -> sparse.csr_array:
    """(B, N) sparse: `decay` to the number of items that came after an item's last place in each history.

    Raises:
        ValueError: an item index is outside the catalog.
    """
    items, lengths = event_arrays(histories, n_items, "histories")
    rows = np.repeat(np.arange(len(lengths)), lengths)
    ages = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(items)) - 1
    # The first of each (row, item) from the end of the array is where the item was last.
    _, last = np.unique((rows * n_items + items)[::-1], return_index=True)
    kept = len(items) - 1 - last  # in the order of rows, and of items in each: ready for a sparse array
    weights = np.power(decay, ages[kept].astype(np.float64))
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows[kept], minlength=len(lengths)))])
    return sparse.csr_array((weights, items[kept], starts), shape=(len(lengths), n_items))


def rows_at_once(n_items: int) -> int:
    """How many histories are scored at once, so that their scores stay within bounds: 512, of a million items 33."""
    return max(1, min(512, MOST_SCORES // n_items))
