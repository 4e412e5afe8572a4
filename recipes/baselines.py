"""Fits the baselines of a data set, tuned on validation, and evaluates them on its test examples: no teacher needed.

    accelerate launch recipes/baselines.py
    accelerate launch recipes/baselines.py --config recipes/configs/ml-100k/baselines.yaml

Popularity, item-kNN, EASE, SASRec and GRU4Rec, over three seeds where there is chance. They train on the GPU where
there is one. Killed and started again it goes on.
"""

from pathlib import Path

import torch

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.table import console_table
from anyo_rl.run.folder import resolve, start_run
from anyo_rl.run.launch import go_on_alone
from anyo_rl.run.shared import made_once
from anyo_rl.stages.baselines import BaselineArguments, choices, evaluate_all, read_choices
from anyo_rl.stages.begin import begin, plain_errors


@plain_errors()
def main() -> None:
    """Begin; choose, fit, evaluate; print."""
    args, data_args, _ = begin((BaselineArguments, DataArguments), on_cpu=not torch.cuda.is_available())
    task = load_task(data_args, made_once)
    run_dir = Path(args.output_dir)
    start_run(run_dir, resolve(args, data_args), task.report, task.fingerprint)
    if not go_on_alone():
        return
    summary = evaluate_all(task, args)
    print(console_table(summary))
    print(choices(read_choices(run_dir)))
    print(f"report: {run_dir / 'evaluation.md'}")


if __name__ == "__main__":
    main()
