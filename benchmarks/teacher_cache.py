"""What a teacher cache costs: writing, opening, reading it in a student's batches, and how much memory that takes.

python benchmarks/teacher_cache.py                    100 thousand histories, 100 items, states of 1,024 numbers
python benchmarks/teacher_cache.py --rows 4000 --json cache.json
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

from anyo_rl.data.sequences import training_positions
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.distill.cache import Card, Labels, TeacherCache, data_of, write_cache

EVENTS, N_ITEMS, BATCH = 12, 5_000, 2_048  # of a user; of the catalog; histories of a student's step
Stage = dict[str, str | int | float]


def write_log(folder: Path, n_rows: int, seed: int = 0) -> None:
    """Writes a log with so many training histories, one more or less."""
    random, n_users = np.random.default_rng(seed), max(n_rows // (EVENTS - 3), 1)
    log = {
        "user_id": np.repeat(np.arange(n_users), EVENTS),
        "item_id": random.integers(0, N_ITEMS, n_users * EVENTS),
        "timestamp": np.tile(np.arange(EVENTS), n_users),
    }
    pl.DataFrame(log).write_parquet(folder / "log.parquet")
    items = {"item_id": range(N_ITEMS), "title": [f"Item number {item}" for item in range(N_ITEMS)]}
    pl.DataFrame(items).write_parquet(folder / "items.parquet")


def task_of(folder: Path) -> Task:
    """The log, each user's last two items held out."""
    return load_task(DataArguments(dataset=str(folder), split="leave_one_out"))


def synthetic(histories: pl.DataFrame, k: int, dim: int) -> Labels:
    """Answers that cost nothing to make."""
    n = len(histories)
    items_R_K = (np.arange(k)[None] + histories["user"].to_numpy()[:, None]) % N_ITEMS
    log_probs_K = np.log(np.arange(k, 0, -1) / (k * (k + 1) / 2))
    return Labels(
        items_R_K.astype(np.int32),
        np.tile(log_probs_K, (n, 1)).astype(np.float32),
        np.ones(n, dtype=np.int64),
        np.zeros((n, dim), dtype=np.float16) if dim else None,
    )


def measure(folder: Path, k: int, dim: int, part: str) -> list[Stage]:
    """Writes or reads a cache of the log; seconds of each stage, and the process's peak memory beyond the data's."""
    task, stages = task_of(folder), []
    index = {item: place for place, item in enumerate(task.interactions.items["item_id"].to_list())}
    histories, cache = training_positions(task, index), folder / "cache"
    before, start = peak_mb(), time.perf_counter()

    def note(stage: str, rows: int, start: float) -> None:
        seconds = round(time.perf_counter() - start, 2)
        stages.append({"stage": stage, "rows": rows, "seconds": seconds, "more_mb": round(peak_mb() - before, 1)})

    if part == "write":
        write_cache(
            cache,
            Card("synthetic", k, None, data_of(task), state_dim=dim),
            histories,
            lambda rows: synthetic(rows, k, dim),
        )
        note("write", len(histories), start)
        return stages
    found = TeacherCache.open(cache, task)
    note("open", len(found), start)
    order, start = np.random.default_rng(0).permutation(len(found)), time.perf_counter()
    for at in range(0, len(order), BATCH):
        rows = order[at : at + BATCH]
        assert len(found.top_items_B_K[rows]) == len(found.top_log_probs_B_K[rows]) == len(rows)
        if found.states_B_D is not None:
            assert len(found.states_B_D[rows]) == len(rows)
    note(f"read all, {BATCH:,} at a time", len(found), start)
    return stages


def peak_mb() -> float:
    """Of this process, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def main() -> None:
    """Makes the log, measures in processes of their own, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--top_k", type=int, default=100)
    parser.add_argument("--state_dim", type=int, default=1_024)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    spawn, stages = multiprocessing.get_context("spawn"), []
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        folder = Path(name)
        pool.submit(write_log, folder, args.rows).result()
        for part in ("write", "read"):
            stages += pool.submit(measure, folder, args.top_k, args.state_dim, part).result()
        megabytes = sum(file.stat().st_size for file in (folder / "cache").iterdir()) / 1e6
    print(f"{'stage':30} {'rows':>10} {'seconds':>8} {'more MB':>8}")
    for stage in stages:
        print(f"{stage['stage']:30} {stage['rows']:>10,} {stage['seconds']:>8} {stage['more_mb']:>8}")
    print(f"on disk: {megabytes:,.1f} MB")
    if args.json:
        args.json.write_text(json.dumps({"megabytes": megabytes, "stages": stages}, indent=2))


if __name__ == "__main__":
    main()
