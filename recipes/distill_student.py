"""Trains a student, SASRec or GRU4Rec, on what a teacher said of the training histories, and evaluates it.

    accelerate launch recipes/cache_teacher.py
    accelerate launch recipes/distill_student.py

The teacher's list, its decision states and its reasonings count by weights (docs/students.md); of the lists of weights
the best value on validation is taken. It trains on the GPU where there is one. Killed and started again it goes on.
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
from anyo_rl.stages.student_arguments import DistillArguments, StudentArguments
from anyo_rl.stages.students import read_choice, read_lessons, train_student

DEFAULTS = {"output_dir": "runs/toy-distilled", "name": "student_distilled"}


@plain_errors()
def main() -> None:
    """Begin; choose, train, evaluate; print."""
    on_cpu = not torch.cuda.is_available()
    args, distill, data_args, _ = begin(
        (StudentArguments, DistillArguments, DataArguments), defaults=DEFAULTS, on_cpu=on_cpu
    )
    task = load_task(data_args, made_once)
    lessons, card = read_lessons(task, distill)
    run_dir = Path(args.output_dir)
    start_run(run_dir, resolve(args, distill, data_args, Teacher=card), task.report, task.fingerprint)
    if not go_on_alone():
        return
    print(console_table(train_student(task, args, distill, lessons)))
    print(choices([read_choice(run_dir)]))
    print(f"report: {run_dir / 'evaluation.md'}, student: {run_dir / f'seed-{args.seeds[0]}' / 'student'}")


if __name__ == "__main__":
    main()
