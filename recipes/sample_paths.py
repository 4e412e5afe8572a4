"""Samples reasoning paths of a teacher and ranks the target after each: a job in shards, which processes may share.

    python recipes/sample_paths.py --model_name_or_path runs/toy/sft/teacher --output_dir runs/toy/train-paths
    python recipes/sample_paths.py --engine vllm --model_name_or_path … --output_dir …
    python recipes/sample_paths.py --engine ray --n_engines 2 --model_name_or_path … --output_dir …

Started several times on one folder, on one machine or on many, the processes share the work. Killed at any moment, the
same command goes on. `anyo_rl.sampling.shards.read_paths` reads the paths. See docs/sampling.md.
"""

import logging
import os
from pathlib import Path

import torch
from accelerate import PartialState
from trl import ModelConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.sampling.shards import read_paths
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import begin, plain_errors, task_for
from anyo_rl.stages.job import Job
from anyo_rl.stages.sample import SampleArguments, sample_job


@plain_errors()
def main() -> None:
    """Begin; sample; count, print."""
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s [{os.getpid()}] %(message)s")
    args, data_args, model_args, teacher_args, _ = begin(
        (SampleArguments, DataArguments, ModelConfig, TeacherArguments), on_cpu=not torch.cuda.is_available()
    )
    folder = Path(args.output_dir)
    with plain_errors(ValueError):
        task = task_for(data_args, teacher_args)
        sample_job(Job(folder, task, model_args, teacher_args, args.seed, args.chat_template_kwargs), args)
    if PartialState().is_main_process:
        paths = read_paths(folder)
        finished = (paths["finish_reason"] == "stop").mean()
        print(f"{len(paths)} paths of {paths['example_id'].n_unique()} examples, {finished:.1%} reached their end")
        if args.rank:
            print(
                f"target: first after {(paths['rank'] == 1).mean():.1%} of them, in the first ten after "
                f"{(paths['rank'] <= 10).mean():.1%}"
            )
        print(f"paths: {folder}/shard-*.parquet")


if __name__ == "__main__":
    main()
