"""Branchings of the catalog's tree evaluated on demand, many of many users in one forward.

A node that was read stays in the cache, so each node of a user is read once, and a branching costs only the forced
tokens between it and the branching above. Where the cache would grow over its bound the nodes are forgotten, and
ancestors are read again as part of the next block.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from anyo_rl.catalog.tree import PrefixTree
from anyo_rl.ranking.engine.context import contexts_of
from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.policy import DIVERGED, block_logits, causal_lm, pair_logits

NO_NODE = -1  # padding
WIDE = 1024  # children of a branching that are worth a product of their own


def unread(tree: PrefixTree, known: set[int], node: int) -> list[int]:
    """The node and those of its ancestors that are not known, topmost first; now they are. The root always is."""
    chain = []
    while node and node not in known:
        chain.append(node)
        known.add(node)
        node = int(tree.parent[node])
    return chain[::-1]


def edges_of(tree: PrefixTree, node_J: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The E edges that leave J branchings, in order.

    Returns:
        Which of the J each edge leaves, shape (E,); the child, shape (E,); where each branching's edges begin, (J,).
    """
    n_J = tree.n_children[node_J]
    pair_E = np.repeat(np.arange(len(node_J)), n_J)
    begin_J = np.cumsum(n_J) - n_J
    return pair_E, np.arange(len(pair_E)) - begin_J[pair_E] + tree.child_start[node_J][pair_E], begin_J


def renormalised(scores_E_G: np.ndarray, pair_E: np.ndarray, begin_J: np.ndarray) -> np.ndarray:
    """Log-probabilities of edges among those that leave the same branching, float64, shape (E, G).

    Args:
        scores_E_G: logits, or log-probabilities among more tokens: a constant of each branching makes no difference.
        pair_E: which branching each edge leaves; see `edges_of`.
        begin_J: where each branching's edges begin.
    """
    n_J = np.diff(begin_J, append=len(scores_E_G))
    shifted = scores_E_G - np.repeat(np.maximum.reduceat(scores_E_G, begin_J), n_J, axis=0)
    totals_J_G = np.add.reduceat(np.exp(shifted), begin_J, dtype=np.float64)
    return shifted - np.repeat(np.log(totals_J_G), n_J, axis=0)


