"""What a million training rows cost the processes of a machine: made when they are drawn, or kept as Python rows.

The log is made up: users of 42 events, histories of 20 items, everything seen masked. Processes open the data as a
trainer does: the log with its examples, the catalog, and the dataset of GRPO or of a `direct` SFT. `ours` is two of
them that have the tables in common and make rows when they are drawn; `peer` has its own tables, and all rows as
Python objects before they become a `Dataset`, so that one tells of all.

Counted is what comes on top of the process with its libraries and tokenizer, once the allocators have given back what
they do not use: *private* memory of a process (Uss) and what the processes share (Pss less Uss, of all together),
after every page of the tables was read, for the process that makes the tables and the other. *Most* is the most
private memory on the way there, looked at every .1 s. The last lines are for `--scale_rows` and `--scale_processes`:
straight lines through the two numbers of rows, and as many processes; in *most* all have their most at one moment.

OMP_NUM_THREADS=1 python benchmarks/training_rows.py --json training_rows.json
"""

import argparse
import gc
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from accelerate import PartialState
from datasets import Dataset
from report import report

from anyo_rl.catalog.catalog import open_catalog
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.reasoning.rows import Rows, make_rows
from anyo_rl.run.shared import made_once
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.rewards.setup import prepare_rewards

ROOT = Path(__file__).resolve().parents[1]
N_ITEMS, N_EVENTS = 5_000, 42
KINDS = ("grpo", "sft")
TITLES = [f"Title of the item with number {item}" for item in range(N_ITEMS)]
SECONDS_TO_GIVE_BACK = 3.0


@dataclass(frozen=True)
class Memory:
    """In MB above the libraries: private of each process, shared by all, and the most private on the way."""

    private: list[float]
    shared: float
    most: list[float]

    def of(self, n_processes: int) -> float:
        """What as many processes take together; one of them makes the tables."""
        return self.shared + self.private[0] + (n_processes - 1) * self.private[-1]

    def most_of(self, n_processes: int) -> float:
        """The same at the worst moment."""
        return self.shared + self.most[0] + (n_processes - 1) * self.most[-1]


def memory_mb(pid: int | str = "self") -> tuple[float, float]:
    """Private (Uss) and proportional (Pss) memory of a process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kb = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    return (kb["Private_Clean"] + kb["Private_Dirty"]) / 1e3, kb["Pss"] / 1e3


def write_log(folder: Path, n_rows: int) -> None:
    """A log with that many training examples: three events of each user are none."""
    n_users = -(-n_rows // (N_EVENTS - 3))
    items = np.concatenate([np.random.default_rng(u).permutation(N_ITEMS)[:N_EVENTS] for u in range(n_users)])
    users = np.repeat(np.arange(n_users), N_EVENTS)
    log = {
        "user_id": [f"user-{user:07d}" for user in users],
        "item_id": [f"item-{item}" for item in items],
        "timestamp": 1_600_000_000 + np.arange(len(users)),
    }
    pl.DataFrame(log).write_parquet(folder / "log.parquet")
    ids = [f"item-{item}" for item in range(N_ITEMS)]
    pl.DataFrame({"item_id": ids, "title": TITLES}).write_parquet(folder / "items.parquet")


def open_as_now(task: Task, tokens: Tokens, sft: Any) -> tuple[Dataset, object]:
    """The dataset, and what a stage holds beside it."""
    catalog = open_catalog(task.interactions.items, tokens)
    rows = Rows(task, task.places("train"), catalog, tokens)
    if sft:
        return sft.sft_dataset(rows, catalog, tokens, None), None
    return prepare_rewards([], rows, task, catalog, seed=0), rows


def open_as_before(task: Task, tokens: Tokens, sft: Any) -> tuple[Dataset, object]:
    """The same out of Python rows."""
    catalog = open_catalog(task.interactions.items, tokens)
    rows = make_rows(task, task.split("train"), catalog, tokens)
    if sft:
        return Dataset.from_list(list(sft.sft_dataset(rows, catalog, tokens, None))), None
    return Dataset.from_list([row.columns() for row in rows]), rows


def child(kind: str, ours: bool, folder: Path) -> None:
    """Opens the data beside another process; prints what it had before, what it has then, and some rows' hash."""
    sft = import_module("anyo_rl.training.sft") if kind == "sft" else None
    state = PartialState(cpu=True)
    tokens = Tokens.of(train_tokenizer(TITLES[:1000], 500))
    state.wait_for_everyone()
    before = memory_mb()
    print(json.dumps(before), flush=True)
    data_args = DataArguments(
        dataset=str(folder / "log.parquet"),
        items_path=str(folder / "items.parquet"),
        split="leave_one_out",
        max_history=20,
        mask_history=True,
        rationale_share=0.0,
        rationale_attributes=[],
    )
    task = load_task(data_args, made_once) if ours else load_task(data_args)
    _ = task.fingerprint, task.report
    dataset, held = (open_as_now if ours else open_as_before)(task, tokens, sft)
    drawn = np.random.default_rng(0).choice(len(dataset), 500)
    found = hashlib.sha256(json.dumps([dataset[int(row)] for row in drawn], sort_keys=True).encode())
    gc.collect()
    time.sleep(SECONDS_TO_GIVE_BACK)
    state.wait_for_everyone()
    after = memory_mb()
    state.wait_for_everyone()
    print(json.dumps([*after, len(dataset), found.hexdigest()]), flush=True)
    del task, held


