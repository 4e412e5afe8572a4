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
from anyo_rl.evaluation.table import console_table
from anyo_rl.stages.arguments import GrpoArguments, TeacherArguments, parse, plain_errors
from anyo_rl.stages.reinforce import reinforce
from reward.load import load_rewards

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Parse, train, evaluate, report."""
    *arguments, training_args, config = parse(
        (DataArguments, ModelConfig, TeacherArguments, GrpoArguments, GRPOConfig),
        default_config=CONFIGS / "toy" / "grpo_teacher.yaml",
        defaults={"num_generations_eval": 1},  # validation does not sample by groups
    )
    summary = reinforce(*arguments, training_args, config, load_rewards)
    if summary is not None:
        print(console_table(summary))
        print(f"report: {Path(training_args.output_dir) / 'report.html'}")


if __name__ == "__main__":
    main()
