import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.catalog.tree import build_tree
from anyo_rl.catalog.tree_file import load_tree, save_tree

ARRAYS = ("token", "parent", "depth", "child_start", "chain_end", "leaf_start", "leaf_end", "order", "leaf")
PATHS = [(4, 2, 9), (1, 9), (4, 2, 7, 9)]


@given(st.lists(st.lists(st.integers(0, 3), max_size=5).map(lambda p: (*p, 9)), min_size=1, max_size=9, unique=True))
def test_a_tree_comes_back_as_it_was(tmp_path_factory, paths):
    path = tmp_path_factory.mktemp("tree") / "tree.npy"
    tree = build_tree(paths)
    save_tree(tree, path)
    loaded = load_tree(path, tree.fingerprint)
    assert loaded.fingerprint == tree.fingerprint
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(tree, name))
        assert getattr(loaded, name).dtype == np.int32
    assert [loaded.walk(p) for p in paths] == tree.leaf.tolist()
    assert list(loaded.paths) == paths
    assert list(load_tree(path).paths) == paths


def test_it_is_mapped_and_the_file_stays_as_it_was(tmp_path, recwarn):
    path, tree = tmp_path / "deep" / "tree.npy", build_tree(PATHS)
    save_tree(tree, path)
    before = path.read_bytes()
    loaded = load_tree(path, tree.fingerprint)
    assert isinstance(loaded.token.base, np.memmap)
    torch.from_numpy(loaded.token)[1] = 77
    assert loaded.token[1] == 77
    assert path.read_bytes() == before
    assert recwarn.list == []


def test_another_catalog_is_refused(tmp_path):
    save_tree(build_tree(PATHS), tmp_path / "tree.npy")
    with pytest.raises(ValueError, match=r"is of other token paths.*the items, their order or the tokenizer changed"):
        load_tree(tmp_path / "tree.npy", build_tree(PATHS[::-1]).fingerprint)


def test_broken_files_are_refused(tmp_path):
    path, tree = tmp_path / "tree.npy", build_tree(PATHS)
    with pytest.raises(FileNotFoundError):
        load_tree(path, tree.fingerprint)
    save_tree(tree, path)
    whole = path.read_bytes()
    for broken in (b"", whole[:50], whole[:-4], b"x" + whole[1:]):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=r"tree\.npy is not a complete prefix tree .*build it again"):
            load_tree(path, tree.fingerprint)
    for array in (np.zeros(40, np.int64), np.ones(5, np.int32), np.zeros((2, 20), np.int32), np.ones(40, np.int32)):
        np.save(path, array)
        with pytest.raises(ValueError, match=r"is not a complete prefix tree"):
            load_tree(path, tree.fingerprint)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="is not a complete prefix tree"):
        load_tree(path, tree.fingerprint)


def test_a_save_that_fails_leaves_the_old_tree(tmp_path, monkeypatch):
    path, old, new = tmp_path / "tree.npy", build_tree(PATHS), build_tree(PATHS[:2])
    save_tree(old, path)

    def fail(*args):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            save_tree(new, path)
    assert load_tree(path, old.fingerprint).n_nodes == old.n_nodes
    assert [file.name for file in tmp_path.iterdir()] == ["tree.npy"]
    save_tree(new, path)
    assert load_tree(path, new.fingerprint).n_nodes == new.n_nodes
