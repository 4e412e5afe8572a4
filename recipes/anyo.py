"""The whole of it: baselines, evidence, a teacher, what it says of the training histories, and a student of that.

    accelerate launch recipes/anyo.py
    accelerate launch recipes/anyo.py --dataset logs/shop.csv --split leave_one_out --output_dir runs/shop

It ends with one table over the same test examples, and with what each stage added to the one before it. Its config
names the config of each part (docs/anyo.md); a part without one is left out. With no arguments it runs on the embedded
world of orders. Killed at any moment, the same command goes on, and nothing that was finished is made again.
"""

from pathlib import Path

import torch
from trl import ModelConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.evaluation.stages import GRPO
from anyo_rl.run.launch import go_on_alone
from anyo_rl.stages.anyo import Anyo, AnyoArguments
from anyo_rl.stages.anyo_parts import read_parts
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import begin, plain_errors, task_for
from anyo_rl.stages.evaluate import show
from anyo_rl.stages.job import Job
from reward.load import load_rewards

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Begin; baselines, evidence, teacher, cache, students; evaluate, print."""
    args, data_args, model_args, teacher_args, config = begin(
        (AnyoArguments, DataArguments, ModelConfig, TeacherArguments),
        default_config=CONFIGS / "toy" / "anyo.yaml",
        on_cpu=not torch.cuda.is_available(),
    )
    with plain_errors(ValueError, OSError):
        parts = read_parts(args, config, teacher_args, model_args, load_rewards)
    grpo = parts.steps.get(GRPO.name)
    told = None if grpo is None else grpo.training_args.chat_template_kwargs
    task = task_for(data_args, teacher_args)
    job = Job(Path(args.output_dir), task, model_args, teacher_args, args.seed, chat_template_kwargs=told)
    run = Anyo(job, data_args, args, parts)

    run.start()
    run.make_baselines()
    run.make_evidence()
    teachers = run.train_teacher()
    run.ask(teachers)
    run.make_cache()
    students = run.claim_students()
    show(job, run.conclude(teachers, students) if go_on_alone() else None)


if __name__ == "__main__":
    main()
