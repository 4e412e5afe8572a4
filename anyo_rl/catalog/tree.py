"""The prefix tree over item token paths, in flat arrays.

Nodes are numbered level by level, and within a level in the order of the sorted paths, so the children of a node are
one slice and the items below a node are one range of the sorted order. Node 0 is the root: the marker, just before
the first item token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class PrefixTree:
    """A prefix tree over N paths, with M nodes.

    Attributes:
        token: (M,) the token that leads to the node; -1 for the root.
        parent: (M,) the parent's number; -1 for the root.
        depth: (M,) tokens from the root; 0 for the root.
        child_start: (M + 1,) the children of node n are the nodes `child_start[n]` to `child_start[n + 1] - 1`.
        leaf_start, leaf_end: (M,) the half-open range of sorted positions below the node.
        order: (N,) the item at each sorted position.
        leaf: (N,) the node at which each item's path ends.
    """

    token: np.ndarray
    parent: np.ndarray
    depth: np.ndarray
    child_start: np.ndarray
    leaf_start: np.ndarray
    leaf_end: np.ndarray
    order: np.ndarray
    leaf: np.ndarray

    @property
    def n_nodes(self) -> int:
        """Number of nodes M, the root included."""
        return len(self.token)

    @cached_property
    def n_children(self) -> np.ndarray:
        """(M,) number of children of each node."""
        return np.diff(self.child_start)

    @cached_property
    def next_choice(self) -> np.ndarray:
        """(M,) the first node at or below each one that has not exactly one child: a branching, or a leaf."""
        following = np.where(self.n_children == 1, self.child_start[:-1], np.arange(self.n_nodes))
        while True:  # each pass doubles the number of forced tokens that are skipped
            further = following[following]
            if np.array_equal(further, following):
                return following
            following = further

    def children(self, node: int) -> slice:
        """The children of a node, as a slice of node numbers."""
        return slice(int(self.child_start[node]), int(self.child_start[node + 1]))

    def walk(self, path: Sequence[int]) -> int | None:
        """The node that a path leads to, or `None` where it leaves the tree."""
        node = 0
        for token in path:
            children = self.children(node)
            offset = np.searchsorted(self.token[children], token)
            node = children.start + int(offset)
            if node >= children.stop or self.token[node] != token:
                return None
        return node


def build_tree(paths: Sequence[Sequence[int]]) -> PrefixTree:
    """Builds the tree by sorting the paths once and cutting each level where prefixes change.

    Args:
        paths: N token paths, none of which is the beginning of another.

    Raises:
        ValueError: there is no path, a path is empty, or one is the same as or the beginning of another.
    """
    lengths = np.array([len(path) for path in paths], dtype=np.int64)
    if len(lengths) == 0 or lengths.min() == 0:
        raise ValueError(f"a prefix tree needs at least one path and no empty one; got {len(lengths)} paths")
    padded = np.full((len(paths), int(lengths.max())), -1, dtype=np.int64)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = np.concatenate([np.asarray(p, np.int64) for p in paths])
    order = np.lexsort(padded.T[::-1])
    padded, sorted_lengths = padded[order], lengths[order]

    n = len(order)
    tokens, parents, depths = [np.array([-1])], [np.array([-1])], [np.array([0])]
    starts, ends = [np.array([0])], [np.array([n])]
    leaf = np.zeros(n, dtype=np.int64)
    changed = np.zeros(n, dtype=bool)  # the prefix up to this level differs from the row above
    changed[0] = True
    above = np.zeros(n, dtype=np.int64)  # the row's node on the level above
    n_nodes = 1
    for level in range(padded.shape[1]):
        changed[1:] |= padded[1:, level] != padded[:-1, level]
        alive = sorted_lengths > level
        first = np.flatnonzero(changed & alive)
        node_of_row = n_nodes + np.searchsorted(first, np.arange(n), side="right") - 1
        cuts = np.flatnonzero(changed)
        tokens.append(padded[first, level])
        parents.append(above[first])
        depths.append(np.full(len(first), level + 1))
        starts.append(first)
        ends.append(np.append(cuts, n)[np.searchsorted(cuts, first, side="right")])
        done = alive & (sorted_lengths == level + 1)
        leaf[order[done]] = node_of_row[done]
        above = np.where(alive, node_of_row, above)
        n_nodes += len(first)

    parent = np.concatenate(parents)
    children = np.bincount(parent[1:], minlength=n_nodes)
    clash = (children[leaf] > 0) | (np.bincount(leaf, minlength=n_nodes)[leaf] > 1)
    if clash.any():
        bad = list(paths[int(clash.argmax())])
        raise ValueError(f"path {bad} is the same as, or the beginning of, another path; make paths unique")
    return PrefixTree(
        token=np.concatenate(tokens),
        parent=parent,
        depth=np.concatenate(depths),
        child_start=1 + np.concatenate([[0], np.cumsum(children)]),
        leaf_start=np.concatenate(starts),
        leaf_end=np.concatenate(ends),
        order=order,
        leaf=leaf,
    )
