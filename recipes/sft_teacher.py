"""Trains a teacher by SFT: to reason before it answers, or, with `--reasoning false`, to answer at once.

    accelerate launch recipes/sft_teacher.py
    accelerate launch recipes/sft_teacher.py --config recipes/configs/ml-100k/sft_teacher.yaml --reasoning false

It ends with the teacher's evaluation on the test users; `--baselines true` adds popularity, item-kNN and SASRec.
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.table import console_table
from anyo_rl.run.folder import resolve, start_run
from anyo_rl.run.launch import check_launch
from anyo_rl.stages.arguments import TeacherArguments, parse, plain_errors
from anyo_rl.stages.evaluate import evaluate_run
from anyo_rl.stages.sft import train_sft
from anyo_rl.training.loop.callbacks import check_saves

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class SFTRecipeArguments:
    """What this recipe alone is told."""

    reasoning: bool = field(default=True, metadata={"help": "Reason before the answer, or answer at once (direct)."})
    baselines: bool = field(default=False, metadata={"help": "Also evaluate popularity, item-kNN and SASRec."})


@plain_errors()
def main() -> None:
    """Parse, build, train, evaluate, save."""
    recipe_args, data_args, model_args, teacher_args, training_args, _ = parse(
        (SFTRecipeArguments, DataArguments, ModelConfig, TeacherArguments, SFTConfig),
        default_config=CONFIGS / "toy" / "sft_teacher.yaml",
    )
    logging.basicConfig(level=logging.INFO if PartialState().is_main_process else logging.ERROR, format="%(message)s")
    check_launch()
    with plain_errors(ValueError):
        check_saves(training_args)
    task = load_task(data_args)
    run_dir = Path(training_args.output_dir)
    start_run(run_dir, resolve(recipe_args, data_args, model_args, teacher_args, training_args), task.report)
    stage = "sft" if recipe_args.reasoning else "direct"
    teacher = train_sft(run_dir, task, model_args, teacher_args, training_args, stage, reasoning=recipe_args.reasoning)
    summary = evaluate_run(
        run_dir,
        task,
        {stage: teacher},
        model_args,
        teacher_args,
        baselines=recipe_args.baselines,
        seed=training_args.seed,
    )
    if summary is not None:
        print(console_table(summary))
        print(f"teacher: {teacher}\nreport: {run_dir / 'report.html'}")


if __name__ == "__main__":
    main()
