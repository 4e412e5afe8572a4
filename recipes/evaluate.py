"""Evaluates the teachers of a run on its test users, beside baselines; writes evaluation.json, a table and a report.

    accelerate launch recipes/evaluate.py --run_dir runs/toy

Stages are found in the run folder (`sft`, `star`, `dpo`, `grpo`, `direct`), and so are the run's settings; flags and a
`--config` go on top of them: `--written free --reweigh_by popularity` adds what teachers write, grounded as BIGRec
does; `--causal_examples 200` adds the causal report (docs/causal.md). What was evaluated before is not done again.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from trl import ModelConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.evaluation.stages import TEACHERS
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import Recorded, begin, plain_errors, task_of_run
from anyo_rl.stages.evaluate import evaluate_run, show
from anyo_rl.stages.job import TEACHER, Job


@dataclass
class EvaluateArguments:
    """Settings of this recipe alone."""

    run_dir: str = field(default="runs/toy", metadata={"help": "The run folder; teachers lie in <stage>/teacher."})
    baselines: bool = field(default=True, metadata={"help": "Also evaluate popularity, item-kNN and SASRec."})
    seed: int = field(default=0, metadata={"help": "Of draws and intervals; the run's if unset."})


@plain_errors()
def main() -> None:
    """Begin; evaluate, print."""
    recorded, run_dir = Recorded.of_flag("runs/toy")
    assert run_dir is not None, "it has a default"
    args, data_args, model_args, teacher_args, _ = begin(
        (EvaluateArguments, DataArguments, ModelConfig, TeacherArguments),
        defaults=recorded.defaults,
        on_cpu=not torch.cuda.is_available(),
    )
    if Path(args.run_dir) != run_dir:
        raise SystemExit(f"run_dir is {args.run_dir} in the config: give it as a flag, --run_dir {args.run_dir}")
    teachers = {stage: run_dir / stage / TEACHER for stage in TEACHERS if (run_dir / stage / TEACHER).exists()}
    if not teachers:
        raise SystemExit(
            f"no finished teacher in {run_dir}: expected one of {', '.join(TEACHERS)} with a teacher folder"
        )
    task = task_of_run(run_dir, data_args, teacher_args)
    job = Job(
        *(run_dir, task, model_args, teacher_args, args.seed),
        chat_template_kwargs=recorded.chat_template_kwargs,
    )
    show(job, evaluate_run(job, teachers, baselines=args.baselines))


if __name__ == "__main__":
    main()
