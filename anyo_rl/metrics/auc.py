"""AUC of yes/no answers: how often what was liked has a higher score than what was not, as TALLRec has it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import mannwhitneyu


def auc(scores_R: Any, liked_R: Any) -> float:
    """Area under the ROC curve over all rows together, in [0, 1]; of equal scores half counts.

    Args:
        scores_R: higher is better, without NaN.
        liked_R: whether each was liked.

    Returns:
        NaN where all were liked, or none.

    Raises:
        ValueError: lengths differ, or a score is NaN.

    >>> auc([0.9, 0.2, 0.4, 0.4], [True, False, True, False])
    0.875
    """
    scores, liked = np.asarray(scores_R, dtype=np.float64), np.asarray(liked_R, dtype=bool)
    if scores.shape != liked.shape or scores.ndim != 1:
        raise ValueError(f"found {scores.shape} scores and {liked.shape} labels: expected one of each for every row")
    if np.isnan(scores).any():
        raise ValueError("a score is NaN: expected numbers")
    if liked.all() or not liked.any():
        return float("nan")
    found = mannwhitneyu(scores[liked], scores[~liked], method="asymptotic").statistic
    return float(found / (liked.sum() * (~liked).sum()))


def bootstrap_auc(
    scores_R: Any, liked_R: Any, users_R: Sequence[str], *, n_draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95% bootstrap interval of the AUC over users, each drawn with all of its rows.

    Args:
        scores_R: as in `auc`.
        liked_R: as in `auc`.
        users_R: of each row.
        n_draws: how often users are drawn; draws in which all were liked, or none, say nothing.
        seed: of the draws.

    Returns:
        Both ends; NaN where no draw says anything.
    """
    scores, liked = np.asarray(scores_R, dtype=np.float64), np.asarray(liked_R, dtype=bool)
    _, user_R = np.unique(np.asarray(users_R), return_inverse=True)
    rows: list[NDArray[np.intp]] = [np.flatnonzero(user_R == user) for user in range(user_R.max(initial=-1) + 1)]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n_draws if rows else 0):
        drawn = np.concatenate([rows[user] for user in rng.integers(len(rows), size=len(rows))])
        found.append(auc(scores[drawn], liked[drawn]))
    known = [one for one in found if not np.isnan(one)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (np.nan, np.nan)
    return float(low), float(high)
