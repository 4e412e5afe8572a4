"""Evaluates the teachers of a run on its test users, beside baselines; writes evaluation.json, a table and a report.

    accelerate launch recipes/evaluate.py --config recipes/configs/toy/evaluate.yaml --run_dir runs/toy

Stages are found in the run folder (`sft`, `grpo`, `direct`); what was evaluated before is not done again.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig

from anyo_rl.config import TeacherArguments, parse, plain_errors
from anyo_rl.evaluation.table import console_table
from anyo_rl.stages import evaluate_run, teacher_folder
from anyo_rl.task import DataArguments, load_task

CONFIGS = Path(__file__).parent / "configs"
STAGES = ("sft", "grpo", "direct")


@dataclass
class EvaluateArguments:
    """What this recipe alone is told."""

    run_dir: str = field(default="runs/toy", metadata={"help": "The run folder; teachers lie in <stage>/teacher."})
    baselines: bool = field(default=True, metadata={"help": "Also evaluate popularity, item-kNN and SASRec."})
    seed: int = field(default=0, metadata={"help": "Of draws and intervals."})


@plain_errors()
def main() -> None:
    """Parse, evaluate, report."""
    args, data_args, model_args, teacher_args, _ = parse(
        (EvaluateArguments, DataArguments, ModelConfig, TeacherArguments),
        default_config=CONFIGS / "toy" / "evaluate.yaml",
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    run_dir = Path(args.run_dir)
    teachers: dict[str, Path | str] = {
        stage: teacher_folder(run_dir / stage) for stage in STAGES if teacher_folder(run_dir / stage).exists()
    }
    if not teachers:
        raise SystemExit(
            f"no finished teacher in {run_dir}: expected one of {', '.join(STAGES)} with a teacher folder"
        )
    summary = evaluate_run(
        run_dir, load_task(data_args), teachers, model_args, teacher_args, baselines=args.baselines, seed=args.seed
    )
    print(console_table(summary))
    print(f"report: {run_dir / 'report.html'}")


if __name__ == "__main__":
    main()
