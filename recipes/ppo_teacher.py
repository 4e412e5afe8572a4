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
from anyo_rl.evaluation.table import console_table
from anyo_rl.stages.arguments import PpoArguments, TeacherArguments, parse, plain_errors
from anyo_rl.stages.reinforce import reinforce
from reward.load import load_rewards

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Parse, train, evaluate, report."""
    *arguments, training_args, config = parse(
        (DataArguments, ModelConfig, TeacherArguments, PpoArguments, GRPOConfig),
        default_config=CONFIGS / "toy" / "ppo_teacher.yaml",
        defaults={"num_generations_eval": 1},  # validation does not sample by groups
    )
    summary = reinforce(*arguments, training_args, config, load_rewards)
    if summary is not None:
        print(console_table(summary))
        print(f"report: {Path(training_args.output_dir) / 'report.html'}")


if __name__ == "__main__":
    main()