class NodeReader:
    """Next-token distributions at branchings, for U users of G contexts each (paths of a mixture; G is 1 otherwise).

    All contexts of a user are asked for the same nodes. Use it within `anyo_rl.teacher.policy.inference`.

    Args:
        model: the teacher; wrappers are seen through.
        tree: of the catalog whose items compete.
        contexts_U_G: token ids that end with the marker.
        nodes_per_forward: tree nodes read in one forward, over all contexts; bounds memory.
        tokens_in_cache: context and node tokens kept at once, over all contexts; bounds memory.

    Attributes:
        n_nodes_U: tree nodes read so far for each context of each user, those read again counted again.
        most_nodes: most tree nodes, padding included, that one forward read.
    """

    def __init__(
        self,
        model: nn.Module,
        tree: PrefixTree,
        contexts_U_G: Sequence[Sequence[Sequence[int]]],
        nodes_per_forward: int,
        tokens_in_cache: int,
    ) -> None:
        self.tree = tree
        self.policy = causal_lm(model)
        self.nodes_per_forward = nodes_per_forward
        self.tokens_in_cache = tokens_in_cache
        self.n_paths = len(contexts_U_G[0])
        self.cache = contexts_of(model, [c for of_user in contexts_U_G for c in of_user], tokens_in_cache)
        self.n_nodes_U = np.zeros(len(contexts_U_G), dtype=np.int64)
        self.most_nodes = 0
        self.users = np.arange(len(contexts_U_G))  # those still in the cache, in its order
        self._forget()

    @property
    def quota(self) -> int:
        """Nodes of one user that fit one forward, when all users in the cache have as many."""
        return max(1, self.nodes_per_forward // len(self.cache))

    def _forget(self) -> None:
        self._kept_U_M = np.zeros((len(self.users), 0), dtype=np.int64)
        self._known: list[set[int]] = [set() for _ in self.users]

    def forget_nodes(self) -> None:
        """Empties the cache of tree nodes; what is needed of them is read again."""
        self.cache.forget_nodes()
        self._forget()

    def make_room(self, longest: int) -> tuple[int, bool]:
        """See `anyo_rl.ranking.engine.best_first.Reader`."""
        columns = self.tokens_in_cache // len(self.cache) - self.cache.width  # for nodes
        n_kept = self.cache.n_kept
        forget = n_kept > 0 and columns - n_kept < max(longest, min(self.quota, columns // 2))
        if forget:
            self.forget_nodes()
        return min(self.quota, max(1, columns - self.cache.n_kept)), forget

    def keep_users(self, users: np.ndarray) -> None:
        """Takes all other users out of the cache."""
        rows = np.searchsorted(self.users, users)
        context_rows = (rows[:, None] * self.n_paths + np.arange(self.n_paths)).reshape(-1)
        self.cache.select(torch.from_numpy(context_rows))
        self.users, self._kept_U_M = users, self._kept_U_M[rows]
        self._known = [self._known[row] for row in rows]

    def log_probs(self, user_J: np.ndarray, node_J: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `anyo_rl.ranking.engine.best_first.Reader`; each user must still be in the cache."""
        row_J = np.searchsorted(self.users, user_J)
        states_J_G_D = self._read(row_J, node_J)
        pair_E, child_E, begin_J = edges_of(self.tree, node_J)
        logits_E_G = np.empty((len(pair_E), self.n_paths), dtype=np.float32)
        wide_J = self.tree.n_children[node_J] >= WIDE
        for node in np.unique(node_J[wide_J]).tolist():
            self._read_wide(node, np.flatnonzero(node_J == node), begin_J, states_J_G_D, logits_E_G)
        if not wide_J.all():
            edges = np.flatnonzero(~wide_J[pair_E])
            state_e_G = pair_E[edges, None] * self.n_paths + np.arange(self.n_paths)
            token_e_G = np.repeat(self.tree.token[child_E[edges]], self.n_paths)
            states, tokens = (torch.from_numpy(a).to(self.policy.device) for a in (state_e_G.reshape(-1), token_e_G))
            logits = pair_logits(self.policy, states_J_G_D.flatten(0, 1), states, tokens)
            logits_E_G[edges] = logits.cpu().numpy().reshape(state_e_G.shape)
        if not np.isfinite(logits_E_G).all():
            raise UsageError(DIVERGED)
        return pair_E, child_E, renormalised(logits_E_G, pair_E, begin_J)

    def _read_wide(
        self, node: int, rows: np.ndarray, begin_J: np.ndarray, states_J_G_D: torch.Tensor, logits_E_G: np.ndarray
    ) -> None:
        """Fills in the edges of one node with many children, for all who read it, by one product."""
        device = self.policy.device
        tokens = torch.from_numpy(self.tree.token[self.tree.children(node)]).to(device)
        states = states_J_G_D[torch.from_numpy(rows).to(device)].flatten(0, 1)
        logits_R_C = block_logits(self.policy, states, tokens).cpu().numpy()
        for row, begin in enumerate(begin_J[rows].tolist()):
            own = slice(row * self.n_paths, (row + 1) * self.n_paths)
            logits_E_G[begin : begin + len(tokens)] = logits_R_C[own].T

    def _read(self, row_J: np.ndarray, node_J: np.ndarray) -> torch.Tensor:
        """(J, G, D) last hidden states at the nodes; their ancestors that are not in the cache are read with them."""
        blocks: list[list[int]] = [[] for _ in self.users]
        column_J = np.full(len(node_J), NO_NODE)
        column_of: dict[tuple[int, int], int] = {}
        for row, node in zip(row_J.tolist(), node_J.tolist(), strict=True):
            for new in unread(self.tree, self._known[row], node):
                column_of[row, new] = len(blocks[row])
                blocks[row].append(new)
        for k, (row, node) in enumerate(zip(row_J.tolist(), node_J.tolist(), strict=True)):
            column_J[k] = column_of[row, node] if node else NO_NODE
        sizes = np.array([len(block) for block in blocks])
        self.n_nodes_U[self.users] += sizes
        nodes_U_W = np.full((len(blocks), int(sizes.max())), NO_NODE)
        nodes_U_W[np.arange(nodes_U_W.shape[1]) < sizes[:, None]] = [node for block in blocks for node in block]

        shape = (len(self.users), self.n_paths, -1)
        at_root = self.cache.states_B_D.view(shape)
        states = at_root.new_empty(len(node_J), self.n_paths, at_root.shape[-1])
        root = np.flatnonzero(node_J == 0)
        states[torch.from_numpy(root)] = at_root[torch.from_numpy(row_J[root])]
        for start in range(0, nodes_U_W.shape[1], self.quota):
            part = nodes_U_W[:, start : start + self.quota]
            hidden = self._forward(part).view(len(self.users), self.n_paths, part.shape[1], -1)
            here = np.flatnonzero((column_J >= start) & (column_J < start + part.shape[1]))
            rows, columns = torch.from_numpy(row_J[here]), torch.from_numpy(column_J[here] - start)
            states[torch.from_numpy(here)] = hidden[rows, :, columns]
        return states

    def _forward(self, nodes_U_W: np.ndarray) -> torch.Tensor:
        """(U·G, W, D) states of one block, which is kept in the cache."""
        tree = self.tree
        self.most_nodes = max(self.most_nodes, nodes_U_W.size * self.n_paths)
        kept_U_M = np.concatenate([self._kept_U_M, nodes_U_W], axis=1)
        node, above = nodes_U_W[:, :, None], kept_U_M[:, None]
        allowed = (
            (tree.leaf_start[above] <= tree.leaf_start[node])
            & (tree.leaf_end[above] >= tree.leaf_end[node])
            & (tree.depth[above] <= tree.depth[node])
            & (above != NO_NODE)
        )
        own = self._kept_U_M.shape[1] + np.arange(nodes_U_W.shape[1])
        allowed[:, np.arange(nodes_U_W.shape[1]), own] = True  # padding has something to attend to
        self._kept_U_M = kept_U_M
        real = np.maximum(nodes_U_W, 0)
        token = np.where(nodes_U_W == NO_NODE, 0, tree.token[real])

        def per_context(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).repeat_interleave(self.n_paths, dim=0)

        return self.cache.read(per_context(token), per_context(tree.depth[real]), per_context(allowed))
