"""Trains a process reward model: what a reasoning is worth after each step, fitted to the values of sampled paths.

    accelerate launch recipes/train_prm.py --model_name_or_path runs/toy/sft/teacher --paths runs/toy-paths

The paths are those of a sampling job (a folder of shards) or a parquet file of the paths table, sampled from the
teacher that is named for training examples. They are labelled here, and so are paths of validation users, which are
sampled here too: they choose the checkpoint, and say how far its scores can be trusted (`prm/quality.md`). A teacher
that was never trained to answer early is labelled by `--step_values monte_carlo`, and an LLM can label (`judge`).
"""

import logging
from pathlib import Path

from accelerate import PartialState
from transformers import TrainingArguments
from trl import ModelConfig

from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.prm_quality import markdown
from anyo_rl.llm.server import ServerError
from anyo_rl.run.folder import resolve, start_run
from anyo_rl.run.launch import check_launch, go_on_alone
from anyo_rl.stages.arguments import PrmArguments, TeacherArguments, parse, plain_errors
from anyo_rl.stages.prm import measure_prm, train_prm
from anyo_rl.training.loop.callbacks import check_saves

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Parse, build, train, evaluate, save."""
    data_args, model_args, teacher_args, prm_args, training_args, _ = parse(
        (DataArguments, ModelConfig, TeacherArguments, PrmArguments, TrainingArguments),
        default_config=CONFIGS / "toy" / "train_prm.yaml",
    )
    logging.basicConfig(level=logging.INFO if PartialState().is_main_process else logging.ERROR, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each question to a judge
    check_launch()
    with plain_errors(ValueError):
        check_saves(training_args)
    start = model_args.model_name_or_path
    if start is None:
        raise SystemExit("no teacher: set model_name_or_path to the teacher that the paths were sampled from")
    if prm_args.paths is None:
        raise SystemExit("no paths: set paths to the folder of a sampling job, or to a parquet file of paths")
    task = load_task(data_args)
    run_dir = Path(training_args.output_dir)
    with plain_errors(ValueError, OSError, ServerError):
        judge = prm_args.asked()
    start_run(run_dir, resolve(data_args, model_args, teacher_args, prm_args, training_args, **judge), task.report)

    asked = (run_dir, task, start, model_args, teacher_args, prm_args)
    with plain_errors(ServerError, DataError):
        model = train_prm(*asked, training_args)
    if go_on_alone():
        print(markdown(measure_prm(*asked, training_args.seed)))
        print(f"PRM: {model}\nquality: {model.parent / 'quality.md'}")


if __name__ == "__main__":
    main()
