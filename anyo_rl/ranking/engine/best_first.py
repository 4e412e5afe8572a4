"""Best-first search of one batch of users over the catalog's prefix tree: target ranks, brackets and top items.

A path's probability only falls as it grows, so nothing below a node of mass P has more than P, and at most ⌊P/p⌋ of
its items have p or more. First the target's own path is read, in one forward, which gives its probability p exactly.
Then nodes of mass p or more are expanded, best first and many at a time: each of them may hold items that beat the
target, and no other does, so at most depth / p nodes are ever read for a rank. Top items are found in the same search:
nodes are expanded as long as their mass reaches the k-th best item found.

Users may have several contexts, whose item distributions are averaged, by weights where they have some: the search is
then over the mean mass.

Float noise: two log-probabilities closer than the *tie band* may stand in either order. The bracket counts what beats
the target by at least the band (lowest rank), and what comes within the band of it or may be hidden in nodes that were
not expanded (highest). In between, the rank is that of the numbers as they are, ties and hidden items against the
target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from anyo_rl.catalog.tree import PrefixTree
from anyo_rl.ranking.protocol import Competing

ROUNDING = 1e-9  # of sums in float64
MANY = 4096  # children of a branching that are worth a look at the best of them first
LEAST_WIDTH = 4  # nodes of a user expanded together while looking for top items


@dataclass(frozen=True)
class Goal:
    """What is searched for one user.

    Attributes:
        target: item index of the target, `None` to look for top items only.
        competing: the items that compete; `None` for all of them.
        weights: of the user's contexts, 0 or more and summing to 1; `None` for equal ones.
    """

    target: int | None
    competing: Competing | None = None
    weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Limits:
    """When the search of a user ends early.

    Attributes:
        top_k: top items looked for.
        cap: a rank beyond which ranks need not be exact; `None` for no cap.
        node_budget: tree nodes read for one context, the target's own path included, which is read in any case; `None`
            for no budget.
        tie_band: differences in log-probability that float noise may make.
    """

    top_k: int
    cap: int | None
    node_budget: int | None
    tie_band: float


@dataclass(frozen=True)
class Found:
    """The result for one user; ranks are `None` where the target does not compete or there is none.

    Attributes:
        rank, lowest, highest: rank of the target and its bracket.
        log_prob: of the target.
        top: (item index, log-probability), best first; of equal ones the lower index is first.
        top_exact: whether no other item can belong in `top`.
        complete: whether the node budget was enough.
        n_nodes: tree nodes read for each context.
    """

    rank: int | None
    lowest: int | None
    highest: int | None
    log_prob: float | None
    top: list[tuple[int, float]]
    top_exact: bool
    complete: bool
    n_nodes: int


class Reader(Protocol):
    """Where the search has its numbers from: next-token distributions at branchings, under any kind of policy.

    It is made for U users of G contexts each (paths of a mixture; G is 1 otherwise).

    Attributes:
        n_paths: contexts of each user, G.
        users: users that are still searched, ascending.
        n_nodes_U: tree nodes read so far for each context of each user.
        most_nodes: most tree nodes, over all contexts, that were read at once.
    """

    n_paths: int
    users: np.ndarray
    n_nodes_U: np.ndarray
    most_nodes: int

    def keep_users(self, users: np.ndarray) -> None:
        """Is told that all other users are done."""
        ...

    def make_room(self, longest: int) -> tuple[int, bool]:
        """Prepares for more nodes.

        Args:
            longest: tree nodes to read for one branching of a user, at most.

        Returns:
            How many tree nodes of each user may be read next, and whether those read before had to be forgotten.
        """
        ...

    def log_probs(self, user_J: np.ndarray, node_J: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Evaluates branchings.

        Args:
            user_J: whose branching.
            node_J: nodes with two children or more.

        Returns:
            For the E edges that leave the J branchings, in order: which of the J, shape (E,); the child, shape (E,);
            its log-probability given the branching under each of the user's contexts, float64, shape (E, G).
        """
        ...


