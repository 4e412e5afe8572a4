"""How far log-probabilities of items in bfloat16 are from those in float32, with the same weights.

What ranks in half precision are worth, and where the tie band of `LikelihoodRanker` comes from.

ANYO_RL_DATA=data python benchmarks/half_precision.py --json half_precision.json
ANYO_RL_DATA=data python benchmarks/half_precision.py --model_name_or_path PATH --marker_token "<filename>"
"""

import argparse

import numpy as np
from report import report
from trl import ModelConfig

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.ranking.engine.likelihood import HALF_TIE_BAND
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.teacher.load import load_teacher
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="a tiny Qwen3 made for the titles, if unset")
    parser.add_argument("--marker_token", help="the token that stands for the marker, where it is not ->")
    parser.add_argument("--contexts", type=int, default=2)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    task = load_task(DataArguments(dataset="office", split="given", max_history=10, history_tokens=200))
    if args.model_name_or_path:
        model, tokenizer = load_teacher(ModelConfig(model_name_or_path=args.model_name_or_path, dtype="float32"))
    else:
        tokenizer = train_tokenizer(sample_texts(task), 4000)
        model = make_tiny_teacher(tokenizer, hidden_size=96, n_layers=3)
    tokens = Tokens.of(tokenizer, args.marker_token)
    catalog = build_catalog(task.interactions.items, tokens)
    rows = make_rows(task, task.split("test", args.contexts), catalog, tokens)
    contexts = [tokens.marked_context(tokens.context_ids(row.prompt), []) for row in rows]
    model = model.bfloat16().float()  # the rounding of the weights is no noise of the forward
    full = DistributionRanker(catalog, model).log_probs(contexts).double().numpy()
    half = DistributionRanker(catalog, model.bfloat16()).log_probs(contexts).double().numpy()
    off = np.abs(full - half)
    ranks, moved_ranks = ((-table).argsort(1).argsort(1) for table in (full, half))
    moved = np.abs(ranks - moved_ranks)
    notes = [
        f"{len(contexts)} contexts, {len(catalog)} items; log-probabilities are off by {off.mean():.3f} on average, "
        f"{np.quantile(off, 0.99):.2f} at the 99th percentile and {off.max():.2f} at most",
        f"ranks move by {moved.mean():.1f} on average, {moved[ranks < 1000].mean():.1f} within the first thousand, "
        f"and by {moved[ranks < 10].max()} at most within the first ten",
    ]
    row = {"name": "log-probability off by at most, against the tie band", "ours": round(float(off.max()), 3)}
    row |= {"peer": HALF_TIE_BAND, "ratio": round(HALF_TIE_BAND / float(off.max()), 1)}
    report([row | {"agree": bool(off.max() < HALF_TIE_BAND)}], args.json, notes)


if __name__ == "__main__":
    main()
