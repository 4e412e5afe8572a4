"""What the evidence of one request costs: its candidates and their features, for one user, and in a block of many.

Milliseconds of the processor. `ours` is a block's share of a user, `peer` a request by itself; `agree` is the share of
candidates that both name (products of titles are rounded otherwise in a block, and lists end at near ties).

python benchmarks/request_features.py --dataset ../shared/data/ml-100k/ml-100k.inter
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from report import report

from anyo_rl.data.sequences import held_out
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.encoders.tfidf import tfidf_vectors
from anyo_rl.evidence.features import Gatherer, gather
from anyo_rl.evidence.make import Maker
from anyo_rl.evidence.retrievers import VIEWS, RetrieverSettings


def main() -> None:
    """Fits the retrievers, asks for users one by one and all at once, and reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="toy")
    parser.add_argument("--split", default="leave_one_out")
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--json", default=None)
    args = parser.parse_args()
    task = load_task(DataArguments(dataset=args.dataset, split=args.split, mask_history=True))
    settings = RetrieverSettings()
    lists = tuple(name for name in settings.names if name not in VIEWS)
    how = Gatherer(100, lists, tfidf_vectors(task.interactions.items["title"].to_list()))
    with tempfile.TemporaryDirectory() as folder:
        maker = Maker(Path(folder), task, settings, how, "tfidf", 5)
        asked = held_out(task, task.split("test", args.users), maker.index)
        block = gather(asked, maker.full, how)  # the first fits, and is not counted
        began = time.process_time()
        block = gather(asked, maker.full, how)
        ours = 1000 * (time.process_time() - began) / len(asked)
        each, same = [], []
        for row in range(len(asked)):
            began = time.process_time()
            one = gather(asked[row : row + 1], maker.full, how)
            each.append(1000 * (time.process_time() - began))
            same.append(np.isin(one.candidates_R_K[0], block.candidates_R_K[row]).mean())
    rows = [
        {
            "name": f"features of one request, {name}, ms",
            "ours": round(ours, 2),
            "peer": round(peer, 2),
            "ratio": round(peer / ours, 1),
            "agree": round(float(np.mean(same)), 4),
        }
        for name, peer in (("median", float(np.median(each))), ("95 of 100", float(np.quantile(each, 0.95))))
    ]
    report(rows, args.json, [f"{len(asked)} users, {maker.full.n_items:,} items, K = 100"])


if __name__ == "__main__":
    main()
