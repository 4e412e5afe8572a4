"""Gathers evidence for a data set's candidates, learns to rank by it, and evaluates that: no teacher needed.

    accelerate launch recipes/rank_evidence.py
    accelerate launch recipes/rank_evidence.py --config recipes/configs/office/rank_evidence.yaml

Retrievers (item-kNN in several views, popularity, titles) name the candidates, and LightGBM orders them. Evidence is
cross-fitted: what a training example meets never saw its user (docs/evidence.md). Killed and started again it goes on.
"""

from pathlib import Path

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.table import console_table
from anyo_rl.run.folder import resolve, start_run
from anyo_rl.run.launch import go_on_alone
from anyo_rl.stages.begin import begin, plain_errors
from anyo_rl.stages.evidence import EvidenceArguments, rank_by_evidence


@plain_errors()
def main() -> None:
    """Begin; gather, learn, evaluate; print."""
    args, data_args, _ = begin((EvidenceArguments, DataArguments), on_cpu=True)
    task = load_task(data_args)
    run_dir = Path(args.output_dir)
    start_run(run_dir, resolve(args, data_args), task.report, task.fingerprint)
    if not go_on_alone():
        return
    summary = rank_by_evidence(task, args)
    print((run_dir / "evidence.md").read_text())
    print(console_table(summary))
    print(f"report: {run_dir / 'evaluation.md'}, {run_dir / 'evidence.md'}")


if __name__ == "__main__":
    main()
