"""The prefix tree against a plain dict of prefixes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.catalog.tree import PrefixTree, build_tree


def prefix_free(paths) -> list[tuple[int, ...]]:
    """Ends each path on a token of its own kind, as the end-of-sequence token does, and drops duplicates."""
    return [(*path, 9) for path in dict.fromkeys(map(tuple, paths))]


path_lists = st.lists(st.lists(st.integers(0, 3), max_size=6), min_size=1, max_size=25).map(prefix_free)


def oracle(paths) -> dict[tuple[int, ...], set[int]]:
    """Prefix to the items below it."""
    below: dict[tuple[int, ...], set[int]] = {}
    for item, path in enumerate(paths):
        for end in range(len(path) + 1):
            below.setdefault(tuple(path[:end]), set()).add(item)
    return below


def prefix_of(tree: PrefixTree, node: int) -> tuple[int, ...]:
    prefix = []
    while node > 0:
        prefix.append(int(tree.token[node]))
        node = int(tree.parent[node])
    return tuple(reversed(prefix))


def check(paths) -> None:
    tree, below = build_tree(paths), oracle(paths)
    prefixes = [prefix_of(tree, node) for node in range(tree.n_nodes)]
    assert len(set(prefixes)) == tree.n_nodes
    assert set(prefixes) == set(below)
    assert sorted(tree.order.tolist()) == list(range(len(paths)))
    assert [paths[item] for item in tree.order] == sorted(paths)
    assert tree.token[0] == tree.parent[0] == -1
    for node, prefix in enumerate(prefixes):
        assert tree.depth[node] == len(prefix)
        assert tree.walk(prefix) == node
        children = tree.children(node)
        tokens = tree.token[children].tolist()
        assert tokens == sorted({p[len(prefix)] for p in below if len(p) == len(prefix) + 1 and p[:-1] == prefix})
        assert (tree.parent[children] == node).all()
        assert tree.n_children[node] == len(tokens)
        assert set(tree.order[tree.leaf_start[node] : tree.leaf_end[node]].tolist()) == below[prefix]
        assert tree.walk([*prefix, 77]) is None
    for item, path in enumerate(paths):
        assert tree.walk(path) == tree.leaf[item]
    assert (np.diff(tree.depth) >= 0).all()  # level by level


@given(path_lists)
def test_tree_is_the_dict_of_prefixes(paths):
    check(paths)


@pytest.mark.parametrize(
    "paths",
    [
        [(5,)],
        [(5, 5, 5, 5)],
        [(0,), (1,), (2,)],
        [(2,), (1, 7), (1, 3, 3), (0, 9, 9, 9)],  # paths that end on several levels
        [(1, 1, 9), (1, 9), (9,)],
        [(1, 2), (3, 2), (1, 3)],  # the same token below two parents
        [(10**6, 0), (10**6, 10**6)],
    ],
)
def test_trees_by_hand(paths):
    check(paths)


def test_one_tree_in_numbers():
    tree = build_tree([(4, 2, 9), (1, 9), (4, 2, 7, 9)])
    #  0 root, 1: 1, 2: 4, 3: 1-9, 4: 4-2, 5: 4-2-7, 6: 4-2-9, 7: 4-2-7-9
    assert tree.token.tolist() == [-1, 1, 4, 9, 2, 7, 9, 9]
    assert tree.parent.tolist() == [-1, 0, 0, 1, 2, 4, 4, 5]
    assert tree.n_children.tolist() == [2, 1, 1, 0, 2, 1, 0, 0]
    assert tree.order.tolist() == [1, 2, 0]
    assert tree.leaf.tolist() == [6, 3, 7]
    assert tree.leaf_start.tolist() == [0, 0, 1, 0, 1, 1, 2, 1]
    assert tree.leaf_end.tolist() == [3, 1, 3, 1, 3, 2, 3, 2]
    assert tree.walk([]) == 0
    assert tree.walk([4, 2]) == 4
    assert tree.walk([4, 3]) is None
    assert tree.walk([1, 9, 9]) is None


@pytest.mark.parametrize(
    "paths",
    [
        [(1, 2), (1, 2)],
        [(1, 2), (1,)],
        [(1,), (1, 2)],
        [(1,), (1, 2), (1, 3)],
        [(3,), (1, 2, 3), (2,), (1, 2)],
        [(1, 2), (0,), (1, 2), (1, 2)],
    ],
)
def test_equal_and_nested_paths_are_refused(paths):
    with pytest.raises(ValueError, match="is the same as, or the beginning of, another path"):
        build_tree(paths)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8))
def test_paths_are_refused_exactly_when_one_begins_another(paths):
    clash = any(a == b[: len(a)] for i, a in enumerate(paths) for j, b in enumerate(paths) if i != j)
    if clash:
        with pytest.raises(ValueError, match="make paths unique"):
            build_tree(paths)
    else:
        check(paths)


@pytest.mark.parametrize("paths", [[], [()], [(1,), ()]])
def test_no_path_and_empty_paths_are_refused(paths):
    with pytest.raises(ValueError, match="at least one path and no empty one"):
        build_tree(paths)
