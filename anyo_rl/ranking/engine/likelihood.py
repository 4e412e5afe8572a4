"""Exact ranks under the policy without the whole distribution: a bounded best-first search.

The item distribution is that of `anyo_rl.ranking.distribution`; see `anyo_rl.ranking.engine.best_first` for the
search. What it costs depends on how peaked the policy is and on the target's probability p (at most depth / p tree
nodes), not on the size of the catalog.
"""

import copy
from collections.abc import Collection, Hashable, Sequence
from contextlib import AbstractContextManager
from typing import Self

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.ranking.engine.best_first import Found, Goal, Limits, Reader, Search
from anyo_rl.ranking.engine.context import check_catalog, check_contexts
from anyo_rl.ranking.engine.nodes import NodeReader
from anyo_rl.ranking.protocol import Competing, Ranking, check_lengths, competing_items
from anyo_rl.teacher.policy import causal_lm, inference

FULL_PRECISION, FULL_TIE_BAND = (torch.float32, torch.float64), 1e-5
# bfloat16 and float16: under SmolLM2-135M in bfloat16 the log-probabilities of Office's titles were off by .08 on
# average and by .43 at most (6,918 of them).
HALF_TIE_BAND = 0.5
LEAST_QUOTA = 16  # tree nodes of one context that fit a forward, at least, where many contexts share it
EDGES = 1 << 22  # children of one branching over all contexts of a forward, at most, as far as one context has no more
ROOM = 64  # tree nodes of one context that the cache has room for, at least, before it forgets them


