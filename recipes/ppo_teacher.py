"""Trains a teacher's reasoning by PPO, with a critic and, if you like, rewards for its steps.

    accelerate launch recipes/ppo_teacher.py
    accelerate launch recipes/ppo_teacher.py --step_rewards shaping --early_answer_share 0.5 --output_dir runs/shaped
    accelerate launch recipes/ppo_teacher.py --step_rewards scores --step_values prm --prm runs/prm/prm/model

The job of recipes/grpo_teacher.py with other advantages: what the critic says of a state in place of the mean of the
group. It takes the same rewards, warm start and comparisons.
"""

from pathlib import Path

from trl import GRPOConfig, ModelConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.stages.arguments import PpoArguments, TeacherArguments
from anyo_rl.stages.begin import begin, plain_errors, start_job
from anyo_rl.stages.evaluate import evaluate_run, show
from anyo_rl.stages.reinforce import checked_method, checked_rewards, train_reasoning
from anyo_rl.stages.warm_start import parse_warm_start, recorded, train_direct, train_warm_start
from reward.load import load_rewards

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Begin; warm start, PPO; evaluate, print."""
    data_args, model_args, teacher_args, ppo_args, training_args, config = begin(
        (DataArguments, ModelConfig, TeacherArguments, PpoArguments, GRPOConfig),
        default_config=CONFIGS / "toy" / "ppo_teacher.yaml",
        defaults={"num_generations_eval": 1},  # validation does not sample by groups
    )
    # What is wrong with rewards, method or warm start is said before anything is trained.
    with plain_errors(ValueError, OSError):
        rewards = checked_rewards(load_rewards, ppo_args, training_args)
        method = checked_method(ppo_args, training_args, model_args)
        warm_start = parse_warm_start(ppo_args, config, training_args, teacher_args)
    job = start_job(
        *(data_args, model_args, teacher_args, training_args, ppo_args),
        chat_template_kwargs=training_args.chat_template_kwargs,
        **recorded(warm_start),
    )

    teachers = train_warm_start(job, warm_start)
    teachers["ppo"] = train_reasoning(job, "ppo", teachers["sft"], ppo_args, training_args, rewards, method)
    teachers |= train_direct(job, warm_start)
    show(job, evaluate_run(job, teachers, baselines=ppo_args.baselines))


if __name__ == "__main__":
    main()
