"""Features: what speaks for a candidate, a number each, from the history and from retrievers that saw no more of it.

All are on one scale for retrievers of any number of users: scores are divided by the row's largest, popularity is a
share. Where a feature is not known (the text of an empty history) it is NaN, which the ranker knows as missing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anyo_rl.data.sequences import HeldOut
from anyo_rl.evidence.candidates import NONE, Items, top_list, union
from anyo_rl.evidence.retrievers import MEANINGS, POPULARITY, SASREC, TEXT, Fitted
from anyo_rl.students.protocol import event_arrays

RECENT = 20  # newest items of a history that texts are compared with
TEXT_ROWS = 32  # whose texts are compared at once: their vectors stay in a processor's cache


@dataclass(frozen=True)
class Feature:
    """One number about a candidate.

    Attributes:
        name: in tables and models.
        meaning: what it is, in a line.
        cost: what it takes, in a line.
    """

    name: str
    meaning: str
    cost: str


FIRST_PLACE = Feature(
    "first_place", "place in the first retriever's list; one more than its length beyond it", "a look-up"
)
LOG_POPULARITY = Feature("log_popularity", "log of the share of users who have the item", "a look-up")
TEXTS = (
    Feature("text_last", "cosine of the title with that of the last item", "a product of two vectors"),
    Feature("text_max", f"the largest such cosine among the last {RECENT}", f"{RECENT} products of two vectors"),
    Feature("text_mean", f"their mean over the last {RECENT}", "made with text_max"),
)
OF_HISTORY = (
    Feature("history_length", "events in the history", "a count, alike for all candidates"),
    Feature("last_log_popularity", "log_popularity of the last item", "a look-up, alike for all candidates"),
    Feature("seen", "1 where the history has the item", "a look-up"),
)


def features_of(retrievers: Iterable[str], with_text: bool) -> tuple[Feature, ...]:
    """The features there are, in the order of their columns.

    Args:
        retrievers: their names.
        with_text: whether titles have vectors.
    """
    scores = [
        Feature(name, f"{MEANINGS.get(name, name)}; its score over the row's largest", "a block of scores")
        for name in retrievers
        if name not in (POPULARITY, TEXT)  # as log_popularity and text_last
    ]
    return (*scores, FIRST_PLACE, LOG_POPULARITY, *(TEXTS if with_text else ()), *OF_HISTORY)


@dataclass(frozen=True)
class Gatherer:
    """How evidence is gathered, whatever the retrievers were fitted on.

    Attributes:
        n_candidates: most of a row, K.
        lists: names of the retrievers whose top lists make up the candidates; their order breaks ties.
        vectors_N_D: of titles, float32 of length 1; `None` for no features of text.
    """

    n_candidates: int
    lists: tuple[str, ...]
    vectors_N_D: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Block:
    """The evidence of some rows.

    Attributes:
        candidates_R_K: item indices, int32; `NONE` at the end of short rows.
        features_R_K_X: float32, in the order of `features_of`; NaN where there is no candidate.
    """

    candidates_R_K: Items
    features_R_K_X: NDArray[np.float32]


def gather(asked: HeldOut, fitted: Fitted, how: Gatherer) -> Block:
    """Names the candidates of some histories, and says what speaks for each.

    Args:
        asked: histories, and what their rankings leave out; its targets are not looked at.
        fitted: retrievers.
        how: the sizes and the texts.
    """
    n_items = fitted.n_items
    left_out = _places(asked.excluded, n_items)
    scores: dict[str, NDArray[np.float32]] = {}
    largest: dict[str, NDArray[np.float32]] = {}
    lists: dict[str, Items] = {}
    known: dict[int, str] = {}  # item-kNN and its directed view may be one and the same
    for name, scorer in fitted.scorers.items():
        same = known.setdefault(id(scorer), name)
        if same != name:
            scores[name], largest[name] = scores[same], largest[same]
        else:
            found_R_N = np.asarray(scorer.scores(asked.histories), dtype=np.float32)
            if len(left_out[1]):
                found_R_N = found_R_N.copy()
                found_R_N[left_out] = -np.inf
            scores[name] = found_R_N
            largest[name] = found_R_N.max(axis=1, keepdims=True)
        if name in how.lists or not lists:
            lists[name] = lists[same] if same in lists else top_list(scores[name], how.n_candidates)
    candidates_R_K = union([lists[name] for name in how.lists], how.n_candidates)
    features = features_of(fitted.scorers, how.vectors_N_D is not None)
    values_R_K_X = np.empty((*candidates_R_K.shape, len(features)), dtype=np.float32)
    column = {feature.name: place for place, feature in enumerate(features)}
    items_R_K = np.maximum(candidates_R_K, 0)  # a place to look at where there is no candidate
    rows_R_1 = np.arange(len(items_R_K))[:, None]
    for name, found_R_N in scores.items():
        if name in column:
            values_R_K_X[..., column[name]] = _share(name, found_R_N[rows_R_1, items_R_K], largest[name])
    first_R_k = next(iter(lists.values()))
    values_R_K_X[..., column["first_place"]] = _places_in(first_R_k, items_R_K, n_items)
    values_R_K_X[..., column["log_popularity"]] = fitted.log_popularity_N[items_R_K]
    if how.vectors_N_D is not None:
        start = column["text_last"]
        for row in range(0, len(items_R_K), TEXT_ROWS):
            part = slice(row, row + TEXT_ROWS)
            texts_R_K_3 = _texts(asked.histories[part], items_R_K[part], how.vectors_N_D)
            values_R_K_X[part, :, start : start + len(TEXTS)] = texts_R_K_3
    last_R = np.array([history[-1] if history else NONE for history in asked.histories], dtype=np.int64)
    last_R = np.where(last_R == NONE, np.float32(np.nan), fitted.log_popularity_N[last_R])
    values_R_K_X[..., column["history_length"]] = np.array([[len(history)] for history in asked.histories])
    values_R_K_X[..., column["last_log_popularity"]] = last_R[:, None]
    seen_R_N = np.zeros((len(items_R_K), n_items), dtype=bool)
    seen_R_N[_places(asked.histories, n_items)] = True
    values_R_K_X[..., column["seen"]] = seen_R_N[rows_R_1, items_R_K]
    values_R_K_X[candidates_R_K == NONE] = np.nan
    return Block(candidates_R_K, values_R_K_X)


def _places(lists: list[list[int]], n_items: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the items of a list each, to index a block with."""
    items, lengths = event_arrays(lists, n_items, "histories")
    return np.repeat(np.arange(len(lists)), lengths), items


