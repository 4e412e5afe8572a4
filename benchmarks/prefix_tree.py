"""The prefix tree and its masks against a dict of prefixes, as published trainers build it.

The peer maps each prefix, as a tuple, to the list of tokens that may follow, and masks with transformers'
`PrefixConstrainedLogitsProcessor`, which looks up one row after the other. Ours also renormalises the scores over
what is allowed; the peer is not timed for that. Paths lie in flat arrays; their peer is a tuple of Python's integers
for each item. The catalog is made up: titles of 12 tokens, some tokens far more common than others. Times are the
best of several runs, in one process and one thread.

python benchmarks/prefix_tree.py                   10 thousand and 100 thousand items
python benchmarks/prefix_tree.py --items 1000000 --json prefix_tree.json
python benchmarks/prefix_tree.py --items 1000000 --no-peer                   the tree alone
"""

import argparse
import gc
import time
import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from report import report
from transformers import LogitsProcessor, PrefixConstrainedLogitsProcessor

from anyo_rl.catalog.tree import PrefixTree, build_tree
from anyo_rl.sampling.constrained.constraint import CatalogConstraint

N_TOKENS, EOS, MARKER, FIRST_TITLE_TOKEN = 12, 0, 1, 2

Prefixes = dict[tuple[int, ...], list[int]]


def make_paths(n_items: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """Token paths of 12, no two alike, that end with the end-of-sequence token."""
    random = np.random.default_rng(seed)
    n_words = vocab_size - FIRST_TITLE_TOKEN
    drawn = (n_words * random.random((n_items + n_items // 10 + 10, N_TOKENS)) ** 4).astype(np.int32)
    drawn += FIRST_TITLE_TOKEN
    drawn[:, -1] = EOS
    unique = np.unique(drawn, axis=0)
    return unique[random.permutation(len(unique))[:n_items]].tolist()


def build_prefixes(paths: list[list[int]]) -> Prefixes:
    """The peer: what may follow each prefix."""
    following: dict[tuple[int, ...], set[int]] = {}
    for path in paths:
        for end in range(len(path)):
            prefix = tuple(path[:end])
            if prefix not in following:
                following[prefix] = set()
            following[prefix].add(path[end])
    return {prefix: list(tokens) for prefix, tokens in following.items()}


def seconds(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least time of several runs, and what the last one returned."""
    best, result = float("inf"), None
    for _ in range(repeats):
        result = None
        gc.collect()
        start = time.perf_counter()
        result = run()
        best = min(best, time.perf_counter() - start)
    return best, result


def path_bytes(paths: list[list[int]]) -> tuple[float, float]:
    """Bytes an item that paths take in flat arrays, and as tuples of integers that a tokenizer has made."""
    flat = build_tree(paths).paths
    rows = np.array(paths)
    gc.collect()
    tracemalloc.start()
    tuples = [tuple(row.tolist()) for row in rows]
    n_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (flat.tokens.nbytes + flat.offsets.nbytes) / len(paths), n_bytes / len(tuples)


def prefixes_agree(tree: PrefixTree, prefixes: Prefixes, paths: list[list[int]], n_sample: int) -> bool:
    """Whether tree and dict allow the same tokens at every prefix of a sample of paths."""
    for path in paths[:n_sample]:
        for end in range(len(path)):
            node = tree.walk(path[:end])
            if node is None or tree.token[tree.children(node)].tolist() != sorted(prefixes[tuple(path[:end])]):
                return False
    return True


def our_processor(tree: PrefixTree) -> LogitsProcessor:
    return CatalogConstraint(tree, SimpleNamespace(marker_id=MARKER, eos_id=EOS), prompt_width=1)


def peer_processor(prefixes: Prefixes) -> LogitsProcessor:
    """The marker is the prompt's last token, so a row's prefix is what comes after it."""
    return PrefixConstrainedLogitsProcessor(lambda _, ids: prefixes[tuple(ids[1:].tolist())], num_beams=1)


def mask(processor: LogitsProcessor, steps: list[torch.Tensor], scores: torch.Tensor) -> None:
    """Masks each step of one generation, and keeps nothing: as when generating, memory is used again."""
    for ids in steps:
        processor(ids, scores)


def masks_agree(ours: LogitsProcessor, peer: LogitsProcessor, steps: list[torch.Tensor], scores: torch.Tensor) -> bool:
    """Whether both allow the same tokens at each step, with the same log-probabilities once the peer's sum to 1."""
    return all(torch.allclose(ours(ids, scores), peer(ids, scores).log_softmax(-1), atol=1e-5) for ids in steps)


def row(name: str, ours: float, peer: float | None, agree: bool | None, unit: str, scale: float) -> dict[str, Any]:
    return {
        "name": f"{name}, {unit}",
        "ours": round(ours * scale, 3),
        "peer": None if peer is None else round(peer * scale, 3),
        "ratio": None if peer is None else round(peer / ours, 1),
        "agree": agree,
    }


def measure(n_items: int, vocab_size: int, n_rows: int, repeats: int, with_peer: bool) -> list[dict[str, Any]]:
    """Builds both, and masks the steps of decoding `n_rows` items; and again for rows that change places."""
    paths = make_paths(n_items, vocab_size)
    # One build at a time is kept: a dict of a million titles is gigabytes.
    n_builds = 1 if n_items > 200_000 else 3
    ours, tree = seconds(lambda: build_tree(paths), n_builds)
    peer, prefixes = seconds(lambda: build_prefixes(paths), n_builds) if with_peer else (None, {})
    agree = prefixes_agree(tree, prefixes, paths, 1000) if with_peer else None
    rows = [row(f"build, {n_items:,} items", ours, peer, agree, "s", 1)]
    rows.append(row(f"paths, {n_items:,} items", *path_bytes(paths), None, "bytes an item", 1))

    random = np.random.default_rng(1)
    chosen = np.array([[MARKER, *paths[i]] for i in random.integers(0, n_items, n_rows)])
    scores = torch.randn(n_rows, vocab_size, generator=torch.Generator().manual_seed(0))
    for name, shuffled in (("mask of a step", False), ("the same, beams that move", True)):
        order = [random.permutation(n_rows) if shuffled else np.arange(n_rows) for _ in range(N_TOKENS)]
        steps = [torch.from_numpy(chosen[order[t], : t + 1]) for t in range(N_TOKENS)]
        ours, _ = seconds(lambda steps=steps: mask(our_processor(tree), steps, scores), repeats)
        peer, agree = None, None
        if with_peer:
            peer, _ = seconds(lambda steps=steps: mask(peer_processor(prefixes), steps, scores), repeats)
            agree = masks_agree(our_processor(tree), peer_processor(prefixes), steps, scores)
        rows.append(row(f"{name}, {n_items:,} items", ours, peer, agree, "ms", 1000 / N_TOKENS))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--vocab_size", type=int, default=32_768)
    parser.add_argument("--rows", type=int, default=64, help="sequences decoded at once")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true", help="leave the dict out, where memory is short")
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for n_items in args.items:
        rows += measure(n_items, args.vocab_size, args.rows, args.repeats, not args.no_peer)
    print(f"{args.rows} rows, {args.vocab_size:,} tokens, titles of {N_TOKENS}; ratio = peer / ours")
    report(rows, args.json)
    assert args.no_peer or all(r["agree"] is not False for r in rows), "tree and dict allow different tokens"


if __name__ == "__main__":
    main()