class LikelihoodRanker:
    """Ranks the catalog under a causal LM as far as needed, given context and reasoning up to the marker.

    The rank is exact (but for the tie band) unless the cap or the node budget ends the search; then `lowest_B` and
    `highest_B` of the `Ranking` say what is known, and `ranks_B` counts everything unknown against the target. Ranks
    beyond the cap are `cap + 1` in `ranks_B`: where in between the search stopped is chance, and the last rank in
    their place would be a cliff, at which rank 1,000 and 1,001 differ by as much as 1,000 and the size of the catalog.

    Args:
        catalog: built with the model's tokenizer.
        model: the teacher; wrappers and LoRA adapters are seen through. Its weights are read at each call.
        cap: ranks beyond it are not told apart; `None` makes all of them exact, as far as the budget goes.
        node_budget: tree nodes evaluated for one context, at most; `None` for no budget. The target's own path is
            evaluated in any case.
        nodes_per_forward: tree nodes evaluated in one forward, over all contexts; bounds memory.
        tokens_per_forward: tokens of contexts and tree nodes in the cache at once, over all contexts; bounds memory.
        tie_band: log-probabilities closer than this may stand in either order, and the bracket allows for it. `None`
            takes 1e-5 for models in float32 and 0.5 for half precision. 0 is the quickest where no bracket is wanted.

    Raises:
        ValueError: the model cannot do tree attention, its vocabulary is smaller than the catalog's tokens, or a
            limit is not positive.
    """

    kind = "likelihood"

    def __init__(
        self,
        catalog: Catalog,
        model: nn.Module,
        *,
        cap: int | None = None,
        node_budget: int | None = None,
        nodes_per_forward: int = 2048,
        tokens_per_forward: int = 32_768,
        tie_band: float | None = None,
    ) -> None:
        limits = {"cap": cap, "node_budget": node_budget, "nodes_per_forward": nodes_per_forward}
        limits["tokens_per_forward"] = tokens_per_forward
        for name, value in limits.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, found {value}")
        self.catalog = catalog
        self.model = model
        self._check_catalog()
        self.node_budget = node_budget
        self.cap = cap
        self.nodes_per_forward = nodes_per_forward
        self.tokens_per_forward = tokens_per_forward
        self.tie_band = _tie_band(causal_lm(model)) if tie_band is None else tie_band
        self.most_nodes = 0  # that one forward has read so far, padding included

    def rank(
        self,
        contexts_B: Sequence[Sequence[int]],
        target_ids_B: Sequence[str | None],
        *,
        top_k: int = 10,
        excluded_B: Sequence[Collection[str]] | None = None,
        candidates_B: Sequence[Collection[str]] | None = None,
        example_ids_B: Sequence[str] | None = None,
    ) -> Ranking:
        """Ranks the target of each context among the catalog; see `anyo_rl.ranking.protocol.Ranker`.

        Contexts are token ids that end with the marker. With candidates, probabilities stay those of the whole
        catalog, and only the part of the tree that holds candidates is searched. For `example_ids_B` see
        `rank_mixture`.

        Raises:
            ValueError: a target is not in the catalog, or a context does not fit the model.
        """
        return self.rank_mixture(
            [[context] for context in contexts_B],
            target_ids_B,
            top_k=top_k,
            excluded_B=excluded_B,
            candidates_B=candidates_B,
            example_ids_B=example_ids_B,
        )

    def rank_mixture(
        self,
        contexts_B_G: Sequence[Sequence[Sequence[int]]],
        target_ids_B: Sequence[str | None],
        *,
        top_k: int = 10,
        excluded_B: Sequence[Collection[str]] | None = None,
        candidates_B: Sequence[Collection[str]] | None = None,
        example_ids_B: Sequence[str] | None = None,
        weights_B_G: Sequence[Sequence[float]] | None = None,
    ) -> Ranking:
        """Ranks the target under the mean of the item distributions after G contexts each, by one joint search.

        Other arguments as in `rank`; `n_nodes_B` counts the nodes of one of the G contexts. Whose contexts they are
        (`example_ids_B`) makes no difference here, but to `anyo_rl.evidence.fusion.FusedRanker`. A target may be
        `None`, where it is not known: its row has top items and rank 0.

        Raises:
            ValueError: as `rank`; or not all rows have the same number of contexts, 1 to `nodes_per_forward`; or
                weights are not one for each, 0 or more and summing to 1.
        """
        check_lengths(len(contexts_B_G), target_ids_B=target_ids_B, excluded_B=excluded_B, candidates_B=candidates_B)
        weights_B = checked_weights(contexts_B_G, weights_B_G)
        goals, fallback = [], []
        for b, target in enumerate(target_ids_B):
            excluded = excluded_B[b] if excluded_B is not None else None
            candidates = candidates_B[b] if candidates_B is not None else None
            competing = competing_items(self.catalog.index, target, excluded, candidates)
            goals.append(Goal(None if target is None else self.catalog.index[target], competing, weights_B[b]))
            fallback.append(0 if target is None else competing.last_rank)
        found = self.search(contexts_B_G, goals, top_k)
        items = self.catalog.item_ids

        def column(name: str) -> np.ndarray:
            values = [getattr(f, name) for f in found]
            return np.array([last if v is None else v for v, last in zip(values, fallback, strict=True)], np.int64)

        ranks = column("rank")
        if self.cap is not None:
            ranks = np.where(ranks > self.cap, np.minimum(self.cap + 1, fallback), ranks)
        return Ranking(
            ranks_B=ranks,
            top_ids_B_K=[[items[item] for item, _ in f.top] for f in found],
            top_scores_B_K=[[log_p for _, log_p in f.top] for f in found],
            log_probs_B=np.array([np.nan if f.log_prob is None else f.log_prob for f in found], dtype=np.float64),
            lowest_B=column("lowest"),
            highest_B=column("highest"),
            top_exact_B=np.array([f.top_exact for f in found], dtype=bool),
            complete_B=np.array([f.complete for f in found], dtype=bool),
            n_nodes_B=np.array([f.n_nodes for f in found], dtype=np.int64),
            allows_unknown=True,
        )

    def search(
        self, contexts_B_G: Sequence[Sequence[Sequence[int]]], goals_B: Sequence[Goal], top_k: int
    ) -> list[Found]:
        """Searches for targets and top items by item index; a goal without a target asks for top items alone.

        Equal rows are searched once.

        Raises:
            ValueError: as `rank_mixture`.
        """
        if not contexts_B_G:
            return []
        tree, n_paths = self.catalog.tree, len(contexts_B_G[0])
        if not 1 <= n_paths <= self.nodes_per_forward or any(len(of_row) != n_paths for of_row in contexts_B_G):
            counts = sorted({len(of_row) for of_row in contexts_B_G})
            raise ValueError(
                f"every row of a mixture needs the same number of contexts, 1 to nodes_per_forward="
                f"{self.nodes_per_forward}; found {counts}"
            )
        self._check_contexts([c for of_row in contexts_B_G for c in of_row])
        keys = [self._key(of_row, goal) for of_row, goal in zip(contexts_B_G, goals_B, strict=True)]
        if tree.n_children[tree.chain_end[0]] == 0:
            return [self._only_item(goal, top_k) for goal in goals_B]
        rows = {key: row for row, key in reversed(list(enumerate(keys)))}  # the first of each
        waiting = sorted(rows.values(), key=lambda row: max(map(len, contexts_B_G[row])))
        limits = Limits(top_k, self.cap, self.node_budget, self.tie_band)
        most_contexts = max(min(self.nodes_per_forward // LEAST_QUOTA, EDGES // int(tree.n_children.max())), 1)
        found: dict[Hashable, Found] = {}
        with self._running():
            while waiting:
                width = max(map(len, contexts_B_G[waiting[-1]])) + max(ROOM, int(tree.depth.max()))
                take = max(1, min(self.tokens_per_forward // width, most_contexts) // n_paths)
                batch, waiting = waiting[-take:], waiting[:-take]
                reader = self._reader([contexts_B_G[row] for row in batch])
                results = Search(reader, tree, [goals_B[row] for row in batch], limits).run()
                self.most_nodes = max(self.most_nodes, reader.most_nodes)
                found.update(zip([keys[row] for row in batch], results, strict=True))
        return [found[key] for key in keys]

    def log_probs_of(
        self, contexts_B_G: Sequence[Sequence[Sequence[int]]], items_B: Sequence[Sequence[int]]
    ) -> list[np.ndarray]:
        """Log-probabilities of given items among the whole catalog, exact, by one search where the tree holds them.

        Args:
            contexts_B_G: as `rank_mixture` takes them; G contexts are averaged.
            items_B: item indices of each row, which may differ in number.

        Returns:
            For each row, float64 and in the order of its items.

        Raises:
            ValueError: as `rank_mixture`.
        """
        check_lengths(len(contexts_B_G), items_B=items_B)
        goals = [Goal(None, Competing((), tuple(sorted(set(items))), False, 0)) for items in items_B]
        found = self.within(None).search(contexts_B_G, goals, top_k=max(map(len, items_B), default=0))
        log_p_B = [dict(one.top) for one in found]
        return [np.array([log_p[item] for item in items]) for log_p, items in zip(log_p_B, items_B, strict=True)]

    def within(self, node_budget: int | None) -> Self:
        """The same ranker with another node budget."""
        other = copy.copy(self)
        other.node_budget = node_budget
        return other

    # What another kind of policy does in its own way: see `anyo_rl.ranking.engine.vllm`.

    def _check_catalog(self) -> None:
        check_catalog(self.model, self.catalog)

    def _check_contexts(self, contexts: Sequence[Sequence[int]]) -> None:
        check_contexts(self.model, contexts, int(self.catalog.tree.depth.max()))

    def _running(self) -> AbstractContextManager[None]:
        return inference(self.model)

    def _reader(self, contexts_U_G: Sequence[Sequence[Sequence[int]]]) -> Reader:
        tree = self.catalog.tree
        return NodeReader(self.model, tree, contexts_U_G, self.nodes_per_forward, self.tokens_per_forward)

    def _key(self, contexts_G: Sequence[Sequence[int]], goal: Goal) -> Hashable:
        return tuple(map(tuple, contexts_G)), goal

    def _only_item(self, goal: Goal, top_k: int) -> Found:
        """A catalog of one item has no choice and asks the model nothing."""
        competes = goal.competing is None or goal.competing.has(0)
        rank = 1 if competes and goal.target is not None else None
        log_prob = None if goal.target is None else 0.0
        return Found(rank, rank, rank, log_prob, [(0, 0.0)] * (competes and top_k > 0), True, True, 0)


def _tie_band(policy: PreTrainedModel) -> float:
    """By the precision that the model computes in here and now."""
    half = torch.is_autocast_enabled(policy.device.type) or policy.dtype not in FULL_PRECISION
    return HALF_TIE_BAND if half else FULL_TIE_BAND


def checked_weights(
    contexts_B_G: Sequence[Sequence[object]], weights_B_G: Sequence[Sequence[float]] | None
) -> list[tuple[float, ...] | None]:
    """Weights of each row's contexts; `None` where all are equal.

    Raises:
        ValueError: they are not one for each context, 0 or more and summing to 1.
    """
    if weights_B_G is None:
        return [None] * len(contexts_B_G)
    check_lengths(len(contexts_B_G), weights_B_G=weights_B_G)
    for contexts, weights in zip(contexts_B_G, weights_B_G, strict=True):
        if len(weights) != len(contexts) or min(weights, default=0) < 0 or not abs(sum(weights) - 1) < 1e-6:
            raise ValueError(
                f"{len(contexts)} contexts with weights {list(weights)}: expected one for each, 0 or more, "
                f"summing to 1"
            )
    return [tuple(map(float, weights)) for weights in weights_B_G]
