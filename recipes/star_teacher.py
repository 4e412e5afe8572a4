"""Lets a teacher make its own training data: it samples reasonings, and is trained on those that lead to the target.

    accelerate launch recipes/star_teacher.py
    accelerate launch recipes/star_teacher.py --config recipes/configs/ml-100k/star_teacher.yaml
    accelerate launch recipes/star_teacher.py --rounds 1 --n_samples 16 --most_per_example 1 --rationalise false \
        --output_dir runs/rejection   # rejection sampling: the best of 16

With no arguments it runs on the embedded toy world: a warm start by SFT on the rationales of a few users, rounds of
STaR on all users, the same teacher without reasoning, baselines, and a report. Run again, it goes on from where it
was.
"""

import logging
from pathlib import Path

from accelerate import PartialState
from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.table import console_table
from anyo_rl.run.folder import resolve, start_run
from anyo_rl.run.launch import check_launch
from anyo_rl.stages.arguments import StarArguments, TeacherArguments, parse, plain_errors
from anyo_rl.stages.evaluate import evaluate_run
from anyo_rl.stages.star import Star
from anyo_rl.stages.warm_start import parse_warm_start, train_warm_start
from anyo_rl.training.loop.callbacks import check_saves

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Parse, build, train, evaluate, save."""
    data_args, model_args, teacher_args, star_args, training_args, config = parse(
        (DataArguments, ModelConfig, TeacherArguments, StarArguments, SFTConfig),
        default_config=CONFIGS / "toy" / "star_teacher.yaml",
    )
    logging.basicConfig(level=logging.INFO if PartialState().is_main_process else logging.ERROR, format="%(message)s")
    check_launch()
    with plain_errors(ValueError):
        check_saves(training_args)
        warm_start = parse_warm_start(star_args, config, training_args, teacher_args, star_args.rounds)
    arguments = resolve(data_args, model_args, teacher_args, star_args, training_args)
    arguments |= warm_start.arguments() if warm_start else {}
    task = load_task(data_args)
    run_dir = Path(training_args.output_dir)
    start_run(run_dir, arguments, task.report)

    teachers = train_warm_start(run_dir, task, model_args, warm_start, hint_share=star_args.hint_share)
    with plain_errors(ValueError):
        star = Star(run_dir, task, model_args, teacher_args, star_args, training_args)
        teachers["star"] = star.train(teachers["sft"])
    summary = evaluate_run(
        run_dir,
        task,
        teachers,
        model_args,
        teacher_args,
        baselines=star_args.baselines,
        seed=training_args.seed,
    )
    if summary is not None:
        print(console_table(summary))
        print(f"report: {run_dir / 'report.html'}")


if __name__ == "__main__":
    main()
