"""How long a large interaction log takes to load and split, and how much memory: every row is cleaned and checked.

python benchmarks/load_rows.py                     20 million rows
python benchmarks/load_rows.py --rows 1000000 --json load_rows.json
"""

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl

from anyo_rl.data.load import load_interactions
from anyo_rl.data.splits import make_examples

ROWS_PER_USER, ROWS_PER_ITEM = 100, 400


def write_log(folder: Path, n_rows: int, seed: int = 0) -> None:
    """Writes `log.parquet`, with random users, popular and rare items, unsorted times, and `items.parquet`."""
    random = np.random.default_rng(seed)
    n_users, n_items = max(n_rows // ROWS_PER_USER, 1), max(n_rows // ROWS_PER_ITEM, 1)
    log = {
        "user_id": random.integers(0, n_users, n_rows, dtype=np.int32),
        "item_id": (n_items * random.random(n_rows, dtype=np.float32) ** 2).astype(np.int32).clip(0, n_items - 1),
        "timestamp": random.integers(1_400_000_000, 1_700_000_000, n_rows),
    }
    pl.DataFrame(log).write_parquet(folder / "log.parquet")
    items = {"item_id": range(n_items), "title": [f"Item number {item}" for item in range(n_items)]}
    pl.DataFrame(items).write_parquet(folder / "items.parquet")


def measure(folder: Path) -> list[dict[str, str | int | float]]:
    """Loads and splits the log; seconds of each stage, and the process's peak memory so far."""
    stages: list[dict[str, str | int | float]] = []

    def note(stage: str, rows: int, start: float) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        seconds = round(time.perf_counter() - start, 1)
        stages.append({"stage": stage, "rows": rows, "seconds": seconds, "peak_gb": round(peak / 1e9, 1)})

    start = time.perf_counter()
    interactions = load_interactions(folder)
    note("load and clean", len(interactions.frame), start)
    start = time.perf_counter()
    examples = make_examples(interactions, "leave_one_out", train_targets="last")
    note("leave_one_out, last train target", len(examples), start)
    return stages


def main() -> None:
    """Writes the log, measures in a process of its own, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    # A process for each: a child's peak begins at its parent's, and the memory of making the log must not count.
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        pool.submit(write_log, Path(folder), args.rows).result()
        stages = pool.submit(measure, Path(folder)).result()
    print(f"{'stage':34} {'rows':>12} {'seconds':>8} {'peak GB':>8}")
    for stage in stages:
        print(f"{stage['stage']:34} {stage['rows']:>12,} {stage['seconds']:>8} {stage['peak_gb']:>8}")
    if args.json:
        args.json.write_text(json.dumps({"rows": args.rows, "stages": stages}, indent=2))


if __name__ == "__main__":
    main()
