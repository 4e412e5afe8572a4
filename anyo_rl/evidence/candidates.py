"""Candidate sets: the union of the retrievers' top lists, and how many targets they hold.

A target is never put in: a training example whose target no retriever names teaches the ranker nothing.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

NONE = -1  # in place of a candidate where there are fewer than K

Items = NDArray[np.int32]


def top_list(scores_R_N: NDArray[np.floating], k: int) -> Items:
    """The `k` best items of each row, best first: (R, K) int32.

    Of equal scores the lower index is first. A row has `NONE` at its end where fewer are left: items of score -inf
    are never named.

    Args:
        scores_R_N: higher is better, without NaN.
        k: how many; more than N is N.

    >>> top_list(np.array([[0.0, 2.0, 2.0, 1.0], [-np.inf, 0.0, -np.inf, -np.inf]]), 3).tolist()
    [[1, 2, 3], [1, -1, -1]]
    """
    n_rows, n_items = scores_R_N.shape
    k = min(k, n_items)
    if not n_rows:
        return np.empty((0, k), dtype=np.int32)
    if k < n_items:
        edge_R_1 = np.partition(scores_R_N, n_items - k, axis=1)[:, n_items - k, None]
        named_R_N = scores_R_N > edge_R_1
        # Of those that tie at the edge, as many as there is room for, the lowest indices first.
        room_R = k - named_R_N.sum(axis=1)
        tied = np.flatnonzero(scores_R_N == edge_R_1)  # flat: numpy is several times as fast in one dimension
        rows = tied // n_items
        first_of_row = np.searchsorted(rows, np.arange(n_rows))
        fits = np.arange(len(rows)) - first_of_row[rows] < room_R[rows]
        named_R_N.ravel()[tied[fits]] = True
        items_R_K = (np.flatnonzero(named_R_N) % n_items).reshape(n_rows, k)
    else:
        items_R_K = np.tile(np.arange(n_items), (n_rows, 1))
    rows_R_1 = np.arange(n_rows)[:, None]  # several times as fast as `take_along_axis` where rows are few
    scores_R_K = scores_R_N[rows_R_1, items_R_K]
    order_R_K = np.argsort(-scores_R_K, axis=1, kind="stable")
    items_R_K = items_R_K[rows_R_1, order_R_K]
    items_R_K[scores_R_K[rows_R_1, order_R_K] == -np.inf] = NONE
    return items_R_K.astype(np.int32)


def union(lists: Sequence[Items], k: int) -> Items:
    """The union of several lists of each row, (R, K) int32: by an item's best place in any of them.

    Of equal places the earlier list's item is first; so the lists take turns. `NONE` is at the end of short rows.

    Args:
        lists: (R, k) each, best first, with `NONE` at the end.
        k: most candidates of a row, K.

    >>> union([np.array([[4, 2, 7]]), np.array([[4, 5, -1]])], 3).tolist()
    [[4, 2, 5]]
    """
    items_R_P = np.concatenate(lists, axis=1).astype(np.int64)
    turn_P = np.concatenate([np.arange(one.shape[1]) * len(lists) + number for number, one in enumerate(lists)])
    far = int(turn_P.max(initial=0)) + 1
    # Sorted by item and then turn, the first of each item is at its best place.
    keys_R_P = np.where(items_R_P == NONE, -1, items_R_P * far + turn_P)
    keys_R_P.sort(axis=1)
    sorted_R_P = keys_R_P // far
    again_R_P = np.zeros(keys_R_P.shape, dtype=bool)
    again_R_P[:, 1:] = sorted_R_P[:, 1:] == sorted_R_P[:, :-1]
    turns_R_P = np.where(again_R_P | (keys_R_P < 0), far, keys_R_P % far)
    order_R_K = np.argsort(turns_R_P, axis=1, kind="stable")[:, :k]
    found_R_K = np.take_along_axis(sorted_R_P, order_R_K, axis=1)
    found_R_K[np.take_along_axis(turns_R_P, order_R_K, axis=1) == far] = NONE
    short = k - found_R_K.shape[1]
    return np.pad(found_R_K, ((0, 0), (0, max(short, 0))), constant_values=NONE).astype(np.int32)


def places(candidates_R_K: Items, targets_R: NDArray[np.integer]) -> NDArray[np.int64]:
    """Where targets stand in their rows, (R,); `NONE` for those that are no candidates.

    >>> places(np.array([[3, 1], [2, -1]]), np.array([1, 0])).tolist()
    [1, -1]
    """
    is_target_R_K = candidates_R_K == targets_R[:, None]
    return np.where(is_target_R_K.any(axis=1), is_target_R_K.argmax(axis=1), NONE)


def ranks_at(scores_R_K: NDArray[np.floating], place_R: NDArray[np.integer]) -> NDArray[np.int64]:
    """1-based ranks (R,) of the candidates at some places; of equal ones the earlier candidate is ahead.

    With `NONE` for a place the rank means nothing.
    """
    own_R_1 = np.take_along_axis(scores_R_K, place_R[:, None], axis=1)
    earlier_R_K = np.arange(scores_R_K.shape[1]) < place_R[:, None]
    return 1 + ((scores_R_K > own_R_1) | ((scores_R_K == own_R_1) & earlier_R_K)).sum(axis=1)


def recall(candidates_R_K: Items, targets_R: NDArray[np.integer], k: int) -> float:
    """Share of rows whose target is among the first `k` candidates; NaN where there are none.

    >>> recall(np.array([[3, 1], [2, -1]]), np.array([1, 0]), 2)
    0.5
    """
    return float((candidates_R_K[:, :k] == targets_R[:, None]).any(axis=1).mean()) if len(targets_R) else float("nan")


def over_catalog(
    first_R_N: NDArray[np.floating], candidates_R_K: Items, scores_R_K: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Scores of the whole catalog, (R, N): candidates by their own scores, and all others behind, as they were.

    Of candidates with equal scores the one that was named earlier is ahead.

    Args:
        first_R_N: scores of the retriever that orders what is no candidate.
        candidates_R_K: with `NONE` where there are fewer.
        scores_R_K: of the candidates.

    >>> scores = over_catalog(np.array([[5.0, 1.0, 3.0]]), np.array([[1, 0, -1]]), np.array([[0.5, 0.5, 9.0]]))
    >>> scores.argsort().tolist()
    [[2, 0, 1]]
    """
    real_R_K = candidates_R_K != NONE
    # Places in place of scores: they are apart, however close the scores are.
    order_R_K = np.argsort(np.where(real_R_K, -scores_R_K, np.inf), axis=1, kind="stable")
    places_R_K = np.empty_like(order_R_K)
    np.put_along_axis(places_R_K, order_R_K, np.arange(order_R_K.shape[1])[None, :], axis=1)
    found = np.array(first_R_N, dtype=np.float64)
    finite = np.where(np.isfinite(found), found, 0.0)
    above_R_1 = finite.max(axis=1, keepdims=True) + candidates_R_K.shape[1] + 1
    rows, columns = np.nonzero(real_R_K)
    found[rows, candidates_R_K[rows, columns]] = (above_R_1 - places_R_K)[rows, columns]
    return found
