"""The best that anyone can do in the toy world: exact predictive distributions over its catalog.

Let r be a routine, s a favourite style, and x_t = (c_t, g_t, y_t) the category, grade and style of the item bought at
position t. With noise rate e, style fidelity f, S styles and N items, each event has the probability

    p(x_t | r, s) = (1 - e) * [(c_t, g_t) = intended_r(t)] * q(y_t | s) + e / N
    q(y | s)      = f where y = s, else (1 - f) / (S - 1)

The events are independent given (r, s), because a noise event does not stop the routine. Hence

    posterior(r, s) proportional to prior(r) * 1/S * product over t of p(x_t | r, s)
    p(x_T = (c, g, y)) = (1 - e) * sum over r, s of posterior(r, s) * [(c, g) = intended_r(T)] * q(y | s) + e / N

Routines and styles are finitely many (5,544 routines of 9 categories and 8 grades from one start), so this is a plain
sum and exact: no sampling, no approximation. Routines that meet none of the events share one likelihood, (e / N)^T.

Sorting by a predictive distribution maximises the expected NDCG under it, so `expected_ndcg` of the history oracle is
the ceiling for every ranker that sees only the history.

Many items have exactly the same probability (the styles a user does not favour), and ties count against the target in
every ranker of this project. A bound must not pay for that: `break_ties` orders equal items at random.
"""

from collections.abc import Sequence

import numpy as np

from anyo_rl.data.toy.routines import RoutineTable

# Finite, so that 0 events of probability 0 cost 0 and not NaN; far below any history that is possible.
_LOG_ZERO = -1e6


def style_probabilities(n_styles: int, style_fidelity: float) -> np.ndarray:
    """q(style bought | favourite style), shape (favourites, styles); rows sum to 1."""
    other = (1.0 - style_fidelity) / (n_styles - 1)
    return np.full((n_styles, n_styles), other) + np.eye(n_styles) * (style_fidelity - other)


def routine_posterior(
    table: RoutineTable,
    events_T_3: np.ndarray,
    *,
    n_styles: int,
    noise: float,
    style_fidelity: float,
    start: int = 0,
) -> np.ndarray:
    """Exact posterior over (routine, favourite style), shape (R, S), sums to 1.

    Args:
        table: the routines of the world; must cover `start + T` positions.
        events_T_3: category, grade and style (0-based) of the events seen, oldest first; T may be 0.
        n_styles: styles of the world.
        noise: share of events replaced by an item drawn uniformly from the catalog.
        style_fidelity: probability that a user takes the favourite style.
        start: position of the first event seen, counted from the user's first event.

    Raises:
        ValueError: if the events have probability 0 in this world (possible only without noise).
    """
    n_events = len(events_T_3)
    uniform = noise / (table.n_categories * table.n_grades * n_styles)
    categories_T, grades_T, styles_T = events_T_3.T
    wanted_T = table.code(categories_T, grades_T).astype(table.wanted_T_R.dtype)
    hits_T_R = table.wanted_T_R[start : start + n_events] == wanted_T[:, None]
    bought_S_T = style_probabilities(n_styles, style_fidelity)[:, styles_T]
    hit_S_T = _log((1.0 - noise) * bought_S_T + uniform)
    # Only the K routines with a hit need the sum over events: without one, every event is noise, which is never more
    # likely than a hit.
    some_K = np.flatnonzero(hits_T_R.any(axis=0))
    hits_K_T = hits_T_R[:, some_K].T.astype(np.float64)
    log_K_S = hits_K_T @ hit_S_T.T + (n_events - hits_K_T.sum(axis=1))[:, None] * _log(uniform)
    log_none = n_events * _log(uniform)
    top = log_K_S.max(initial=log_none)
    if top < _LOG_ZERO / 2:
        raise ValueError(
            "this history has probability 0 in the toy world: no routine explains it and noise is 0. "
            "Pass whole histories, or the position of their first event as `starts`, of a world with this config."
        )
    weights_R_S = np.repeat(table.prior_R[:, None] * np.exp(log_none - top), n_styles, axis=1)
    weights_R_S[some_K] = table.prior_R[some_K, None] * np.exp(log_K_S - top)
    return weights_R_S / weights_R_S.sum()


def predictive(
    table: RoutineTable, wanted_K: np.ndarray, weights_K_S: np.ndarray, *, noise: float, style_fidelity: float
) -> np.ndarray:
    """p(next item), shape (categories, styles, grades), from what K routines want and how probable each is.

    Args:
        table: the routines of the world.
        wanted_K: category and grade that each routine intends next, in one number (`RoutineTable.code`).
        weights_K_S: probability of each routine and favourite style; sums to 1.
        noise: share of events replaced by an item drawn uniformly from the catalog.
        style_fidelity: probability that a user takes the favourite style.
    """
    wanted_C_S_G = wanted_intents(table, wanted_K, weights_K_S)
    q_S_S = style_probabilities(weights_K_S.shape[1], style_fidelity)
    bought_C_S_G = np.einsum("cfg,fs->csg", wanted_C_S_G, q_S_S)
    return (1.0 - noise) * bought_C_S_G + noise / bought_C_S_G.size


def wanted_intents(table: RoutineTable, wanted_K: np.ndarray, weights_K_S: np.ndarray) -> np.ndarray:
    """p(category, favourite style and grade of the next intent), shape (categories, styles, grades), sums to 1.

    Arguments as `predictive`'s. It is what a reasoning states, where `predictive` is what is bought then.
    """
    n_wanted = table.n_categories * table.n_grades
    mass = np.stack([np.bincount(wanted_K, weights_K, n_wanted) for weights_K in weights_K_S.T], axis=1)
    return mass.reshape(table.n_categories, table.n_grades, -1).transpose(0, 2, 1)


def break_ties(scores_B_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """The same distributions with equal items put in a random order (relative changes below 1e-9, rows sum to 1)."""
    jitter = np.random.default_rng(seed).random(scores_B_N.shape)
    jittered = scores_B_N * (1.0 + 1e-9 * jitter)
    return jittered / jittered.sum(axis=1, keepdims=True)


def expected_ndcg(scores_B_N: np.ndarray, k: int = 10) -> np.ndarray:
    """Expected NDCG@k, shape (B,), in [0, 1], of sorting by each distribution when the target is drawn from it.

    The sum over the k most probable items of p * 1/log2(1 + rank): no order of the items reaches more.

    >>> expected_ndcg(np.array([[0.25, 0.75]]), k=1)
    array([0.75])
    """
    k = min(k, scores_B_N.shape[1])
    top_B_K = -np.sort(-scores_B_N, axis=1)[:, :k]
    return top_B_K @ (1.0 / np.log2(1.0 + np.arange(1, k + 1)))


def check_windows(lengths: Sequence[int], starts: Sequence[int], n_positions: int) -> None:
    """Raise ValueError unless every history has a start and fits, with its next event, into the routine table."""
    if len(lengths) != len(starts):
        raise ValueError(f"found {len(starts)} starts for {len(lengths)} histories: pass one start per history")
    for row, (length, start) in enumerate(zip(lengths, starts, strict=True)):
        if start < 0 or start + length >= n_positions:
            raise ValueError(
                f"history {row} covers positions {start} to {start + length - 1}, expected within 0 to "
                f"{n_positions - 2}: pass whole histories, or the position of their first event as `starts`"
            )


def _log(probability: float | np.ndarray) -> np.ndarray:
    probability = np.asarray(probability, dtype=np.float64)
    return np.log(probability, out=np.full(probability.shape, _LOG_ZERO), where=probability > 0)
