"""Log-probabilities of a hundred candidates a context, against ranks in the whole catalog and against one by one.

ANYO_RL_DATA=data python benchmarks/candidates.py --json candidates.json

Titles of Office, and a tiny teacher after some steps of training on answers. `ours` is one search over the part of the
tree that the candidates span (`LikelihoodRanker.log_probs_of`), seconds per context with all contexts together. Peers:
the same engine with ranks and ten best items in the whole catalog, and each candidate scored over a context that was
read once. `agree`: the numbers are those of one by one.
"""

import argparse
import time

import numpy as np
import torch
from rank_engine import TOLERANCE, score_items, train
from report import report

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, default=128)
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--peer_contexts", type=int, default=8, help="how many are scored one by one")
    parser.add_argument("--train_steps", type=int, default=200)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    task = load_task(DataArguments(dataset="office", split="given", max_history=10, history_tokens=200))
    tokenizer = train_tokenizer(sample_texts(task), 4000)
    model = make_tiny_teacher(tokenizer, hidden_size=96, n_layers=3)
    tokens = Tokens.of(tokenizer)
    catalog = build_catalog(task.interactions.items, tokens)
    train(model, task, catalog, tokens, args.train_steps, 2e-3)
    rows = make_rows(task, task.split("test", args.contexts), catalog, tokens)
    contexts = [[*tokens.context_ids(row.prompt), tokens.marker_id] for row in rows]
    popular = task.split("train")["target_id"].value_counts(sort=True)["target_id"].to_list()
    rng = np.random.default_rng(0)
    pool = catalog.indices(popular[: 5 * args.candidates])  # what a retriever names is rather popular
    items = [rng.choice(pool, args.candidates, replace=False).tolist() for _ in contexts]

    ranker = LikelihoodRanker(catalog, model, cap=1000)
    began = time.perf_counter()
    found = ranker.log_probs_of([[context] for context in contexts], items)
    ours = (time.perf_counter() - began) / len(contexts)
    began = time.perf_counter()
    ranker.rank(contexts, [row.target_id for row in rows], top_k=10)
    whole = (time.perf_counter() - began) / len(contexts)
    seconds = worst = 0.0
    for context, of_row, log_p in list(zip(contexts, items, found, strict=True))[: args.peer_contexts]:
        expected, _, took, _ = score_items(model, catalog, context, of_row, 64, cached=True)
        seconds, worst = seconds + took / args.peer_contexts, max(worst, float(np.abs(expected - log_p).max()))
    name, agree = f"{len(contexts)} contexts x {args.candidates} candidates, s per context, against", worst < TOLERANCE
    report(
        [
            {"name": f"{name} {peer}", "ours": round(ours, 4), "peer": round(theirs, 4)}
            | {"ratio": round(theirs / ours, 1), "agree": agree}
            for peer, theirs in (("the whole catalog", whole), ("one by one", seconds))
        ],
        args.json,
        [f"{torch.get_num_threads()} threads, {len(catalog):,} items; off by {worst:.1e} at most"],
    )


if __name__ == "__main__":
    main()
