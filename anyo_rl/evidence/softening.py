"""Scores as log-probabilities over the list of each row, by a temperature that is chosen on validation."""

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from anyo_rl.evidence.candidates import NONE, Items, places

WIDEST = 10.0  # log of the largest temperature, and its negative of the smallest


@dataclass(frozen=True)
class Softening:
    """How scores become log-probabilities: a softmax over the row's top list.

    Attributes:
        temperature: that scores are divided by.
        by_spread: whether they are divided by the spread of their row before, the largest less the smallest of its
            list: scores that are sums over the history are higher for some users than for others.
        nll: mean over validation targets that are in their list, and one that is anywhere; NaN where there are none.
    """

    temperature: float = 1.0
    by_spread: bool = False
    nll: float = float("nan")

    def log_probs(self, scores_R_K: NDArray[np.floating]) -> NDArray[np.float32]:
        """Log-probabilities (R, K) among the row's list; -inf where its score is.

        >>> np.exp(Softening(0.5, by_spread=True).log_probs(np.array([[7.0, 5.0, -np.inf]]))).round(2)
        array([[0.88, 0.12, 0.  ]], dtype=float32)
        """
        return log_softmax(_scaled(scores_R_K, self.by_spread) / self.temperature)


def log_softmax(scores_R_K: NDArray[np.float64]) -> NDArray[np.float32]:
    """Over the finite scores of each row; all -inf where there is none."""
    largest_R_1 = scores_R_K.max(axis=1, keepdims=True, initial=-np.inf)
    shifted_R_K = scores_R_K - np.where(np.isfinite(largest_R_1), largest_R_1, 0)
    with np.errstate(divide="ignore"):
        total_R_1 = np.log(np.exp(shifted_R_K).sum(axis=1, keepdims=True))
    found = np.where(np.isfinite(scores_R_K), shifted_R_K - np.where(np.isfinite(total_R_1), total_R_1, 0), -np.inf)
    return found.astype(np.float32)


def choose_softening(scores_R_K: NDArray[np.floating], items_R_K: Items, targets_R: NDArray[np.integer]) -> Softening:
    """The temperature, and whether to divide by the spread, under which validation targets are the likeliest.

    Targets that are in no list say nothing, and lists are no longer than those that are kept. One target more counts
    that may be any item of a list: where a few are all at the top, no temperature above 0 would be low enough. The
    likelihood is concave in 1 / temperature.

    Args:
        scores_R_K: of each row's list, -inf where there is no item.
        items_R_K: the lists.
        targets_R: the items really chosen.
    """
    place_R = places(items_R_K, targets_R)
    hit_R = place_R != NONE
    if not hit_R.any():
        return Softening()
    found = []
    for by_spread in (False, True):
        nll = partial(_nll, _scaled(scores_R_K[hit_R], by_spread), place_R[hit_R])
        best = minimize_scalar(nll, bounds=(-WIDEST, WIDEST), method="bounded", options={"xatol": 1e-4})
        found.append(Softening(float(np.exp(best.x)), by_spread, float(best.fun)))
    return min(found, key=lambda one: one.nll)


def _nll(scores_R_K: NDArray[np.float64], place_R: NDArray[np.int64], log_temperature: float) -> float:
    log_p_R_K = log_softmax(scores_R_K / np.exp(log_temperature)).astype(np.float64)
    of_targets = np.take_along_axis(log_p_R_K, place_R[:, None], axis=1).sum()
    anywhere = log_p_R_K[np.isfinite(log_p_R_K)].mean()
    return -float(of_targets + anywhere) / (len(place_R) + 1)


def _scaled(scores_R_K: NDArray[np.floating], by_spread: bool) -> NDArray[np.float64]:
    found_R_K: NDArray[np.float64] = scores_R_K.astype(np.float64)
    if not by_spread:
        return found_R_K
    there_R_K = np.isfinite(found_R_K)
    largest_R_1 = np.where(there_R_K, found_R_K, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    smallest_R_1 = np.where(there_R_K, found_R_K, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    found_R_K /= np.where(largest_R_1 > smallest_R_1, largest_R_1 - smallest_R_1, 1.0)
    return found_R_K
