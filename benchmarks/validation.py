"""What a validation costs on a catalog of thousands of titles, for a teacher that knows nothing yet.

python benchmarks/validation.py --dataset ../shared/data/beauty/beauty.inter
python benchmarks/validation.py --dataset LOG.csv --users 300 --peers 4

The teacher is a tiny untrained one, as the first validation of a run meets it. `ours` is seconds a user by
`Validation`: to depth 10, within a node budget. `peer` is seconds a user of exact ranks, by the same engine with
neither, for the first `--peers` users alone, since each may take minutes. `agree` says that both give these the same
NDCG@10.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from report import report
from trl import ModelConfig

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.search.answers import answer
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.job import Job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="toy")
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--peers", type=int, default=4)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()
    task = load_task(DataArguments(dataset=args.dataset, split="leave_one_out", max_validation=args.users))
    with tempfile.TemporaryDirectory() as folder:
        measure(Job(Path(folder), task, ModelConfig(dtype="float32"), TeacherArguments()), args)


def measure(job: Job, args: argparse.Namespace) -> None:
    """Times both, and reports."""
    teacher = job.opening.load(None)
    model = teacher.model.eval()
    rows, notes = [], [f"{torch.get_num_threads()} threads, {len(teacher.catalog):,} items"]
    for mode in ("plain", "greedy"):
        validation = job.validation(teacher, mode)
        began = time.perf_counter()
        answers = validation.answers(model)
        ours = (time.perf_counter() - began) / len(validation.rows)
        n_users, n_cut = len(answers.ranks_U), int((~answers.complete_U).sum())
        notes.append(f"{mode}: {ours * n_users:.1f} s for {n_users} users, {n_cut} cut short by the budget")
        first = validation.rows[: args.peers]
        began = time.perf_counter()
        exact = answer(
            first,
            LikelihoodRanker(teacher.catalog, model),
            job.sampler(model, teacher.tokens),
            teacher.tokens,
            validation.how,
        ).ranks_U
        peer = (time.perf_counter() - began) / len(first)
        agree = bool((ndcg(answers.ranks_U[: len(first)], 10) == ndcg(exact, 10)).all())
        row = {"name": f"validation, {mode}, s a user", "ours": round(ours, 4), "peer": round(peer, 3)}
        rows.append(row | {"ratio": round(peer / ours, 1), "agree": agree})
    report(rows, args.json, notes)


if __name__ == "__main__":
    main()
