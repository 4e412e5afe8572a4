"""How many sampled reasonings in the world of orders are right: their heads, and every line of them.

python recipes/sample_paths.py --dataset toy-orders --toy_dial 1 --toy_users 4000 --max_history 80 \\
    --sample_split validation --temperature 0 --n_samples 1 --max_reasoning_tokens 80 \\
    --model_name_or_path TEACHER --output_dir PATHS
python benchmarks/order_states.py PATHS
python benchmarks/order_states.py RUN/star/round-1/paths --least_agreement 3

Reads the folder of a sampling job, as those of STaR, in the world of `--dial` and `--users`. A line for
all paths; for the different ones of an example whose target is in the first `--rank`; and for those of them that so
many paths of the example agree on.
"""

import argparse
from pathlib import Path

import polars as pl

from anyo_rl.data.schema import split_example_id
from anyo_rl.data.toy.orders import OrderWorld, make_order_world, order_config
from anyo_rl.metrics.gains import ndcg
from anyo_rl.sampling.shards import read_paths


def judged(paths: pl.DataFrame, world: OrderWorld) -> pl.DataFrame:
    """The paths with what is true of them: `head`, `chain`; their `text`, and the NDCG@10 of their rank."""
    rows = [
        (steps, user, split_example_id(example)[1])
        for steps, user, example in paths.select("steps", "user_id", "example_id").iter_rows()
    ]
    true = [world.true_steps(*row) for row in rows]
    return paths.with_columns(
        head=pl.Series([world.is_true(*row) for row in rows]),
        chain=pl.Series([bool(lines) and all(lines) for lines in true]),
        text=pl.col("steps").list.join("\n"),
        ndcg=pl.Series(ndcg(paths["rank"].to_numpy(), 10)),
    )


def line(name: str, found: pl.DataFrame) -> str:
    means = found.select(pl.col("head", "chain", "ndcg").mean()).row(0)
    return (
        f"{name}: {len(found)} paths, {means[0]:.1%} true heads, {means[1]:.1%} right chains, NDCG@10 {means[2]:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", type=Path)
    parser.add_argument("--dial", type=int, default=1)
    parser.add_argument("--users", type=int, default=4000)
    parser.add_argument("--rank", type=int, default=6)
    parser.add_argument("--least_agreement", type=int, default=2)
    args = parser.parse_args()
    found = judged(read_paths(args.paths), make_order_world(order_config(args.dial, n_users=args.users)))
    good = found.filter(pl.col("rank") <= args.rank).with_columns(agree=pl.len().over("example_id", "text"))
    different = good.unique(["example_id", "text"])
    print(line("all", found))
    print(line(f"different ones of rank {args.rank} or better", different))
    agreed = different.filter(pl.col("agree") >= args.least_agreement)
    print(line(f"of these, on which {args.least_agreement} or more agree", agreed))


if __name__ == "__main__":
    main()
