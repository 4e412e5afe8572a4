"""The prefix tree against a plain dict of prefixes."""

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.catalog.tree import PrefixTree, build_tree, build_tree_flat, flatten, paths_fingerprint

ARRAYS = ("token", "parent", "depth", "child_start", "chain_end", "leaf_start", "leaf_end", "order", "leaf")


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


@given(path_lists)
def test_chains_end_at_the_next_choice_or_leaf(paths):
    tree = build_tree(paths)
    for node in range(tree.n_nodes):
        end = node
        while tree.n_children[end] == 1:
            end = tree.children(end).start
        assert tree.chain_end[node] == end


@given(path_lists, st.data())
def test_many_walks_at_once_are_single_walks(paths, data):
    tree = build_tree(paths)
    walked = st.sampled_from(paths).flatmap(lambda path: st.integers(0, len(path)).map(lambda end: path[:end]))
    rows = data.draw(st.lists(walked | st.lists(st.integers(0, 10), max_size=7).map(tuple), min_size=1, max_size=9))
    nodes = np.zeros(len(rows), dtype=np.int64)
    for level in range(max(map(len, rows))):
        tokens = np.array([row[level] if level < len(row) else 77 for row in rows])
        nodes = np.where([level < len(row) for row in rows], tree.step(nodes, tokens), nodes)
    expected = [tree.walk(row) for row in rows]
    assert nodes.tolist() == [-1 if node is None else node for node in expected]
    assert tree.items_at(nodes).tolist() == [paths.index(row) if row in paths else -1 for row in rows]


def test_flat_and_listed_paths_give_the_same_tree():
    paths = prefix_free([(1, 2), (1,), (), (2, 2, 2)])
    tokens = np.array([token for path in paths for token in path], dtype=np.uint16)
    offsets = np.cumsum([0, *map(len, paths)])
    flat, listed = build_tree_flat(tokens, offsets), build_tree(paths)
    assert flat.fingerprint == listed.fingerprint
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(flat, name), getattr(listed, name))
        assert getattr(flat, name).dtype == np.int32


@pytest.mark.parametrize(
    ("tokens", "offsets", "message"),
    [
        ([1, -2], [0, 1, 2], "token ids must be 0 to 2147483647; found -2 to 1"),
        ([1, 2**31], [0, 1, 2], "found 1 to 2147483648"),
        ([1, 2, 3], [0, 1, 2], "offsets must rise from 0 to the number of tokens, 3; found 0 to 2"),
        ([1, 2, 3], [0, 4, 1, 3], "offsets must rise"),
    ],
)
def test_arrays_that_are_no_paths_are_refused(tokens, offsets, message):
    with pytest.raises(ValueError, match=message):
        build_tree_flat(np.array(tokens), np.array(offsets))


def test_the_fingerprint_tells_paths_orders_and_boundaries_apart():
    catalogs = [[(1, 2, 9), (3, 9)], [(3, 9), (1, 2, 9)], [(1, 9), (2, 3, 9)], [(1, 2, 9), (4, 9)], [(1, 2, 9, 3, 9)]]
    fingerprints = [build_tree(paths).fingerprint for paths in catalogs]
    assert len(set(fingerprints)) == len(catalogs)
    assert fingerprints[0] == paths_fingerprint(*flatten(catalogs[0]))


def test_paths_come_back_from_flat_arrays():
    listed = prefix_free([(1, 2), (1,), (), (2, 2, 2)])
    paths = build_tree(iter(listed)).paths
    assert list(paths) == listed
    assert (len(paths), paths[-1], paths[np.int64(0)]) == (4, listed[-1], listed[0])
    assert all(type(token) is int for path in paths for token in path)
    assert paths.tokens.dtype == paths.offsets.dtype == np.int32
    assert paths.tokens.nbytes + paths.offsets.nbytes == 4 * (sum(map(len, listed)) + 5)
    with pytest.raises(IndexError):
        paths[4]


def _build_a_million() -> tuple[float, float, int]:
    """Seconds of processor time, peak GB of the process, items."""
    random = np.random.default_rng(0)
    tokens = (1 + 20_000 * random.random((1_000_000, 12)) ** 3).astype(np.int32)
    tokens[:, -1] = 0
    paths = tokens.tolist()
    del tokens
    start = time.process_time()
    tree = build_tree(paths)
    seconds = time.process_time() - start
    return seconds, _peak_gb(), len(tree.order)


def _peak_gb() -> float:
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss of a spawned process begins at what its parent held when it was started
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


@pytest.mark.slow
def test_a_million_items_build_in_ten_seconds_and_a_gigabyte_and_a_half():
    # A spawned process: this one's peak would count what other tests held.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        seconds, peak_gb, n_items = pool.submit(_build_a_million).result()
    assert n_items == 1_000_000
    assert seconds < 10
    assert peak_gb < 1.5
