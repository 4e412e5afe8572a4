"""Trains a teacher's reasoning by DPO on its own sampled paths: the best of an example against the worst.

    accelerate launch recipes/dpo_teacher.py --model_name_or_path runs/toy/sft/teacher --paths runs/toy-paths

The paths are those of a sampling job (a folder of shards) or a parquet file of the paths table, several of each
training example, sampled from the teacher that is named. It ends with both teachers' evaluation on the test users, as
the stages `sft` (the start) and `dpo`; `--baselines true` adds popularity, item-kNN and SASRec.
"""

import logging
from pathlib import Path

from accelerate import PartialState
from trl import DPOConfig, ModelConfig

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.table import console_table
from anyo_rl.run.folder import resolve, start_run
from anyo_rl.run.launch import check_launch
from anyo_rl.stages.arguments import TeacherArguments, parse, plain_errors
from anyo_rl.stages.dpo import PairArguments, train_dpo
from anyo_rl.stages.evaluate import evaluate_run
from anyo_rl.training.loop.callbacks import check_saves

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Parse, build, train, evaluate, save."""
    data_args, model_args, teacher_args, pair_args, training_args, _ = parse(
        (DataArguments, ModelConfig, TeacherArguments, PairArguments, DPOConfig),
        default_config=CONFIGS / "toy" / "dpo_teacher.yaml",
    )
    logging.basicConfig(level=logging.INFO if PartialState().is_main_process else logging.ERROR, format="%(message)s")
    check_launch()
    with plain_errors(ValueError):
        check_saves(training_args)
    start = model_args.model_name_or_path
    if start is None:
        raise SystemExit("no teacher: set model_name_or_path to the teacher that the paths were sampled from")
    if pair_args.paths is None:
        raise SystemExit("no paths: set paths to the folder of a sampling job, or to a parquet file of paths")
    task = load_task(data_args)
    run_dir = Path(training_args.output_dir)
    start_run(run_dir, resolve(data_args, model_args, teacher_args, pair_args, training_args), task.report)

    teacher = train_dpo(run_dir, task, start, model_args, teacher_args, pair_args, training_args)
    summary = evaluate_run(
        run_dir,
        task,
        {"sft": start, "dpo": teacher},
        model_args,
        teacher_args,
        baselines=pair_args.baselines,
        seed=training_args.seed,
        chat_template_kwargs=pair_args.chat_template_kwargs,
    )
    if summary is not None:
        print(console_table(summary))
        print(f"teacher: {teacher}\nreport: {run_dir / 'report.html'}")


if __name__ == "__main__":
    main()
