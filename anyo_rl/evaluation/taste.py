"""Whose taste has shifted: how like a user's last items are to those before, by who chose what in training."""

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from anyo_rl.students.protocol import Histories

LAST = 3  # items that say what a user likes now


def taste_kept(sequences: Histories, n_items: int, pasts: Histories, last: int = LAST) -> NDArray[np.float64]:
    """How like the last items of each past are to all before them: (E,), 0 to 1, low where the taste has shifted.

    The mean over pairs, a last item and an earlier one, of the cosine of their training users: how many chose both,
    over the root of the product of how many chose each. Items that no training user chose are passed over; NaN where
    none is left on one side, as in a past of `last` items or fewer.

    Args:
        sequences: training sequences of item indices, one for each user.
        n_items: size of the catalog.
        pasts: of E examples, oldest first.
        last: items that say what a user likes now.
    """
    chosen_U_N = _counted(sequences, n_items)
    chosen_U_N.data[:] = 1.0
    users_N = np.asarray(chosen_U_N.sum(axis=0)).ravel()
    known_N = users_N > 0
    unit_N_U = sparse.csr_array(sparse.diags_array(known_N / np.sqrt(np.maximum(users_N, 1.0))) @ chosen_U_N.T)
    sides = [_counted(part, n_items) for part in ([past[-last:] for past in pasts], [past[:-last] for past in pasts])]
    n_pairs_E = np.prod([side @ known_N.astype(float) for side in sides], axis=0)
    now_E_U, before_E_U = (side @ unit_N_U for side in sides)
    sums_E = np.asarray(now_E_U.multiply(before_E_U).sum(axis=1)).ravel()
    return np.divide(sums_E, n_pairs_E, out=np.full(len(pasts), np.nan), where=n_pairs_E > 0)


def _counted(rows: Histories, n_items: int) -> sparse.csr_array:
    """How often each item is in each row: (R, N)."""
    items = np.array([item for row in rows for item in row], dtype=np.int64)
    starts = np.cumsum([0, *map(len, rows)])
    counts = sparse.csr_array((np.ones(len(items)), items, starts), shape=(len(rows), n_items))
    counts.sum_duplicates()
    return counts
