"""Vectors of items from who chose them: items that the same users chose lie close together."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

DIM = 128


def collaborative_vectors(sequences: Sequence[Sequence[int]], n_items: int, dim: int = DIM) -> NDArray[np.float32]:
    """(N, D) float32 vectors of length 1 by a truncated singular value decomposition of users by items.

    An entry is 1 over the root of the user's number of items and of the item's number of users: neither long histories
    nor popular items take all directions. A vector is the item's part of it, times the singular values. Of all items
    the mean is taken out, which says no more than that an item was chosen.

    Args:
        sequences: for each user the items chosen, as indices below `n_items`; training events alone.
        n_items: N.
        dim: most dimensions D; there are fewer where there are fewer users or items.

    Returns:
        The vectors; zeros for an item that nobody chose.

    Raises:
        ValueError: there is no event.
    """
    users = np.repeat(np.arange(len(sequences)), [len(items) for items in sequences])
    items = np.fromiter((item for row in sequences for item in row), dtype=np.int64, count=len(users))
    if not len(items):
        raise ValueError("there is no training event to make collaborative vectors of")
    chosen_U_N = sparse.csr_array((np.ones(len(items)), (users, items)), shape=(len(sequences), n_items))
    chosen_U_N.sum_duplicates()
    chosen_U_N.data[:] = 1  # whoever chose an item twice is one user
    n_users_N = chosen_U_N.sum(axis=0)
    scale_U = sparse.diags_array(1 / np.sqrt(np.maximum(chosen_U_N.sum(axis=1), 1)))
    scaled_U_N = scale_U @ chosen_U_N @ sparse.diags_array(1 / np.sqrt(np.maximum(n_users_N, 1)))
    dim = min(dim, *scaled_U_N.shape)
    if dim == min(scaled_U_N.shape):
        _, values, right = np.linalg.svd(scaled_U_N.toarray(), full_matrices=False)
    else:
        # A start of its own, so that the same events give the same vectors.
        start = np.random.default_rng(0).normal(size=min(scaled_U_N.shape))
        _, values, right = svds(sparse.csr_array(scaled_U_N), k=dim, v0=start)
    vectors_N_D = right.T * values
    known = n_users_N > 0
    vectors_N_D[known] -= vectors_N_D[known].mean(0)
    lengths = np.linalg.norm(vectors_N_D, axis=1, keepdims=True)
    vectors_N_D = np.where(known[:, None] & (lengths > 1e-9), vectors_N_D / np.maximum(lengths, 1e-9), 0.0)
    return vectors_N_D.astype(np.float32)
