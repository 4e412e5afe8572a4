"""What a catalog costs the processes of a machine: built in each, or mapped from the file that one has written.

The catalog is made up: titles of eight words, with a tokenizer trained on some of them. Each row is a process of its
own: `peer` builds its catalog, `ours` opens it from a folder, first where there is no file, then where there is one.

python benchmarks/open_catalog.py --items 100000
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from report import report

from anyo_rl.catalog.catalog import open_catalog
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens


def resident_mb() -> float:
    """Memory of this process in MB, mapped pages that it has touched included."""
    n_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return n_pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(n_items: int, folder: Path | None) -> dict[str, float]:
    """Seconds and memory that one catalog takes this process, and the tokens of a title."""
    random = np.random.default_rng(0)
    words = ["".join(letters) for letters in random.choice(list("abcdefghijklmnop"), (3000, 5))]
    titles = [" ".join(words[word] for word in row) for row in random.integers(0, len(words), (n_items, 8))]
    items = pl.DataFrame({"item_id": [str(item) for item in range(n_items)], "title": titles})
    tokens = Tokens.of(train_tokenizer([f" {title}" for title in titles[:5000]], 2000))
    before, start = resident_mb(), time.perf_counter()
    catalog = open_catalog(items, tokens, folder=folder)
    spent = time.perf_counter() - start
    return {"s": spent, "MB": resident_mb() - before, "n_tokens": len(catalog.paths.tokens) / len(catalog)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--child", nargs="?", const="", help=argparse.SUPPRESS)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(measure(args.items, Path(args.child) if args.child else None)))
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--items", str(args.items), "--child"]
        runs = [
            json.loads(subprocess.run([*command, *where], check=True, capture_output=True, text=True).stdout)
            for where in ([], [folder], [folder])
        ]
    built, *opened = runs
    rows = [
        {
            "name": f"{name}, {unit}",
            "ours": round(run[unit], 2),
            "peer": round(built[unit], 2),
            "ratio": round(built[unit] / run[unit], 1),
            "agree": run["n_tokens"] == built["n_tokens"],
        }
        for name, run in zip(("first process", "next process"), opened, strict=True)
        for unit in ("s", "MB")
    ]
    report(rows, args.json, [f"{args.items:,} titles of {built['n_tokens']:.1f} tokens; ratio = peer / ours"])


if __name__ == "__main__":
    main()
