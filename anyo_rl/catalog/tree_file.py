"""A prefix tree in one file, mapped into memory when it is loaded: processes on one machine share its pages.

The file is one int32 array in numpy's format: a head (version, numbers of nodes, items and path tokens, the
fingerprint), then the arrays of the tree and of its paths one after the other. One file is replaced in one step, so
that a reader sees the old tree or the new one.
"""

from pathlib import Path

import numpy as np

from anyo_rl.catalog.tree import PrefixTree, TokenPaths
from anyo_rl.run.files import whole_file

VERSION = 2
N_HEAD = 4 + 8  # version, the three numbers, and the 256 bits of the fingerprint


def _sizes(n_nodes: int, n_items: int, n_path_tokens: int) -> dict[str, int]:
    """Length of each array, in the order in which they are stored."""
    per_node = ("token", "parent", "depth", "chain_end", "leaf_start", "leaf_end")
    per_tree = {"child_start": n_nodes + 1, "order": n_items, "leaf": n_items}
    return dict.fromkeys(per_node, n_nodes) | per_tree | {"path_tokens": n_path_tokens, "path_offsets": n_items + 1}


def save_tree(tree: PrefixTree, path: str | Path) -> None:
    """Writes the tree to a file (conventionally `tree.npy`), replacing what was there in one step."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    counts = (tree.n_nodes, len(tree.order), len(tree.paths.tokens))
    sizes = _sizes(*counts)
    paths = {"path_tokens": tree.paths.tokens, "path_offsets": tree.paths.offsets}
    with whole_file(path) as file:
        total = N_HEAD + sum(sizes.values())
        np.lib.format.write_array_header_1_0(file, {"descr": "<i4", "fortran_order": False, "shape": (total,)})
        file.write(np.array([VERSION, *counts], dtype="<i4").tobytes() + bytes.fromhex(tree.fingerprint))
        for field in sizes:
            array = paths[field] if field in paths else getattr(tree, field)
            file.write(np.ascontiguousarray(array, dtype="<i4").data)


def load_tree(path: str | Path, fingerprint: str | None = None) -> PrefixTree:
    """Maps a saved tree into memory. What is written to its arrays stays in this process.

    Args:
        path: the file that `save_tree` wrote.
        fingerprint: of the token paths that the tree must be of, from `paths_fingerprint`; it changes with the items,
            their order and the tokenizer. `None` takes any tree: for a file whose name says what it is of.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no complete tree, or the tree of other paths.
    """
    try:
        # Copy-on-write, because torch takes no read-only array without a warning.
        flat = np.load(path, mmap_mode="c", allow_pickle=False)
        if flat.dtype != np.dtype("<i4") or flat.ndim != 1 or len(flat) < N_HEAD or flat[0] != VERSION:
            raise ValueError("its head is not a tree's")
        sizes = _sizes(*map(int, flat[1:4]))
        if len(flat) != N_HEAD + sum(sizes.values()):
            raise ValueError(f"it holds {len(flat)} numbers, not {N_HEAD + sum(sizes.values())}")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a complete prefix tree ({error}): build it again with save_tree") from error
    found = flat[4:N_HEAD].tobytes().hex()
    if fingerprint is not None and found != fingerprint:
        raise ValueError(
            f"the prefix tree in {path} is of other token paths (fingerprint {found[:12]}, expected "
            f"{fingerprint[:12]}): the items, their order or the tokenizer changed; build it again with save_tree"
        )
    arrays, start = {}, N_HEAD
    for field, size in sizes.items():
        arrays[field] = np.asarray(flat[start : start + size])
        start += size
    paths = TokenPaths(arrays.pop("path_tokens"), arrays.pop("path_offsets"))
    return PrefixTree(**arrays, paths=paths, fingerprint=found)
