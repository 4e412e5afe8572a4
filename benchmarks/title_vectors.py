"""What the vectors of the `embedding` ranker cost each process: in memory of its own, or mapped from a file of all.

The teacher is a tiny untrained one. Each number is of a process of its own: `peer` embeds all titles, and ranks among
vectors that it holds; `ours` embeds them into the file, or finds that there, and ranks among vectors that are mapped
from it (random ones, so that there may be many). MB are private memory at its highest beyond what was in use; pages of
a file are the machine's, once for all processes.

python benchmarks/title_vectors.py --dataset ../shared/data/beauty/beauty.inter
"""

import argparse
import multiprocessing
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from report import report

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.encoders.hidden_states import teacher_encoder
from anyo_rl.encoders.vector_file import shared_vectors
from anyo_rl.ranking.embedding.ranker import EmbeddingRanker
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer

STATUS = Path("/proc/self/status")  # where Linux tells the memory of this process
RANDOM = "random.npy"


def private_mb() -> float:
    """Memory of this process in MB that is no page of a file."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith("RssAnon")) / 1024


def measured(run: Callable[[], np.ndarray]) -> dict[str, float]:
    """Seconds of the processor, highest private memory beyond what was in use, and a sum that tells results apart."""
    before, highest, done = private_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            highest.append(private_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    found = run()
    spent = time.process_time() - start
    done.set()
    watcher.join()
    return {"s": spent, "MB": max(highest) - before, "found": float(np.abs(found).sum(dtype=np.float64))}


def measure(
    part: str, folder: Path | None, args: argparse.Namespace, given: Path, titles: list[str]
) -> dict[str, float]:
    """One number of the table; without a folder this process does all for itself."""
    if part == "embed":
        tokenizer = train_tokenizer([f" {title}" for title in titles[:5000]], 2000)
        model = make_tiny_teacher(tokenizer, hidden_size=128, n_layers=4, n_heads=4, max_length=256).eval()
        encoder = teacher_encoder(model, tokenizer)
        encoder(titles[:64])

        def embed() -> np.ndarray:
            return (encoder(titles) if folder is None else shared_vectors(encoder, titles, folder)).numpy()

        return measured(embed)
    random = torch.Generator().manual_seed(0)
    written_B_D = torch.randn(args.rows, args.dim, generator=random)
    ids = [str(item) for item in range(args.items)]

    def rank() -> np.ndarray:
        file = given / RANDOM
        vectors_N_D = np.load(file, mmap_mode=None if folder is None else "c", allow_pickle=False)
        ranker = EmbeddingRanker(ids, vectors_N_D, lambda texts: written_B_D, popularity_N=np.arange(args.items))
        gamma = 1.0 if part == "reweigh" else 0.0
        return ranker.with_gamma(gamma).rank(["-> x"] * args.rows, ids[: args.rows]).ranks_B

    return measured(rank)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="toy")
    parser.add_argument("--rows", type=int, default=256, help="completions that are ranked")
    parser.add_argument("--items", type=int, default=200_000, help="random vectors that they are ranked among")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task(DataArguments(dataset=args.dataset))
    titles = list(dict.fromkeys(task.interactions.items["title"].to_list()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random = np.random.default_rng(0)
        np.save(folder / RANDOM, random.standard_normal((args.items, args.dim), dtype=np.float32))

        def child(part: str, where: Path | None = None) -> dict[str, float]:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                return pool.apply(measure, (part, where, args, folder, titles))

        embedded = child("embed")
        pairs = {"titles, the first": (child("embed", folder / "vectors"), embedded)}
        pairs |= {"titles, the next": (child("embed", folder / "vectors"), embedded)}
        pairs |= {f"{part} {args.rows}": (child(part, folder), child(part)) for part in ("rank", "reweigh")}
    rows = [
        {
            "name": f"{name}, {unit}",
            "ours": round(ours[unit], 2),
            "peer": round(peer[unit], 2),
            "ratio": round(peer[unit] / max(ours[unit], 0.01), 1),
            "agree": bool(np.isclose(ours["found"], peer["found"], rtol=1e-4)),
        }
        for name, (ours, peer) in pairs.items()
        for unit in ("s", "MB")
    ]
    what = f"{len(titles):,} titles; {args.items:,} vectors of {args.dim}; seconds of the processor, 1 thread"
    report(rows, args.json, [f"{what}; ratio = peer / ours"])
    assert all(row["agree"] for row in rows)


if __name__ == "__main__":
    main()