def _share(name: str, scores_R_K: NDArray[np.float32], largest_R_1: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores over the row's largest; of SASRec's, which are logits, probabilities over the largest one."""
    if name == SASREC:
        return np.exp(scores_R_K - largest_R_1)
    with np.errstate(invalid="ignore"):  # -inf of a row that has no item left: there is no candidate either
        return np.where(largest_R_1 > 0, scores_R_K / np.where(largest_R_1 > 0, largest_R_1, 1), np.float32(0))


def _places_in(list_R_k: Items, items_R_K: Items, n_items: int) -> NDArray[np.int32]:
    """1-based places of items in a list of each row; one more than its length for those that are not there."""
    beyond = list_R_k.shape[1] + 1
    places_R_N = np.full((len(list_R_k), n_items), beyond, dtype=np.int32)
    rows, columns = np.nonzero(list_R_k != NONE)
    places_R_N[rows, list_R_k[rows, columns]] = columns + 1
    return places_R_N[np.arange(len(items_R_K))[:, None], items_R_K]


def _texts(histories: list[list[int]], items_R_K: Items, vectors_N_D: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine with the last item, the largest and the mean over the last `RECENT`: (R, K, 3); NaN without any."""
    width = max((min(len(history), RECENT) for history in histories), default=0)
    found_R_K_3 = np.full((*items_R_K.shape, 3), np.nan, dtype=np.float32)
    if not width:
        return found_R_K_3
    recent_R_W = np.full((len(histories), width), NONE, dtype=np.int64)
    for row, history in enumerate(histories):
        newest = history[-width:]
        recent_R_W[row, width - len(newest) :] = newest
    real_R_1_W = (recent_R_W != NONE)[:, None, :]
    lengths_R_1 = np.maximum(real_R_1_W.sum(axis=2), 1)
    # A product of two matrices for each row, so that no row's rounding depends on its neighbours.
    cosines_R_K_W = vectors_N_D[items_R_K] @ vectors_N_D[recent_R_W].transpose(0, 2, 1)
    found_R_K_3[..., 0] = cosines_R_K_W[..., -1]
    found_R_K_3[..., 1] = np.where(real_R_1_W, cosines_R_K_W, -np.inf).max(axis=2)
    found_R_K_3[..., 2] = np.where(real_R_1_W, cosines_R_K_W, 0).sum(axis=2) / lengths_R_1
    found_R_K_3[~real_R_1_W.any(axis=(1, 2))] = np.nan
    return found_R_K_3