def launch(kind: str, ours: bool, folder: Path) -> tuple[Memory, tuple[int, str]]:
    """The memory of its processes, and how many rows of which hash they have."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, str(Path(__file__).resolve()), "--child", kind, "ours" if ours else "peer", str(folder)]
    n_processes = 2 if ours else 1
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(n_processes)]
    world = {name: str(n_processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(command, env={**os.environ, **world, **rank}, stdout=subprocess.PIPE, text=True)
        for rank in ranks
    ]
    try:
        before = [json.loads(next(process.stdout)) for process in started]
        most = [0.0] * n_processes
        while all(process.poll() is None for process in started):
            for rank, process in enumerate(started):
                try:
                    most[rank] = max(most[rank], memory_mb(process.pid)[0] - before[rank][0])
                except (OSError, KeyError):  # it has ended
                    break
            time.sleep(0.1)
        after = [json.loads(process.communicate()[0]) for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started) or after[0][2:] != after[-1][2:]:
        raise SystemExit("a process failed, or two have other rows")
    private = [of[0] - at_first[0] for of, at_first in zip(after, before, strict=True)]
    together = sum(of[1] - at_first[1] for of, at_first in zip(after, before, strict=True))
    return Memory(private, max(together - sum(private), 0.0), most), (after[0][2], after[0][3])


def scaled(small: float, large: float, sizes: tuple[int, int], n_rows: int) -> float:
    """On the straight line through two sizes."""
    return large + (large - small) / (sizes[1] - sizes[0]) * (n_rows - sizes[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[50_000, 200_000])
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--without_peer", action="store_true", help="leave the peer out, which takes most of the time")
    parser.add_argument("--scale_rows", type=int, default=1_000_000)
    parser.add_argument("--scale_processes", type=int, default=8)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    if args.child:
        kind, which, folder = args.child
        child(kind, which == "ours", Path(folder))
        return
    rows = []

    def compare(name: str, ours: float, peer: float | None, agree: bool | None = None) -> None:
        ratio = round(peer / ours, 1) if ours > 0 and peer is not None else None
        told = None if peer is None else round(peer)
        rows.append({"name": name, "ours": round(ours), "peer": told, "ratio": ratio, "agree": agree})

    found: dict[tuple[str, bool], list[Memory]] = {}
    sizes = []
    for n_rows in args.rows:
        with tempfile.TemporaryDirectory() as name:
            write_log(Path(name), n_rows)
            for kind in args.kinds:
                ours, made = launch(kind, True, Path(name))
                peer, kept = (None, None) if args.without_peer else launch(kind, False, Path(name))
                found.setdefault((kind, True), []).append(ours)
                if peer is not None:
                    found.setdefault((kind, False), []).append(peer)
                label = f"{kind}, {made[0]:,} rows"
                agree = None if kept is None else made == kept
                compare(f"{label}, private, maker", ours.private[0], peer and peer.private[0], agree)
                compare(f"{label}, private, other", ours.private[-1], peer and peer.private[-1])
                compare(f"{label}, shared", ours.shared, peer and peer.shared)
                compare(f"{label}, most, maker", ours.most[0], peer and peer.most[0])
                compare(f"{label}, most, other", ours.most[-1], peer and peer.most[-1])
        sizes.append(made[0])
    n = args.scale_processes
    for kind in args.kinds:
        for what, of in (("together", Memory.of), ("together, most", Memory.most_of)):
            ours_then, peer_then = (
                scaled(*(of(one, n) for one in found[kind, which]), (sizes[0], sizes[1]), args.scale_rows)
                if (kind, which) in found
                else None
                for which in (True, False)
            )
            assert ours_then is not None
            compare(f"{kind}, {args.scale_rows:,} rows, {n} processes {what}", ours_then, peer_then)
    report(rows, args.json, ["MB above the libraries; ratio = peer / ours"])


if __name__ == "__main__":
    main()
