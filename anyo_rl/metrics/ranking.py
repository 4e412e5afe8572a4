"""From scores to ranks and top items, and from ranks to the numbers in the tables.

Semantics, once for the whole project: the whole catalog is ranked; ties count against the target, so a model that
scores everything alike is last and not first; a NaN score counts as -inf, so a target without a finite score is last
among the items that are ranked; excluded items leave the ranking, and the target is never excluded.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyo_rl.metrics.gains import hit, mrr, ndcg

CUTOFFS = (1, 5, 10, 20)


def _as_scores(scores_B_N: Any) -> NDArray[np.floating]:
    """Numpy view or copy of numpy or torch scores, with NaN turned into -inf; never changes what was given."""
    if hasattr(scores_B_N, "detach"):  # a torch tensor: numpy has no bfloat16, and float64 must stay as fine as it is
        tensor = scores_B_N.detach().cpu()
        scores_B_N = (tensor if tensor.dtype.itemsize > 4 else tensor.float()).numpy()
    scores = np.asarray(scores_B_N)
    if scores.ndim != 2:
        raise ValueError(f"found scores of shape {scores.shape}, expected (B, N): one row per history")
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    missing = np.isnan(scores)
    return np.where(missing, -np.inf, scores) if missing.any() else scores


def _as_mask(excluded: Any, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """`excluded` (bool mask, or one list of item indices per row) as a fresh (B, N) bool mask."""
    if excluded is None:
        return np.zeros(shape, dtype=bool)
    if hasattr(excluded, "detach"):
        excluded = excluded.detach().cpu().numpy()
    if isinstance(excluded, np.ndarray) and excluded.dtype == bool:
        if excluded.shape != shape:
            raise ValueError(f"found an `excluded` mask of shape {excluded.shape}, expected {shape} like the scores")
        return excluded.copy()
    if len(excluded) != shape[0]:
        raise ValueError(f"found {len(excluded)} lists in `excluded`, expected {shape[0]}: one per row of the scores")
    mask = np.zeros(shape, dtype=bool)
    for row, items in enumerate(excluded):
        columns = np.asarray(items, dtype=np.int64)
        _check_indices(columns, shape[1], "excluded")
        mask[row, columns] = True
    return mask


def _check_indices(indices: NDArray[np.int64], n_items: int, name: str) -> None:
    wrong = (indices < 0) | (indices >= n_items)
    if wrong.any():
        raise ValueError(
            f"found item index {indices[wrong][0]} in `{name}`, expected 0 to {n_items - 1}: "
            "give indices of the catalog that the scores were made with"
        )


def target_ranks(scores_B_N: Any, targets_B: Any, excluded: Any = None) -> NDArray[np.int64]:
    """1-based rank of each row's target among the items that are not excluded; ties count against the target.

    Args:
        scores_B_N: Float scores, numpy or torch, higher is better. NaN counts as -inf, so such a target is last.
        targets_B: Item index of each row's target, in [0, N).
        excluded: Items left out of the ranking: a (B, N) bool mask, or one list of item indices per row (duplicates
            are fine). A target in there stays in the ranking. `None` excludes nothing.

    Returns:
        (B,) int64 ranks from 1 to the number of items ranked.

    Raises:
        ValueError: If shapes differ or an index is outside the catalog.

    >>> target_ranks(np.array([[3.0, 1.0, 3.0]]), [0]).tolist()
    [2]
    >>> target_ranks(np.array([[3.0, 1.0, 3.0]]), [1], excluded=[[0]]).tolist()
    [2]
    """
    scores = _as_scores(scores_B_N)
    if hasattr(targets_B, "detach"):
        targets_B = targets_B.detach().cpu().numpy()
    targets = np.asarray(targets_B, dtype=np.int64)
    if targets.shape != scores.shape[:1]:
        raise ValueError(f"found targets of shape {targets.shape}, expected {scores.shape[:1]}: one per row of scores")
    _check_indices(targets, scores.shape[1], "targets_B")
    rows = np.arange(len(targets))
    ahead = scores >= scores[rows, targets][:, None]
    if excluded is not None:
        ahead &= ~_as_mask(excluded, scores.shape)
    ahead[rows, targets] = True  # the target counts itself, which makes the rank 1-based, excluded or not
    return ahead.sum(axis=1, dtype=np.int64)


def top_items(scores_B_N: Any, k: int, excluded: Any = None) -> tuple[list[list[int]], list[list[float]]]:
    """The `k` best item indices of each row, best first, and their scores; of equal scores the lower index is first.

    A row has fewer than `k` items when fewer are left: items that are excluded or have no score (NaN, -inf) are never
    recommended.

    Args:
        scores_B_N: Float scores, numpy or torch, higher is better.
        k: How many items, 1 or more; more than N is fine.
        excluded: As in [`target_ranks`].

    Raises:
        ValueError: If `k` is below 1, shapes differ or an index is outside the catalog.
    """
    if k < 1:
        raise ValueError(f"found k={k}, expected 1 or more")
    scores = _as_scores(scores_B_N)
    if excluded is not None:
        scores = np.where(_as_mask(excluded, scores.shape), -np.inf, scores)
    all_items, all_scores = [], []
    for row in scores:
        candidates = np.flatnonzero(row > -np.inf)
        if len(candidates) > k:
            # Keeps every item that ties with the k-th, so that the stable sort below decides, not the partition.
            threshold = np.partition(row[candidates], len(candidates) - k)[len(candidates) - k]
            candidates = candidates[row[candidates] >= threshold]
        best = candidates[np.argsort(-row[candidates], kind="stable")][:k]
        all_items.append(best.tolist())
        all_scores.append(row[best].tolist())
    return all_items, all_scores


def per_user_metrics(ranks_U: Any, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, NDArray[np.float64]]:
    """Hit rate and NDCG at each cut-off, and the reciprocal rank without one, for each user.

    Args:
        ranks_U: 1-based ranks, one per user; `inf` for a target that was not ranked.
        cutoffs: The k of `hr@k` and `ndcg@k`.

    Returns:
        `{"hr@1": (U,), "ndcg@1": (U,), …, "mrr": (U,)}`; arrays of length 0 when there are no users.

    Raises:
        ValueError: If `ranks_U` is not one-dimensional, or a rank or a cut-off is below 1.
    """
    ranks = np.asarray(ranks_U, dtype=np.float64)
    if ranks.ndim != 1:
        raise ValueError(f"found ranks of shape {ranks.shape}, expected (U,): one per user")
    values: dict[str, NDArray[np.float64]] = {}
    for k in cutoffs:
        values[f"hr@{k}"] = hit(ranks, k)
        values[f"ndcg@{k}"] = ndcg(ranks, k)
    values["mrr"] = mrr(ranks)
    return values


def mean_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Mean of each metric over users; NaN, and no warning, where there are none."""
    return {name: float(np.mean(value)) if len(value) else float("nan") for name, value in values.items()}


def coverage(top_ids_U_K: Iterable[Iterable[Any]], n_items: int) -> float:
    """Share of the catalog that is recommended to anyone; NaN when there are no users.

    Args:
        top_ids_U_K: Recommended item ids (or indices), one list per user; lists may differ in length.
        n_items: Size of the catalog.

    Raises:
        ValueError: If `n_items` is below 1, or more different items were recommended than there are.
    """
    if n_items < 1:
        raise ValueError(f"found n_items={n_items}, expected the size of the catalog, 1 or more")
    seen: set[Any] = set()
    n_users = 0
    for top in top_ids_U_K:
        seen.update(top)
        n_users += 1
    if len(seen) > n_items:
        raise ValueError(f"found {len(seen)} different items recommended, expected at most n_items={n_items}")
    return len(seen) / n_items if n_users else float("nan")
