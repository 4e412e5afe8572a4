"""The answer after a search: items by the final distribution, and where it puts the target, if there is one."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyo_rl.evidence.fusion import Engine, FusedRanking
from anyo_rl.ranking.protocol import Ranking, competing_items
from anyo_rl.reasoning.rows import Row
from anyo_rl.search.how import How
from anyo_rl.search.rounds import Explored
from anyo_rl.search.whole import fused_rank, reciprocal_rank_fusion
from anyo_rl.teacher.tokens import Tokens


@dataclass(frozen=True)
class Final:
    """The answers to U users.

    Attributes:
        ranks_U: 1-based rank of each target; 0 where none is known.
        top_ids_U_K: the best items.
        top_scores_U_K: their log-probabilities, or their scores where lists were merged.
        complete_U: whether no node budget cut a search short.
        n_nodes_U: tree nodes read for all contexts of each user; `None` where nobody counted.
        as_evidence_U_2: with evidence, whether the first item and the first ten are the evidence's own.
        evidence_ranks_U: of these, ranks by the evidence alone.
    """

    ranks_U: np.ndarray
    top_ids_U_K: list[list[str]]
    top_scores_U_K: list[list[float]]
    complete_U: np.ndarray
    n_nodes_U: np.ndarray | None = None
    as_evidence_U_2: np.ndarray | None = None
    evidence_ranks_U: np.ndarray | None = None


def conclude(
    rows: Sequence[Row], explored: Sequence[Explored], ranker: Engine, tokens: Tokens, how: How, top_k: int
) -> Final:
    """Reads the answers off.

    Args:
        rows: of U users; their targets are ranked as far as they are known.
        explored: what the search came to, for each.
        ranker: the engine on the teacher's weights, by itself or with evidence.
        tokens: the teacher's tokenizer and marker.
        how: the search.
        top_k: items named for each user.
    """
    if how.mode == "rank_fusion":
        return _merged_lists(rows, explored, ranker, tokens, how, top_k)
    sizes = [len(one.ending.leaves) for one in explored]
    places = {size: [user for user in range(len(rows)) if _like(sizes, user) == size] for size in set(_all(sizes))}
    found: dict[int, Ranking] = {}
    for size, users in sorted(places.items()):
        found[size] = _mixture([rows[u] for u in users], [explored[u] for u in users], ranker, tokens, (size, top_k))
    return _in_order([(found[size], users) for size, users in places.items()], sizes)


def _like(sizes: Sequence[int], user: int) -> int:
    """How many contexts a user is asked with: the next power of 2, but where all users have as many."""
    return sizes[user] if len(set(sizes)) == 1 else 1 << (sizes[user] - 1).bit_length()


def _all(sizes: Sequence[int]) -> list[int]:
    return [_like(sizes, user) for user in range(len(sizes))]


def _mixture(
    rows: Sequence[Row], explored: Sequence[Explored], ranker: Engine, tokens: Tokens, size_and_top_k: tuple[int, int]
) -> Ranking:
    """Ranks under the mixtures of users asked with equally many contexts; what is added for that weighs nothing."""
    size, top_k = size_and_top_k
    contexts, weights = [], []
    for one in explored:
        leaves, short = one.ending.leaves, size - len(one.ending.leaves)
        asked = [one.tree.asked_at(leaf, tokens) for leaf in leaves]
        contexts.append([*asked, *[asked[0]] * short])
        weights.append([*one.ending.weights, *[0.0] * short])
    even = all(weight == 1 / size for of_user in weights for weight in of_user)
    return ranker.rank_mixture(
        contexts,
        [row.target_id or None for row in rows],
        top_k=top_k,
        excluded_B=[row.excluded for row in rows],
        example_ids_B=[row.example_id for row in rows],
        weights_B_G=None if even else weights,
    )


def _in_order(parts: Sequence[tuple[Ranking, Sequence[int]]], sizes: Sequence[int]) -> Final:
    """Rankings of some users each, as one of all users."""
    order = np.argsort([user for _, users in parts for user in users])

    def together(name: str) -> np.ndarray | None:
        columns = [getattr(ranking, name) for ranking, _ in parts]
        return None if any(column is None for column in columns) else np.concatenate(columns)[order]

    ids = [row for ranking, _ in parts for row in ranking.top_ids_B_K]
    scores = [row for ranking, _ in parts for row in ranking.top_scores_B_K]
    ranks, complete, n_nodes = (together(name) for name in ("ranks_B", "complete_B", "n_nodes_B"))
    assert ranks is not None, "the engine tells"
    assert complete is not None, "the engine tells"
    fused = all(isinstance(ranking, FusedRanking) for ranking, _ in parts)
    return Final(
        ranks,
        [ids[place] for place in order],
        [scores[place] for place in order],
        complete,
        None if n_nodes is None else n_nodes * np.array(sizes),
        together("as_evidence_B_2") if fused else None,
        together("evidence_ranks_B") if fused else None,
    )


def _merged_lists(
    rows: Sequence[Row], explored: Sequence[Explored], ranker: Engine, tokens: Tokens, how: How, top_k: int
) -> Final:
    """Reciprocal rank fusion of the lists after each leaf; targets beyond all lists are last."""
    owners = [user for user, one in enumerate(explored) for _ in one.ending.leaves]
    ranking = ranker.rank(
        [one.tree.asked_at(leaf, tokens) for one in explored for leaf in one.ending.leaves],
        [None] * len(owners),  # the lists are the same for any target
        top_k=how.settings.fusion_depth,
        excluded_B=[rows[user].excluded for user in owners],
        example_ids_B=[rows[user].example_id for user in owners],
    )
    lists: list[list[list[str]]] = [[] for _ in rows]
    complete_U, nodes_U = np.ones(len(rows), dtype=bool), np.zeros(len(rows), dtype=np.int64)
    assert ranking.complete_B is not None, "the engine tells"
    for place, user in enumerate(owners):
        lists[user].append(ranking.top_ids_B_K[place])
        complete_U[user] &= bool(ranking.complete_B[place])
        nodes_U[user] += 0 if ranking.n_nodes_B is None else int(ranking.n_nodes_B[place])
    merged = [
        reciprocal_rank_fusion(of_user, one.ending.weights) for of_user, one in zip(lists, explored, strict=True)
    ]
    ranks = []
    for row, fused in zip(rows, merged, strict=True):
        last = competing_items(ranker.catalog.index, row.target_id or None, row.excluded).last_rank
        ranks.append(fused_rank(fused, row.target_id, last) if row.target_id else 0)
    return Final(
        np.array(ranks, dtype=np.int64),
        [[item for item, _ in fused[:top_k]] for fused in merged],
        [[score for _, score in fused[:top_k]] for fused in merged],
        complete_U,
        None if ranking.n_nodes_B is None else nodes_U,
    )


def joined(parts: Sequence[Final]) -> Final:
    """Answers to batches of users as answers to all of them."""

    def together(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if name.endswith("_K"):
            return [row for value in values for row in value]
        return None if any(value is None for value in values) else np.concatenate(values)

    return Final(**{field.name: together(field.name) for field in dataclasses.fields(Final)})
