"""Vectors for items that training hardly met: what their titles, or whatever is known of them, say they would be."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from anyo_rl.run.settings import UsageError

RIDGES = tuple(10.0**power for power in range(-3, 7))  # that are tried, over the mean square of a given vector


def predicted(
    given_N_V: NDArray[np.floating], items_N_D: NDArray[np.floating], known_N: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Item vectors (N, D) as a ridge regression from given vectors predicts them, fitted on the known ones.

    How far it shrinks is the one of `RIDGES` with the smallest leave-one-out error, which has a closed form.

    Args:
        given_N_V: of all items.
        items_N_D: as a model learned them.
        known_N: which of these are worth learning from.

    Raises:
        UsageError: fewer than two are.

    >>> given, items = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([[1.0], [3.0], [5.0], [0.0]])
    >>> predicted(given, items, np.array([True, True, True, False])).round(2).ravel().tolist()
    [1.0, 3.0, 5.0, 7.0]
    """
    if known_N.sum() < 2:
        raise UsageError(f"found {int(known_N.sum())} items with enough training events, expected two or more")
    x_N_V, y_K_D = np.asarray(given_N_V, np.float64), np.asarray(items_N_D, np.float64)[known_N]
    mean_V, mean_D = x_N_V[known_N].mean(axis=0), y_K_D.mean(axis=0)
    x_N_V, y_K_D = x_N_V - mean_V, y_K_D - mean_D
    u_K_R, s_R, axes_R_V = np.linalg.svd(x_N_V[known_N], full_matrices=False)
    along_R_D, scale = u_K_R.T @ y_K_D, max(float((s_R**2).sum()) / len(y_K_D), np.finfo(float).tiny)
    best, weights_V_D = np.inf, np.zeros((x_N_V.shape[1], y_K_D.shape[1]))
    for ridge in RIDGES:
        kept_R = s_R**2 / (s_R**2 + ridge * scale)
        leverage_K = (u_K_R**2 * kept_R).sum(axis=1) + 1 / len(y_K_D)  # the mean takes part
        left_K_D = y_K_D - u_K_R @ (kept_R[:, None] * along_R_D)
        error = float(((left_K_D / np.maximum(1 - leverage_K, 1e-9)[:, None]) ** 2).mean())
        if error < best:
            shrunk_R = s_R / (s_R**2 + ridge * scale)
            best, weights_V_D = error, axes_R_V.T @ (shrunk_R[:, None] * along_R_D)
    found: NDArray[np.float64] = mean_D + x_N_V @ weights_V_D
    return found


def warm_up(
    student: nn.Module, given_N_V: NDArray[np.floating], sequences: Sequence[Sequence[int]], least_events: int
) -> int:
    """Gives a student's items that have too few training events the vector that is predicted for them.

    Args:
        student: fitted.
        given_N_V: vectors of the items.
        sequences: that it was fitted on.
        least_events: items with fewer are given one.

    Returns:
        How many were.

    Raises:
        UsageError: see `predicted`.
    """
    table: nn.Embedding = student.items  # type: ignore[assignment]
    n_items: int = student.n_items  # type: ignore[assignment]
    counts_N = np.bincount([item for sequence in sequences for item in sequence], minlength=n_items)
    cold_N = counts_N < least_events
    if cold_N.any():
        with torch.no_grad():
            found_N_D = predicted(given_N_V, table.weight[:n_items].numpy(), ~cold_N)
            table.weight[:n_items][torch.from_numpy(cold_N)] = torch.from_numpy(found_N_D[cold_N]).to(table.weight)
    return int(cold_N.sum())
