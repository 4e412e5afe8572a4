"""The prefix tree over item token paths, in flat arrays.

Nodes are numbered level by level, and within a level in the order of the sorted paths, so the children of a node are
one slice and the items below a node are one range of the sorted order. Node 0 is the root: the marker, just before
the first item token.

Arrays are int32: a million titles of 12 tokens take about 365 MB. `anyo_rl.catalog.tree_file` saves and maps them.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

INT32_MAX = 2**31 - 1


@dataclass(frozen=True, eq=False)
class TokenPaths:
    """The token paths of N items, one after the other in one array: 4 bytes a token, and 4 an item.

    Attributes:
        tokens: (T,) int32, the tokens of all paths.
        offsets: (N + 1,) int32; path n is `tokens[offsets[n] : offsets[n + 1]]`.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        """Number of paths N."""
        return len(self.offsets) - 1

    def __getitem__(self, item: int) -> tuple[int, ...]:
        """The path of an item."""
        item = range(len(self))[item]
        return tuple(self.tokens[self.offsets[item] : self.offsets[item + 1]].tolist())

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        """The paths in the order of the items."""
        return map(self.__getitem__, range(len(self)))


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """A prefix tree over N paths, with M nodes. All arrays are int32.

    Attributes:
        token: (M,) the token that leads to the node; -1 for the root.
        parent: (M,) the parent's number; -1 for the root.
        depth: (M,) tokens from the root; 0 for the root.
        child_start: (M + 1,) the children of node n are the nodes `child_start[n]` to `child_start[n + 1] - 1`, their
            tokens ascending.
        chain_end: (M,) where the forced tokens below a node end: the first node from it downwards, itself included,
            that does not have exactly one child. A node has a choice at or below it exactly when this is no leaf.
        leaf_start, leaf_end: (M,) the half-open range of sorted positions below the node.
        order: (N,) the item at each sorted position.
        leaf: (N,) the node at which each item's path ends.
        paths: the paths, in the items' order.
        fingerprint: of the paths, in the items' order; see `paths_fingerprint`.
    """

    token: np.ndarray
    parent: np.ndarray
    depth: np.ndarray
    child_start: np.ndarray
    chain_end: np.ndarray
    leaf_start: np.ndarray
    leaf_end: np.ndarray
    order: np.ndarray
    leaf: np.ndarray
    paths: TokenPaths
    fingerprint: str

    @property
    def n_nodes(self) -> int:
        """Number of nodes M, the root included."""
        return len(self.token)

    @cached_property
    def n_children(self) -> np.ndarray:
        """(M,) number of children of each node."""
        return np.diff(self.child_start)

    def children(self, node: int) -> slice:
        """The children of a node, as a slice of node numbers; `tree.token[tree.children(node)]` are their tokens."""
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

    def step(self, nodes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """One step of many walks at once: (R,) nodes and the tokens that follow them to (R,) nodes.

        Negative nodes are walks that have left the tree; they stay -1, and so does what leaves it now.
        """
        alive = nodes >= 0
        nodes = np.where(alive, nodes, 0)
        low, end = self.child_start[nodes].astype(np.int64), self.child_start[nodes + 1]
        high = end.astype(np.int64)
        while (open_ := low < high).any():  # a binary search in each row's slice
            middle = (low + high) // 2
            before = self.token[np.where(open_, middle, 0)] < tokens
            low = np.where(open_ & before, middle + 1, low)
            high = np.where(open_ & ~before, middle, high)
        found = alive & (low < end)
        found &= self.token[np.where(found, low, 0)] == tokens
        return np.where(found, low, -1)

    def items_at(self, nodes: np.ndarray) -> np.ndarray:
        """The items whose paths end at these nodes; -1 for a node that ends none, and for -1."""
        inside = np.where(nodes >= 0, nodes, 0)
        item = self.order[self.leaf_start[inside]]
        return np.where((nodes >= 0) & (self.leaf[item] == inside), item, -1)


def flatten(paths: Iterable[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Paths as flat arrays: all tokens, and (N + 1,) offsets: path n is `tokens[offsets[n] : offsets[n + 1]]`."""
    tokens, offsets = array("q"), array("q", [0])
    for path in paths:  # one at a time: as Python's objects a path takes ten times the memory
        tokens.extend(path)
        offsets.append(len(tokens))
    return np.array(tokens, dtype=np.int64), np.array(offsets, dtype=np.int64)


def paths_fingerprint(tokens: np.ndarray, offsets: np.ndarray) -> str:
    """A short name for token paths in their order: another catalog, order of items or tokenizer has another one."""
    digest = hashlib.sha256(np.ascontiguousarray(offsets, dtype="<i8").data)
    digest.update(np.ascontiguousarray(tokens, dtype="<i4").data)
    return digest.hexdigest()


def build_tree(paths: Iterable[Sequence[int]]) -> PrefixTree:
    """Builds the tree of token paths; see `build_tree_flat`."""
    return build_tree_flat(*flatten(paths))


def build_tree_flat(tokens: np.ndarray, offsets: np.ndarray) -> PrefixTree:
    """Builds the tree level by level: rows are sorted by their node above and their next token, and cut into nodes.

    Args:
        tokens: all tokens of N paths, one path after the other.
        offsets: (N + 1,) path n is `tokens[offsets[n] : offsets[n + 1]]`; none is the beginning of another.

    Raises:
        ValueError: there is no path, a path is empty, one is the same as or the beginning of another, a token is
            negative, or tokens and offsets do not fit together.
    """
    offsets = np.asarray(offsets, dtype=np.int64)
    tokens = _checked_tokens(np.asarray(tokens), offsets)
    n = len(offsets) - 1
    lengths = np.diff(offsets)

    order = np.arange(n, dtype=np.int32)
    leaf = np.zeros(n, dtype=np.int32)
    levels: dict[str, list[np.ndarray]] = {
        "token": [np.array([-1], dtype=np.int32)],
        "parent": [np.array([-1], dtype=np.int32)],
        "leaf_start": [np.array([0], dtype=np.int32)],
        "leaf_end": [np.array([n], dtype=np.int32)],
    }
    # Rows whose path goes on, by the position they have in the sorted order so far, and their node on the level above.
    # Sorting within a node keeps its rows in the node's range of positions, since no row of it has ended.
    rows, positions, above = order.copy(), order.copy(), np.zeros(n, dtype=np.int32)
    clash = n
    n_nodes = 1
    for level in range(int(lengths.max())):
        key = above.astype(np.int64) << 32 | tokens[offsets[rows] + level]
        if (key[1:] < key[:-1]).any():
            by_key = np.argsort(key)
            rows, key = rows[by_key], key[by_key]
            order[positions] = rows
        cuts = np.flatnonzero(key[1:] != key[:-1]) + 1
        first = np.concatenate([[0], cuts])
        counts = np.diff(first, append=len(rows))
        levels["token"].append((key[first] & INT32_MAX).astype(np.int32))
        levels["parent"].append((key[first] >> 32).astype(np.int32))
        levels["leaf_start"].append(positions[first])
        levels["leaf_end"].append((positions[first] + counts).astype(np.int32))
        node = np.repeat(np.arange(n_nodes, n_nodes + len(first), dtype=np.int32), counts)
        n_nodes += len(first)

        done = lengths[rows] == level + 1
        leaf[rows[done]] = node[done]
        crowded = done & np.repeat(counts > 1, counts)
        clash = min(clash, int(rows[crowded].min(initial=n)))
        rows, positions, above = rows[~done], positions[~done], node[~done]
    if clash < n:
        bad = tokens[offsets[clash] : offsets[clash + 1]].tolist()
        raise ValueError(f"path {bad} is the same as, or the beginning of, another path; make paths unique")

    starts = np.cumsum([0, *map(len, levels["token"])])
    depth = np.repeat(np.arange(len(starts) - 1, dtype=np.int32), np.diff(starts))
    joined = {name: np.concatenate(levels.pop(name)) for name in list(levels)}
    child_start = np.ones(n_nodes + 1, dtype=np.int32)
    child_start[1:] += np.cumsum(np.bincount(joined["parent"][1:], minlength=n_nodes), dtype=np.int32)
    return PrefixTree(
        **joined,
        depth=depth,
        child_start=child_start,
        chain_end=_chain_ends(child_start, starts),
        order=order,
        leaf=leaf,
        paths=TokenPaths(tokens, offsets.astype(np.int32)),
        fingerprint=paths_fingerprint(tokens, offsets),
    )


def _checked_tokens(tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """The tokens as int32."""
    lengths = np.diff(offsets)
    if len(lengths) == 0 or lengths.min() == 0:
        raise ValueError(f"a prefix tree needs at least one path and no empty one; got {len(lengths)} paths")
    if offsets[0] != 0 or offsets[-1] != len(tokens) or lengths.min() < 0:
        raise ValueError(
            f"offsets must rise from 0 to the number of tokens, {len(tokens)}; found {offsets[0]} to {offsets[-1]}"
        )
    if len(tokens) >= INT32_MAX:
        raise ValueError(f"{len(tokens)} tokens are more than a prefix tree can number ({INT32_MAX})")
    if tokens.min() < 0 or tokens.max() > INT32_MAX:
        raise ValueError(f"token ids must be 0 to {INT32_MAX}; found {tokens.min()} to {tokens.max()}")
    return tokens.astype(np.int32, copy=False)


def _chain_ends(child_start: np.ndarray, level_starts: np.ndarray) -> np.ndarray:
    """(M,) where the forced tokens below each node end, from the deepest level upwards."""
    chain_end = np.arange(len(child_start) - 1, dtype=np.int32)
    for start, end in zip(level_starts[-2::-1], level_starts[:0:-1], strict=True):
        first = child_start[start:end]
        forced = child_start[start + 1 : end + 1] - first == 1
        chain_end[start:end][forced] = chain_end[first[forced]]
    return chain_end
