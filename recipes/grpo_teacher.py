"""Trains a teacher's reasoning by GRPO on the rank of the item that the user really chose.

    accelerate launch recipes/grpo_teacher.py
    accelerate launch recipes/grpo_teacher.py --config recipes/configs/ml-100k/grpo_teacher.yaml
    accelerate launch recipes/grpo_teacher.py --output_dir runs/mine --reward_funcs my_reward.py:my_reward ndcg

With no arguments it runs on the embedded toy world: a warm start by SFT on the rationales of a few users, GRPO on all
users, the same teacher without reasoning, baselines, and a report. Run again, it goes on from where it was; with other
arguments it wants another --output_dir.
"""

from pathlib import Path

from trl import GRPOConfig, ModelConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.stages.arguments import GrpoArguments, TeacherArguments
from anyo_rl.stages.begin import begin, plain_errors, start_job
from anyo_rl.stages.evaluate import evaluate_run, show
from anyo_rl.stages.reinforce import checked_method, checked_rewards, train_reasoning
from anyo_rl.stages.warm_start import parse_warm_start, recorded, train_direct, train_warm_start
from reward.load import load_rewards

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Begin; warm start, GRPO; evaluate, print."""
    data_args, model_args, teacher_args, grpo_args, training_args, config = begin(
        (DataArguments, ModelConfig, TeacherArguments, GrpoArguments, GRPOConfig),
        default_config=CONFIGS / "toy" / "grpo_teacher.yaml",
        defaults={"num_generations_eval": 1},  # validation does not sample by groups
    )
    # What is wrong with rewards, method or warm start is said before anything is trained.
    with plain_errors(ValueError, OSError):
        rewards = checked_rewards(load_rewards, grpo_args, training_args)
        method = checked_method(grpo_args, training_args, model_args)
        warm_start = parse_warm_start(grpo_args, config, training_args, teacher_args)
    job = start_job(
        *(data_args, model_args, teacher_args, training_args, grpo_args),
        chat_template_kwargs=training_args.chat_template_kwargs,
        **recorded(warm_start),
    )

    teachers = train_warm_start(job, warm_start)
    teachers["grpo"] = train_reasoning(job, "grpo", teachers["sft"], grpo_args, training_args, rewards, method)
    teachers |= train_direct(job, warm_start)
    show(job, evaluate_run(job, teachers, baselines=grpo_args.baselines))


if __name__ == "__main__":
    main()