class _Allowed:
    """How many competing items lie below a node, by their positions in the tree's sorted order, per user."""

    def __init__(self, tree: PrefixTree, goals: Sequence[Goal]) -> None:
        self.tree = tree
        self.lists: dict[int, tuple[np.ndarray, bool]] = {}  # user: positions, and whether they are in or out
        for user, goal in enumerate(goals):
            if goal.competing is not None and (goal.competing.removed or goal.competing.kept is not None):
                kept = goal.competing.kept
                items = np.array(goal.competing.removed if kept is None else kept, dtype=np.int64)
                places = tree.leaf_start[tree.leaf[items]]  # of an item, the first below the node where it ends
                self.lists[user] = np.sort(places), kept is not None

    def n_out(self, user: int) -> int:
        """How many items do not compete, at most."""
        positions, are_in = self.lists.get(user, ((), False))
        return self.tree.leaf_end[0] - len(positions) if are_in else len(positions)

    def count(self, user_F: np.ndarray, node_F: np.ndarray) -> np.ndarray:
        start, end = self.tree.leaf_start[node_F], self.tree.leaf_end[node_F]
        count = end - start
        if self.lists:
            for user in np.unique(user_F).tolist():
                if user in self.lists:
                    positions, are_in = self.lists[user]
                    rows = np.flatnonzero(user_F == user)
                    inside = np.searchsorted(positions, end[rows]) - np.searchsorted(positions, start[rows])
                    count[rows] = inside if are_in else count[rows] - inside
        return count


