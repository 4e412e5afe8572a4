"""How many tree nodes a rank costs as the catalog grows, for a peaked and for a flat policy.

Catalogs are made up (see prefix_tree.py), the teacher is a tiny random one whose head is scaled up to be peaked.
Targets are drawn from the policy itself. `ours` is the nodes evaluated for a rank up to the cap; `peer` is the bound
depth / p, p the target's probability (first row of each pair), or what the whole distribution evaluates (second).

python benchmarks/engine_scale.py
python benchmarks/engine_scale.py --items 1000000 --json engine_scale.json
"""

import argparse
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import torch
from prefix_tree import EOS, MARKER, make_paths
from report import report
from transformers import Qwen3Config, Qwen3ForCausalLM

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.tree import PrefixTree, build_tree
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.sampling.constrained.decode import Decoding, decode_items

VOCAB_SIZE, CONTEXT = 256, 20
POLICIES = {"peaked": 3.0, "flat": 0.05}  # scale of the head


def make_catalog(n_items: int) -> Catalog:
    """A catalog of made-up token paths."""
    ids = tuple(map(str, range(n_items)))
    index = {item: i for i, item in enumerate(ids)}
    return Catalog(
        item_ids=ids,
        titles=ids,
        names=ids,
        tree=build_tree(make_paths(n_items, VOCAB_SIZE)),
        index=index,
        n_collisions=0,
        items=pl.DataFrame({"item_id": ids}),
    )


def make_model(scale: float) -> Qwen3ForCausalLM:
    """A tiny model with random weights; its head scaled."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=False,
        initializer_range=0.1,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(scale)
    return model


def n_branchings(tree: PrefixTree) -> int:
    """Nodes with a choice at or below them, the root left out: what the whole distribution evaluates."""
    return int((tree.n_children[tree.chain_end[1:]] > 0).sum())


def measure(catalog: Catalog, name: str, scale: float, n_contexts: int, cap: int) -> tuple[list[dict[str, Any]], str]:
    """One catalog under one policy: two rows and a note."""
    random = np.random.default_rng(0)
    drawn = random.integers(2, VOCAB_SIZE, (n_contexts, CONTEXT))
    contexts = [[*row, MARKER] for row in drawn.tolist()]
    model = make_model(scale)
    tokens: Any = SimpleNamespace(marker_id=MARKER, eos_id=EOS, tokenizer=SimpleNamespace(pad_token_id=EOS))
    targets = [items[0] for items in decode_items(model, catalog, tokens, contexts, Decoding("sample"))]
    began = time.perf_counter()
    found = LikelihoodRanker(catalog, model, cap=cap).rank(contexts, targets, top_k=0)
    seconds = (time.perf_counter() - began) / n_contexts
    assert found.log_probs_B is not None
    assert found.n_nodes_B is not None
    depth = int(catalog.tree.depth.max())
    bound = depth / np.exp(found.log_probs_B)
    under = bool((found.n_nodes_B <= bound).all())
    nodes, n_items = float(found.n_nodes_B.mean()), f"{len(catalog):,} items, {name}"
    rows = []
    for against, peer in (("depth / p", float(np.median(bound))), ("all branchings", n_branchings(catalog.tree))):
        row = {"name": f"{n_items}, nodes against {against}", "ours": round(nodes, 1), "peer": round(peer, 1)}
        rows.append(row | {"ratio": round(peer / nodes, 1), "agree": under})
    p = np.exp(np.median(found.log_probs_B))
    note = f"{n_items}: median p {p:.1e}, median rank {np.median(found.ranks_B):.0f}, {seconds:.3f} s a context"
    return rows, note


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--contexts", type=int, default=8)
    parser.add_argument("--cap", type=int, default=1000)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    rows, notes = [], [f"{torch.get_num_threads()} threads, cap {args.cap}; depth / p is the median over contexts"]
    for n_items in args.items:
        catalog = make_catalog(n_items)
        for name, scale in POLICIES.items():
            of_policy, note = measure(catalog, name, scale, args.contexts, args.cap)
            rows, notes = rows + of_policy, [*notes, note]
    report(rows, args.json, notes)
    assert all(row["agree"] for row in rows), "a rank took more nodes than depth / p"


if __name__ == "__main__":
    main()
