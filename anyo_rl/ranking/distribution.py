"""Exact ranks under the policy: the distribution over the whole catalog that constrained decoding samples from.

At each node of the catalog's prefix tree the policy's next-token distribution is renormalised over the node's
children; the product along a path is a probability over items that sums to 1. It is not the raw sequence likelihood:
forced tokens cost nothing, so items in sparse branches gain. Only nodes with a branching at or below them are
evaluated, all of them in a few forwards that share the context's key-value cache: each node attends to the context
and to its own ancestors.

Every branching node is evaluated, and the whole distribution comes out. For ranks and top items alone
`anyo_rl.ranking.engine.likelihood` says the same from fewer nodes.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.tree import PrefixTree
from anyo_rl.metrics.ranking import target_ranks, top_items
from anyo_rl.ranking.engine.context import check_catalog, check_contexts, contexts_of
from anyo_rl.ranking.protocol import Ranking, check_lengths, competing_items
from anyo_rl.teacher.policy import causal_lm, inference, row_logits


@dataclass(frozen=True)
class _Block:
    """Nodes evaluated in one forward: M tokens with their tree mask, and the edges that leave them."""

    tokens_M: torch.Tensor
    depth_M: torch.Tensor
    mask_M_M: torch.Tensor  # True where row attends to column
    edge: slice  # the edges scored here
    row_E: torch.Tensor  # the block's row each of these edges leaves from
    token_E: torch.Tensor


class DistributionRanker:
    """Ranks the catalog under a causal LM, given context and reasoning up to the marker.

    Contexts of unequal length are batched with left padding; equal contexts are evaluated once. The result does not
    depend on the batching beyond float rounding: scores closer than 1e-5 may swap.

    Args:
        catalog: built with the model's tokenizer.
        model: the teacher; wrappers and LoRA adapters are seen through. Its weights are read at each call.
        nodes_per_forward: tree nodes evaluated at once; bounds memory.
        tokens_per_forward: context tokens plus nodes evaluated at once over the batch; bounds memory.

    Raises:
        ValueError: the model's vocabulary is smaller than the catalog's tokens.
    """

    kind = "likelihood"

    def __init__(
        self, catalog: Catalog, model: nn.Module, nodes_per_forward: int = 512, tokens_per_forward: int = 32_768
    ) -> None:
        self.catalog = catalog
        self.model = model
        self.tokens_per_forward = tokens_per_forward
        check_catalog(model, catalog)
        self._plan(catalog.tree, nodes_per_forward)

    def _plan(self, tree: PrefixTree, nodes_per_forward: int) -> None:
        """Lays out the evaluation: which nodes go through the model together, and how edges make up items."""
        branching = tree.n_children >= 2
        needed = branching.copy()
        for node in range(tree.n_nodes - 1, 0, -1):  # children come after their parents
            if needed[node]:
                needed[tree.parent[node]] = True
        needed[0] = False  # the root is the marker: the context's last token

        # Edges: the children of branching nodes, in blocks of parents in depth-first order, root first.
        nodes = np.flatnonzero(needed)
        nodes = nodes[np.lexsort((tree.depth[nodes], tree.leaf_start[nodes]))]
        chunks = [nodes[i : i + nodes_per_forward] for i in range(0, len(nodes), nodes_per_forward)]
        self._root_edges = (
            np.arange(*tree.children(0).indices(tree.n_nodes)[:2]) if branching[0] else np.array([], int)
        )
        edge_nodes = [self._root_edges]
        self._blocks: list[_Block] = []
        n_edges = len(self._root_edges)
        for chunk in chunks:
            ancestors, node = [], int(tree.parent[chunk[0]])
            while node > 0:
                ancestors.append(node)
                node = int(tree.parent[node])
            block = np.concatenate([np.array(ancestors[::-1], dtype=np.int64), chunk])
            start, end, depth = tree.leaf_start[block], tree.leaf_end[block], tree.depth[block]
            mask = (start[None] <= start[:, None]) & (end[None] >= end[:, None]) & (depth[None] <= depth[:, None])
            parents = [i for i in range(len(ancestors), len(block)) if branching[block[i]]]
            children = [np.arange(tree.child_start[block[i]], tree.child_start[block[i] + 1]) for i in parents]
            edges = np.concatenate(children) if children else np.array([], dtype=np.int64)
            self._blocks.append(
                _Block(
                    tokens_M=torch.from_numpy(tree.token[block]),
                    depth_M=torch.from_numpy(depth),
                    mask_M_M=torch.from_numpy(mask),
                    edge=slice(n_edges, n_edges + len(edges)),
                    row_E=torch.from_numpy(np.repeat(parents, [len(c) for c in children]).astype(np.int64)),
                    token_E=torch.from_numpy(tree.token[edges]),
                )
            )
            edge_nodes.append(edges)
            n_edges += len(edges)

        edge_node = np.concatenate(edge_nodes).astype(np.int64)
        edge_of_node = np.full(tree.n_nodes, -1)
        edge_of_node[edge_node] = np.arange(n_edges)
        for node in range(1, tree.n_nodes):  # a forced node counts as the last edge chosen above it
            if edge_of_node[node] < 0:
                edge_of_node[node] = edge_of_node[tree.parent[node]]
        parent_node = tree.parent[edge_node]
        self._group_E = torch.from_numpy(np.unique(parent_node, return_inverse=True)[1])
        above = edge_of_node[parent_node]
        level = np.zeros(n_edges, dtype=np.int64)
        for edge in np.argsort(edge_node):  # parents first
            level[edge] = level[above[edge]] + 1 if above[edge] >= 0 else 0
        self._levels = [
            (torch.from_numpy(np.flatnonzero(level == d)), torch.from_numpy(above[level == d]))
            for d in range(1, int(level.max(initial=0)) + 1)
        ]
        self._item_edge_N = torch.from_numpy(edge_of_node[tree.leaf])
        self.n_edges = n_edges

    @property
    def n_nodes_evaluated(self) -> int:
        """Tree nodes that go through the model for each context."""
        return sum(len(block.tokens_M) for block in self._blocks)

    def log_probs(self, contexts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Log-probabilities of all items: (B, N) float32 on the CPU, each row's exponentials summing to 1.

        Args:
            contexts: B token id lists: prompt, reasoning and marker. The marker comes last.

        Raises:
            ValueError: a context is empty, or longer with its item than the model's positions.
        """
        if len(self.catalog) == 1 or not contexts:
            return torch.zeros(len(contexts), len(self.catalog))
        unique = list(dict.fromkeys(tuple(context) for context in contexts))
        check_contexts(self.model, unique, int(self.catalog.tree.depth.max()))
        rows: dict[tuple[int, ...], torch.Tensor] = {}
        by_length = sorted(unique, key=len)
        most_nodes = max((len(block.tokens_M) for block in self._blocks), default=0)
        with inference(self.model):
            while by_length:
                width = len(by_length[-1]) + most_nodes
                take = max(1, self.tokens_per_forward // width)
                batch, by_length = by_length[-take:], by_length[:-take]
                rows.update(zip(batch, self._batch_log_probs(batch), strict=True))
        return torch.stack([rows[tuple(context)] for context in contexts])

    def _batch_log_probs(self, contexts: list[tuple[int, ...]]) -> torch.Tensor:
        """(B, N) log-probabilities of one batch of contexts."""
        policy = causal_lm(self.model)
        device = policy.device
        cache = contexts_of(self.model, contexts, self.tokens_per_forward)
        logits = torch.empty(len(contexts), self.n_edges, device=device)
        root_tokens = torch.from_numpy(self.catalog.tree.token[self._root_edges]).to(device)
        if len(root_tokens):
            at_root = torch.zeros_like(root_tokens)
            logits[:, : len(root_tokens)] = row_logits(policy, cache.states_B_D[:, None], at_root, root_tokens)
        for block in self._blocks:
            states = cache.read(block.tokens_M[None], block.depth_M[None], block.mask_M_M[None])
            cache.forget_nodes()
            logits[:, block.edge] = row_logits(policy, states, block.row_E.to(device), block.token_E.to(device))
        return self._item_log_probs(logits.cpu())

    def _item_log_probs(self, logits_B_E: torch.Tensor) -> torch.Tensor:
        """(B, N) from edge logits: a softmax over each node's children, summed down the paths."""
        group = self._group_E.expand_as(logits_B_E)
        n_groups = int(self._group_E.max()) + 1
        highest = logits_B_E.new_full((len(logits_B_E), n_groups), -torch.inf)
        highest = highest.scatter_reduce(1, group, logits_B_E, "amax")
        shifted = logits_B_E - highest.gather(1, group)
        total = torch.zeros_like(highest).scatter_add_(1, group, shifted.exp())
        log_p = shifted - total.log().gather(1, group)
        for edges, above in self._levels:
            log_p[:, edges] += log_p[:, above]
        return log_p[:, self._item_edge_N]

    def rank(
        self,
        contexts_B: Sequence[Sequence[int]],
        target_ids_B: Sequence[str],
        *,
        top_k: int = 10,
        excluded_B: Sequence[Collection[str]] | None = None,
        candidates_B: Sequence[Collection[str]] | None = None,
    ) -> Ranking:
        """Ranks the target of each context among the catalog; see `anyo_rl.ranking.protocol.Ranker`.

        Contexts are token ids that end with the marker. With candidates, probabilities stay those of the whole
        catalog: the order within a candidate set is the same.

        Raises:
            ValueError: a target is not in the catalog, or a context does not fit the model.
        """
        check_lengths(len(contexts_B), target_ids_B=target_ids_B)
        log_probs = self.log_probs(contexts_B).numpy()
        return rank_scores(
            self.catalog, log_probs, target_ids_B, top_k=top_k, excluded_B=excluded_B, candidates_B=candidates_B
        )


def rank_scores(
    catalog: Catalog,
    log_probs_B_N: np.ndarray,
    target_ids_B: Sequence[str],
    *,
    top_k: int = 10,
    excluded_B: Sequence[Collection[str]] | None = None,
    candidates_B: Sequence[Collection[str]] | None = None,
) -> Ranking:
    """Ranks targets by a given (B, N) table of log-probabilities; other arguments as in `DistributionRanker.rank`."""
    n = len(target_ids_B)
    check_lengths(n, log_probs_B_N=log_probs_B_N, excluded_B=excluded_B, candidates_B=candidates_B)
    scores, fallback = np.array(log_probs_B_N, copy=True), np.zeros(n, dtype=np.int64)
    allowed_B_N = np.ones(scores.shape, dtype=bool)
    for row, target in enumerate(target_ids_B):
        excluded = excluded_B[row] if excluded_B is not None else None
        candidates = candidates_B[row] if candidates_B is not None else None
        competing = competing_items(catalog.index, target, excluded, candidates)
        allowed_B_N[row], fallback[row] = competing.mask(len(catalog)), competing.last_rank
    target_B = catalog.indices(list(target_ids_B))
    scores[~allowed_B_N] = -np.inf
    retrieved_B = allowed_B_N[np.arange(n), target_B]
    ranks = np.where(retrieved_B, target_ranks(scores, target_B, ~allowed_B_N), fallback)
    top, top_scores = top_items(scores, top_k)
    return Ranking(
        ranks_B=ranks,
        top_ids_B_K=[[catalog.item_ids[item] for item in row] for row in top],
        top_scores_B_K=top_scores,
        log_probs_B=log_probs_B_N[np.arange(n), target_B],
    )