class Search:
    """The search of U users; see the module.

    Args:
        reader: evaluates nodes; made for the same users.
        tree: the prefix tree, with two items or more.
        goals: what each user is searched for.
        limits: when to stop.
    """

    def __init__(self, reader: Reader, tree: PrefixTree, goals: Sequence[Goal], limits: Limits) -> None:
        n = len(goals)
        self.reader, self.tree, self.limits = reader, tree, limits
        self.allowed = _Allowed(tree, goals)
        self.target_U = np.array([-1 if goal.target is None else goal.target for goal in goals])
        self.ranked_U = np.array(
            [g.target is not None and (g.competing is None or g.competing.has_target) for g in goals], dtype=bool
        )
        self.log_p_U = np.full(n, np.inf)  # of the target
        self.ahead_U = np.zeros(n, dtype=np.int64)  # items at or above the target
        self.sure_U = np.zeros(n, dtype=np.int64)  # by the band or more
        self.maybe_U = np.zeros(n, dtype=np.int64)  # or below by less than the band
        self.spent_U = np.zeros(n, dtype=bool)
        self.kth_U = np.full(n, -np.inf if limits.top_k else np.inf)
        self.top_user, self.top_item, self.top_log_p = np.zeros(0, int), np.zeros(0, int), np.zeros(0)
        # The frontier: branchings that were reached and not expanded.
        self.user, self.node, self.above = np.zeros(0, int), np.zeros(0, int), np.zeros(0, int)  # above: depth read
        self.log_p, self.mean = np.zeros((0, reader.n_paths)), np.zeros(0)
        # A weighted mean is the plain one of masses that are as many times as large: G times their weight.
        self.scale_U_G = np.zeros((n, reader.n_paths))
        for user, goal in enumerate(goals):
            if goal.weights is not None:
                with np.errstate(divide="ignore"):
                    self.scale_U_G[user] = np.log(np.array(goal.weights) * reader.n_paths)

    def run(self) -> list[Found]:
        """Searches until every user is done."""
        self._read_target_paths()
        while True:
            chosen = self._choose()
            if not len(chosen):
                return self._found()
            taken = np.zeros(len(self.user), dtype=bool)
            taken[chosen] = True
            user, node, log_p = self.user[chosen], self.node[chosen], self.log_p[chosen]
            self._keep(~taken)
            pair, child, step = self.reader.log_probs(user, node)
            self._add(user[pair], child, log_p[pair] + step, self.tree.depth[node][pair])

    def _read_target_paths(self) -> None:
        """The first forward: all branchings on the way to the target, or the first one where there is no target."""
        tree, n = self.tree, len(self.target_U)
        has_target = np.flatnonzero(self.target_U >= 0)
        leaf_U = np.full(n, -1)
        leaf_U[has_target] = tree.leaf[self.target_U[has_target]]
        pairs = [(user, int(tree.chain_end[0]), -1) for user in range(n) if leaf_U[user] < 0]
        for user in has_target.tolist():
            below, node = int(leaf_U[user]), int(tree.parent[leaf_U[user]])
            while node >= 0:
                if tree.n_children[node] > 1:
                    pairs.append((user, node, below))
                below, node = node, int(tree.parent[node])
        user, node, below = np.array(sorted(pairs)).T  # in a user by node number: parents first
        pair, child, step = self.reader.log_probs(user, node)

        on_path = np.flatnonzero(below >= 0)  # of the branchings, those that lead to a target, and by which edge
        n_J = tree.n_children[node]
        edge = (np.cumsum(n_J) - n_J + below - tree.child_start[node])[on_path]
        taken_J = np.zeros((len(user), self.reader.n_paths))
        taken_J[on_path] = step[edge]
        total_J = np.cumsum(taken_J, axis=0)
        first_U = np.searchsorted(user, np.arange(n))
        before_J = total_J - taken_J - (total_J - taken_J)[first_U][user] + self.scale_U_G[user]
        last_U = np.append(first_U[1:], len(user)) - 1
        log_p_U_G = (before_J + taken_J)[last_U]
        self.log_p_U[has_target] = self._mean(log_p_U_G)[has_target]

        # What is read here is not to be read again.
        keep = np.ones(len(pair), dtype=bool)
        keep[edge] = tree.chain_end[below[on_path]] == leaf_U[user[on_path]]
        if not keep.all():
            pair, child, step = pair[keep], child[keep], step[keep]
        self._add(user[pair], child, before_J[pair] + step, tree.depth[node][pair])

    def _mean(self, log_p_F_G: np.ndarray) -> np.ndarray:
        """Log of the mean over the paths."""
        if log_p_F_G.shape[1] == 1:
            return log_p_F_G[:, 0]
        highest = log_p_F_G.max(axis=1)
        return highest + np.log(np.exp(log_p_F_G - highest[:, None]).mean(axis=1))

    def _add(self, user: np.ndarray, child: np.ndarray, log_p: np.ndarray, depth_read: np.ndarray) -> None:
        """Follows forced tokens from the children of expanded branchings: to items, or to the frontier."""
        node, mean = self.tree.chain_end[child], self._mean(log_p)
        self._raise_kth(user, node, mean)
        near = np.flatnonzero(mean >= self._least_U()[user])
        if len(near) < len(mean):
            user, node, log_p, mean, depth_read = user[near], node[near], log_p[near], mean[near], depth_read[near]
        inside = self.allowed.count(user, node) > 0
        leaf = self.tree.n_children[node] == 0
        items = np.flatnonzero(inside & leaf)
        self._add_items(user[items], self.tree.order[self.tree.leaf_start[node[items]]], mean[items])
        ahead = np.flatnonzero(inside & ~leaf)
        self.user = np.concatenate([self.user, user[ahead]])
        self.node = np.concatenate([self.node, node[ahead]])
        self.above = np.concatenate([self.above, depth_read[ahead]])
        self.log_p = np.concatenate([self.log_p, log_p[ahead]])
        self.mean = np.concatenate([self.mean, mean[ahead]])
        # What cannot matter now never will: the k-th best only rises.
        self._keep(self.mean >= self._least_U()[self.user])

    def _least_U(self) -> np.ndarray:
        """(U,) the least mass that can matter: as much as the target has, or the k-th best item found."""
        least_U = np.where(self.ranked_U, self.log_p_U - self.limits.tie_band, np.inf)
        return np.minimum(least_U, self.kth_U) - ROUNDING

    def _raise_kth(self, user: np.ndarray, node: np.ndarray, mean: np.ndarray) -> None:
        """Tells how good the k-th best item is at least, before many children of a branching are looked at one by one.

        Args:
            user: of each child, those of a user in a row.
            node: where its forced tokens end.
            mean: its log-probability.
        """
        if not self.limits.top_k or len(user) < MANY:
            return
        starts = np.append(0, np.flatnonzero(user[1:] != user[:-1]) + 1)
        for start, end in zip(starts, [*starts[1:], len(user)], strict=True):
            place = self.limits.top_k + self.allowed.n_out(int(user[start]))
            if end - start < max(MANY, place):
                continue
            items = mean[start:end][self.tree.n_children[node[start:end]] == 0]
            if len(items) >= place:
                kth = np.partition(items, len(items) - place)[len(items) - place]
                self.kth_U[user[start]] = max(self.kth_U[user[start]], kth)

    def _add_items(self, user: np.ndarray, item: np.ndarray, log_p: np.ndarray) -> None:
        n, band = len(self.target_U), self.limits.tie_band
        rival = item != self.target_U[user]
        gap = log_p - self.log_p_U[user]
        for counter, least in ((self.ahead_U, 0.0), (self.sure_U, band), (self.maybe_U, -band)):
            counter += np.bincount(user, rival & (gap >= least), minlength=n).astype(np.int64)
        k = self.limits.top_k
        good = np.flatnonzero(log_p >= self.kth_U[user])
        if not k or not len(good):
            return
        user, item, log_p = user[good], item[good], log_p[good]
        user = np.concatenate([self.top_user, user])
        item = np.concatenate([self.top_item, item])
        log_p = np.concatenate([self.top_log_p, log_p])
        order = np.lexsort((item, -log_p, user))
        user, item, log_p = user[order], item[order], log_p[order]
        place = np.arange(len(user)) - np.searchsorted(user, user)
        best = place < k
        self.top_user, self.top_item, self.top_log_p = user[best], item[best], log_p[best]
        full = place == k - 1
        self.kth_U[user[full]] = log_p[full]

    def _keep(self, mask: np.ndarray) -> None:
        if not mask.all():
            self.user, self.node, self.above = self.user[mask], self.node[mask], self.above[mask]
            self.log_p, self.mean = self.log_p[mask], self.mean[mask]

    def _wanted(self) -> tuple[np.ndarray, np.ndarray]:
        """(F,) bool: frontier nodes that the ranks need, and those that the top items may need."""
        band, cap = self.limits.tie_band, self.limits.cap
        open_U = self.ranked_U if cap is None else self.ranked_U & (self.sure_U < cap)
        for_rank = open_U[self.user] & (self.mean >= self.log_p_U[self.user] - band - ROUNDING)
        return for_rank, self.mean >= self.kth_U[self.user]

    def _choose(self) -> np.ndarray:
        """Which frontier nodes to expand next: the best of each user, as many as fit; none when all is done."""
        for_rank, for_top = self._wanted()
        wanted = np.flatnonzero((for_rank | for_top) & ~self.spent_U[self.user])
        if not len(wanted):
            return wanted
        active = np.unique(self.user[wanted])
        if 4 * len(active) <= 3 * len(self.reader.users):  # to take users out of a cache copies it
            self.reader.keep_users(active)
        longest = int((self.tree.depth[self.node[wanted]] - self.above[wanted]).max())
        quota, forgotten = self.reader.make_room(longest)
        if forgotten:
            self.above[:] = 0
        wanted = wanted[np.lexsort((self.node[wanted], -self.mean[wanted], self.user[wanted]))]
        user = self.user[wanted]
        first = np.searchsorted(user, user)
        cost = self.tree.depth[self.node[wanted]] - self.above[wanted]
        total = np.cumsum(cost)
        total -= (total - cost)[first]  # within the user
        budget = np.inf if self.limits.node_budget is None else self.limits.node_budget
        left = budget - self.reader.n_nodes_U[user]
        place = np.arange(len(user)) - first
        # Nodes for the rank are all needed; how many the top items need is not known, so these go few at a time.
        few = place < max(self.limits.top_k, LEAST_WIDTH)
        chosen = (total <= left) & ((total <= quota) | (place == 0)) & (for_rank[wanted] | few)
        self.spent_U[user[(place == 0) & ~chosen]] = True
        if not chosen.any():
            return self._choose()  # the budgets of these users are spent; others may have one left
        return wanted[chosen]

    def _found(self) -> list[Found]:
        limits, n = self.limits, len(self.target_U)
        log_p = np.where(self.ranked_U, self.log_p_U, np.inf)[self.user]
        leaves = self.allowed.count(self.user, self.node)
        hidden = np.zeros((2, n), dtype=np.int64)
        for row, band in enumerate((0.0, limits.tie_band)):
            most = np.floor(np.exp(np.minimum(self.mean - log_p + band, 40.0)) + 1e-6).astype(np.int64)
            np.add.at(hidden[row], self.user, np.minimum(leaves, most))
        open_top = np.zeros(n, dtype=bool)
        open_top[self.user[self._wanted()[1]]] = True
        found = []
        for user in range(n):
            ranked = bool(self.ranked_U[user])
            top = slice(*np.searchsorted(self.top_user, [user, user + 1]))
            found.append(
                Found(
                    rank=1 + int(self.ahead_U[user] + hidden[0, user]) if ranked else None,
                    lowest=1 + int(self.sure_U[user]) if ranked else None,
                    highest=1 + int(self.maybe_U[user] + hidden[1, user]) if ranked else None,
                    log_prob=float(self.log_p_U[user]) if self.target_U[user] >= 0 else None,
                    top=list(zip(self.top_item[top].tolist(), self.top_log_p[top].tolist(), strict=True)),
                    top_exact=not open_top[user],
                    complete=not self.spent_U[user],
                    n_nodes=int(self.reader.n_nodes_U[user]),
                )
            )
        return found
