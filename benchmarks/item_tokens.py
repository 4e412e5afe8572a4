"""Items by title against items by semantic id: what the engine reads, what it takes, and what the teacher learns.

Two teachers of the same size see the same users and train for the same number of steps on answers: one answers with
titles, one with the semantic ids that Office publishes. Histories show titles in both. `ours` are the semantic ids,
`peer` the titles; `agree` is the greatest difference of a log-probability between the bounded search and the whole
distribution, whose ranks have to be the same.

ANYO_RL_DATA=data python benchmarks/item_tokens.py --json item_tokens.json
ANYO_RL_DATA=data python benchmarks/item_tokens.py --train_steps 500 --users 500 --seeds 0 1 2
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from rank_engine import train
from report import report

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.catalog.semantic_ids import SemanticIds, published_ids
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.distribution import DistributionRanker, rank_scores
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens, add_codes

TOLERANCE = 1e-4  # of a log-probability, fp32, between the two forms of the engine


def measure(task: Task, ids: SemanticIds | None, args: Any, seed: int) -> tuple[dict[str, float], float]:
    """Trains and asks one teacher: its numbers, and the greatest difference between search and whole distribution."""
    tokenizer = train_tokenizer(sample_texts(task), 4000)
    add_codes(tokenizer, [] if ids is None else ids.tokens())
    model = make_tiny_teacher(tokenizer, hidden_size=args.hidden_size, n_layers=args.layers, seed=seed)
    tokens = Tokens.of(tokenizer)
    catalog = build_catalog(task.interactions.items, tokens, ids)
    began = time.perf_counter()
    train(model, task, catalog, tokens, args.train_steps, args.lr)
    train_seconds = time.perf_counter() - began
    rows = make_rows(task, task.split("test", args.users), catalog, tokens)
    contexts = [tokens.marked_context(tokens.context_ids(row.prompt), []) for row in rows]
    targets = [row.target_id for row in rows]

    whole = DistributionRanker(catalog, model)
    table = torch.cat([whole.log_probs(contexts[i : i + 64]) for i in range(0, len(contexts), 64)]).numpy()
    expected = rank_scores(catalog, table, targets)
    bounded = LikelihoodRanker(catalog, model, cap=args.cap, node_budget=args.node_budget)
    began = time.perf_counter()
    found = bounded.rank(contexts, targets)
    seconds = time.perf_counter() - began
    worst = check(catalog, table, expected, found, targets)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"{'titles' if ids is None else 'semantic ids'}, seed {seed}: {parameters / 1e6:.2f}M parameters, "
        f"{catalog.tree.n_nodes:,} nodes, {train_seconds:.0f} s of training, exact for "
        f"{(found.lowest_B == found.highest_B).mean():.0%} of {len(rows)} users"
    )
    return {
        "tokens of an item": float(np.mean([len(path) for path in catalog.paths])),
        "tree nodes that need the model": float((catalog.tree.n_children[catalog.tree.chain_end] > 0).sum()),
        "nodes read per context": float(found.n_nodes_B.mean()),
        "ms per context": 1000 * seconds / len(rows),
        "s of training": train_seconds,
        "mean rank": float(expected.ranks_B.mean()),
        "NDCG@10": float(ndcg(expected.ranks_B, k=10).mean()),
        "HR@10": float((expected.ranks_B <= 10).mean()),
    }, worst


def check(catalog: Catalog, table: np.ndarray, expected: Any, found: Any, targets: list[str]) -> float:
    """Search and whole distribution say the same: brackets hold the rank, exact ranks are it."""
    ranks = expected.ranks_B
    assert (found.lowest_B <= ranks).all(), "a bracket lies above the rank"
    assert (ranks <= found.highest_B).all(), "a bracket lies below the rank"
    exact = found.lowest_B == found.highest_B
    assert (found.ranks_B[exact] == ranks[exact]).all(), "an exact rank is another one"
    own = table[np.arange(len(targets)), catalog.indices(targets)]
    worst = float(np.abs(found.log_probs_B - own).max())
    assert worst < TOLERANCE, f"log-probabilities differ by {worst:.1e}"
    return worst


def main() -> None:
    """Trains both teachers for each seed and prints one table of means."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200, help="test users")
    parser.add_argument("--train_steps", type=int, default=300, help="of 16 users each")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--hidden_size", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--cap", type=int, help="ranks beyond it need not be exact; all are, if unset")
    parser.add_argument("--node_budget", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the teachers' weights")
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()

    task = load_task(DataArguments(dataset="office", split="given", max_history=10, history_tokens=200))
    published = published_ids(task.interactions.items, "sid")
    both: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    worst = 0.0
    for seed in args.seeds:
        for by_id, ids in ((True, published), (False, None)):
            numbers, differs = measure(task, ids, args, seed)
            both[by_id].append(numbers)
            worst = max(worst, differs)
    rows = []
    for name in both[True][0]:
        ours, peer = (float(np.mean([numbers[name] for numbers in both[by_id]])) for by_id in (True, False))
        ratio = None if ours == 0 else round(peer / ours, 2)
        rows.append(
            {"name": name, "ours": float(f"{ours:.4g}"), "peer": float(f"{peer:.4g}"), "ratio": ratio, "agree": worst}
        )
    note = f"ours = semantic ids, peer = titles, ratio = peer / ours; {args.train_steps} steps, seeds {args.seeds}"
    report([row | {"agree": f"{row['agree']:.0e}"} for row in rows], args.json, [note])


if __name__ == "__main__":
    main()
