"""Keeps what a teacher answers to every training history, for students to learn from.

    accelerate launch recipes/cache_teacher.py
    accelerate launch recipes/cache_teacher.py --config recipes/configs/office/cache_teacher.yaml
    accelerate launch recipes/cache_teacher.py --source teacher --run_dir runs/toy --stage grpo --mode greedy

Baselines and evidence answer without having seen the user (docs/cache.md). Started several times on one folder, the
processes share the work. Killed at any moment, the same command goes on. `--plan true` says how large it will be.
"""

from pathlib import Path

import torch
from accelerate import PartialState
from trl import ModelConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.distill.cache import TeacherCache
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import Recorded, begin, plain_errors, task_for
from anyo_rl.stages.cache import TEACHER, CacheArguments, cache_of_scores, cache_of_teacher, told
from anyo_rl.stages.job import Job


@plain_errors()
def main() -> None:
    """Begin; ask, keep; count, print."""
    recorded, run_dir = Recorded.of_flag()
    args, data_args, model_args, teacher_args, _ = begin(
        (CacheArguments, DataArguments, ModelConfig, TeacherArguments),
        defaults=recorded.defaults,
        on_cpu=not torch.cuda.is_available(),
    )
    if args.source == TEACHER and (run_dir is None or Path(str(args.run_dir)) != run_dir):
        raise UsageError("source is teacher; give the folder of its run as a flag: --run_dir runs/…")
    task = task_for(data_args, teacher_args)
    if args.source == TEACHER:
        job = Job(Path(args.run_dir), task, model_args, teacher_args, args.seed, recorded.chat_template_kwargs)
        cache_of_teacher(job, args)
    else:
        cache_of_scores(task, args, teacher_args.evidence, teacher_args.baselines_from)
    if PartialState().is_main_process and not args.plan:
        print(told(TeacherCache.open(Path(args.output_dir), task)))
        print(f"cache: {args.output_dir}")


if __name__ == "__main__":
    main()
