"""Trains a student, SASRec or GRU4Rec, without a teacher, chooses it on validation and evaluates it on test examples.

    accelerate launch recipes/train_student.py
    accelerate launch recipes/train_student.py --config recipes/configs/office/train_student.yaml

It is what distilled students are measured against, as it is and with items that begin as vectors of their titles
(--item_vectors tfidf). It trains on the GPU where there is one. Killed and started again it goes on.
"""

from pathlib import Path

import torch

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.table import console_table
from anyo_rl.run.folder import resolve, start_run
from anyo_rl.run.launch import go_on_alone
from anyo_rl.run.shared import made_once
from anyo_rl.stages.baselines import choices
from anyo_rl.stages.begin import begin, plain_errors
from anyo_rl.stages.student_arguments import StudentArguments
from anyo_rl.stages.students import read_choice, train_student


@plain_errors()
def main() -> None:
    """Begin; choose, train, evaluate; print."""
    args, data_args, _ = begin((StudentArguments, DataArguments), on_cpu=not torch.cuda.is_available())
    task = load_task(data_args, made_once)
    run_dir = Path(args.output_dir)
    start_run(run_dir, resolve(args, data_args), task.report, task.fingerprint)
    if not go_on_alone():
        return
    print(console_table(train_student(task, args)))
    print(choices([read_choice(run_dir)]))
    print(f"report: {run_dir / 'evaluation.md'}, student: {run_dir / f'seed-{args.seeds[0]}' / 'student'}")


if __name__ == "__main__":
    main()
