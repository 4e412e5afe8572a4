"""Answers a run's test users by searches over reasonings, each with what it costs; adds them to its table and report.

    python recipes/search_teacher.py --run_dir runs/toy --search mixture best_of_n step_beam tree mcts --n 4 8
    python recipes/search_teacher.py --run_dir runs/toy --stage grpo --search mcts --score certainty prm --prm PRM

The run's settings are those it was trained with; flags and a `--config` go on top. Where several scores or finals are
given, the best on validation is taken for each row. See docs/search.md.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch
from trl import ModelConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.evaluation.stages import TEACHERS, stage_of
from anyo_rl.run.launch import go_on_alone
from anyo_rl.run.settings import Bounds
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import Recorded, begin, plain_errors, task_of_run
from anyo_rl.stages.candidates import items_only
from anyo_rl.stages.evaluate import conclude, show
from anyo_rl.stages.job import TEACHER, Job
from anyo_rl.stages.search import FOLDER, keep_train_paths, search_run
from anyo_rl.stages.search_arguments import SearchArguments


@dataclass
class SearchRecipeArguments:
    """Settings of this recipe alone."""

    run_dir: str = field(default="runs/toy", metadata={"help": "The run folder; teachers lie in <stage>/teacher."})
    stage: str | None = field(default=None, metadata={"help": "Whose teacher; the last that reasons if unset."})
    seed: int = field(default=0, metadata={"help": "Of draws and intervals; the run's if unset."})
    train_examples: int = field(
        default=0,
        metadata={
            "bounds": Bounds(0),
            "help": "Keep the paths that searches find for so many training examples, and evaluate nothing.",
        },
    )


@plain_errors()
def main() -> None:
    """Begin; search, print."""
    recorded, run_dir = Recorded.of_flag("runs/toy")
    assert run_dir is not None, "it has a default"
    args, search_args, data_args, model_args, teacher_args, _ = begin(
        (SearchRecipeArguments, SearchArguments, DataArguments, ModelConfig, TeacherArguments),
        defaults=recorded.defaults,
        on_cpu=not torch.cuda.is_available(),
    )
    if Path(args.run_dir) != run_dir:
        raise SystemExit(f"run_dir is {args.run_dir} in the config: give it as a flag, --run_dir {args.run_dir}")
    stages = [name for name in TEACHERS if stage_of(name).reasons and (run_dir / name / TEACHER).exists()]
    preferred = [name for name in stages if stage_of(name).learned_ranks] or stages
    stage = args.stage or next(iter(preferred[::-1]), None)
    if stage is None or not (run_dir / stage / TEACHER).exists():
        raise SystemExit(
            f"no finished teacher {stage or 'that reasons'} in {run_dir}: found {', '.join(stages) or 'none'}"
        )
    task = task_of_run(run_dir, data_args, teacher_args)
    as_saved = dataclasses.replace(model_args, load_in_4bit=False, load_in_8bit=False)
    job = Job(
        *(run_dir, task, as_saved, teacher_args, args.seed),
        chat_template_kwargs=recorded.chat_template_kwargs,
    )
    items_only(job.asking.kind, "search at inference")
    path = run_dir / stage / TEACHER
    if args.train_examples:
        files = keep_train_paths(job, search_args, stage, path, args.train_examples)
        if go_on_alone():
            print("\n".join(f"paths: {file}" for file in files))
        return
    search_run(job, search_args, stage, path)
    if go_on_alone():
        show(job, conclude(job, {}, baselines=False))
        print(f"trees: {run_dir / FOLDER}/{stage}.*.html")


if __name__ == "__main__":
    main()
