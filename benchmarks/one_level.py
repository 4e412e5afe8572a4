"""A rank with item tokens against one matrix product: a tree of one level, whose only branching has all items.

`ours` is the ranker: rank, bracket and the ten best items of each context. `peer` reads the same contexts, multiplies
their states by the items' rows of the head, normalises, and counts what reaches the target: the least that a rank
takes. `ratio` is ours / peer, in turns within one run; memory is the peak of the process above what one product took.

python benchmarks/one_level.py --items 1000000
"""

import argparse
import resource
import time

import numpy as np
import polars as pl
import torch
from report import report
from transformers import Qwen3Config, Qwen3ForCausalLM

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.tree import build_tree_flat
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.teacher.policy import inference

EOS = 1
FIRST = 16  # tokens before those of the items


def one_level(n_items: int) -> Catalog:
    """A catalog of items that are a token each."""
    tokens = np.stack([FIRST + np.arange(n_items), np.full(n_items, EOS)], axis=1).ravel()
    ids = tuple(map(str, range(n_items)))
    return Catalog(
        item_ids=ids,
        titles=ids,
        names=tuple(f"<i_{item}>" for item in ids),
        tree=build_tree_flat(tokens, 2 * np.arange(n_items + 1)),
        index={item_id: row for row, item_id in enumerate(ids)},
        n_collisions=0,
        items=pl.DataFrame({"item_id": ids}),
    )


def teacher(n_tokens: int, width: int) -> Qwen3ForCausalLM:
    """A small teacher with a large vocabulary; its rows are scaled so that the items' probabilities differ."""
    config = Qwen3Config(
        vocab_size=n_tokens,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).eval()
    model.get_input_embeddings().weight.data *= 10
    return model


def product(model: Qwen3ForCausalLM, contexts: list[list[int]], targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks and log-probabilities of the targets by one product."""
    with inference(model):
        states_B_D = model.model(torch.tensor(contexts)).last_hidden_state[:, -1]
        logits_B_N = states_B_D @ model.lm_head.weight[FIRST:].T
        own_B = logits_B_N.gather(1, torch.from_numpy(targets)[:, None])
        ranks_B = (logits_B_N >= own_B).sum(1)  # ties count against the target, which is one of them
        return ranks_B.numpy(), (own_B[:, 0] - logits_B_N.logsumexp(1)).numpy()


def main() -> None:
    """Times both in turns and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--contexts", type=int, default=32)
    parser.add_argument("--width", type=int, default=128, help="hidden size of the teacher")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    rows = []
    for n_items in args.items:
        catalog, model = one_level(n_items), teacher(FIRST + n_items, args.width)
        random = np.random.default_rng(0)
        contexts = random.integers(2, FIRST + n_items, size=(args.contexts, 16)).tolist()
        ranker = LikelihoodRanker(catalog, model)
        anywhere = random.integers(n_items, size=args.contexts)
        product(model, contexts, anywhere)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = ranker.rank(contexts, list(map(str, anywhere)), top_k=100)
        ahead = np.array([int(top[-1]) for top in found.top_ids_B_K])
        for where, targets in (("target at rank 100", ahead), ("target anywhere", anywhere)):
            seconds: dict[str, list[float]] = {"ours": [], "peer": []}
            for _ in range(args.turns):
                began = time.perf_counter()
                found = ranker.rank(contexts, list(map(str, targets)))
                seconds["ours"].append(time.perf_counter() - began)
                began = time.perf_counter()
                ranks_B, log_p_B = product(model, contexts, targets)
                seconds["peer"].append(time.perf_counter() - began)
            assert (found.lowest_B <= ranks_B).all(), "a bracket lies above the rank"
            assert (ranks_B <= found.highest_B).all(), "a bracket lies below the rank"
            ours, peer = (float(np.median(seconds[name])) for name in ("ours", "peer"))
            rows.append(
                {
                    "name": f"{n_items:,} items, {where}",
                    "ours": round(1000 * ours / args.contexts, 2),
                    "peer": round(1000 * peer / args.contexts, 2),
                    "ratio": round(ours / peer, 2),
                    "agree": f"{np.abs(found.log_probs_B - log_p_B).max():.0e}",
                    "memory_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024,
                }
            )
    note = f"ms a context of {args.contexts} together; {args.width} dimensions, {torch.get_num_threads()} thread(s)"
    report(rows, args.json, [note])


if __name__ == "__main__":
    main()
