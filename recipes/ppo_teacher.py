"""Trains a teacher's reasoning by PPO, with a critic and, if you like, rewards for its steps.

    accelerate launch recipes/ppo_teacher.py
    accelerate launch recipes/ppo_teacher.py --step_rewards shaping --early_answer_share 0.5 --output_dir runs/shaped
    accelerate launch recipes/ppo_teacher.py --step_rewards scores --step_values prm --prm runs/prm/prm/model

The job of recipes/grpo_teacher.py with other advantages: what the critic says of a state in place of the mean of the
group. It takes the same rewards, warm start and comparisons.
"""

import logging
from pathlib import Path

from accelerate import PartialState
from trl import GRPOConfig, ModelConfig

from anyo_rl.config import PpoArguments, TeacherArguments, parse, plain_errors
from anyo_rl.evaluation.table import console_table
from anyo_rl.launch import check_launch
from anyo_rl.run_folder import resolve, start_run
from anyo_rl.sampling.server_http import ServerError
from anyo_rl.stages import evaluate_run
from anyo_rl.stages_rl import train_reasoning
from anyo_rl.task import DataArguments, load_task
from anyo_rl.training.callbacks import check_saves
from anyo_rl.training.reward_schedule import parse_schedules
from anyo_rl.training.reward_setup import check_rewards
from anyo_rl.training.reward_timeout import limit_time
from anyo_rl.warm_start import parse_warm_start, train_warm_start
from reward.load import load_rewards

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Parse, build, train, evaluate, save."""
    data_args, model_args, teacher_args, reasoner_args, training_args, config = parse(
        (DataArguments, ModelConfig, TeacherArguments, PpoArguments, GRPOConfig),
        default_config=CONFIGS / "toy" / "ppo_teacher.yaml",
        defaults={"num_generations_eval": 1},  # validation does not sample by groups
    )
    logging.basicConfig(level=logging.INFO if PartialState().is_main_process else logging.ERROR, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request of a reward
    check_launch()
    with plain_errors(ValueError, OSError, ServerError):
        rewards = load_rewards(reasoner_args.reward_funcs, reasoner_args.reward_kwargs)
        parse_schedules(reasoner_args.reward_schedules, reasoner_args.reward_funcs)
        rewards = limit_time(rewards, reasoner_args.reward_timeout_s, reasoner_args.reward_on_timeout)
        check_rewards(rewards, training_args)
        check_saves(training_args)
        reasoner_args.ppo()  # a wrong setting, or no PRM, is said before a warm start
    with plain_errors(ValueError):
        warm_start = parse_warm_start(reasoner_args, config, training_args, teacher_args)
    arguments = resolve(data_args, model_args, teacher_args, reasoner_args, training_args)
    arguments |= warm_start.arguments() if warm_start else {}
    task = load_task(data_args)
    run_dir = Path(training_args.output_dir)
    start_run(run_dir, arguments, task.report)

    chat_template_kwargs = training_args.chat_template_kwargs
    teachers = train_warm_start(run_dir, task, model_args, warm_start, chat_template_kwargs=chat_template_kwargs)
    teachers["ppo"] = train_reasoning(
        run_dir, task, teachers["sft"], model_args, teacher_args, reasoner_args, training_args, rewards
    )
    summary = evaluate_run(
        run_dir,
        task,
        teachers,
        model_args,
        teacher_args,
        baselines=reasoner_args.baselines,
        seed=training_args.seed,
        chat_template_kwargs=chat_template_kwargs,
    )
    if summary is not None:
        print(console_table(summary))
        print(f"report: {run_dir / 'report.html'}")


if __name__ == "__main__":
    main()
