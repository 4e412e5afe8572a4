"""Trains a teacher by SFT: to reason before it answers, or, with `--reasoning false`, to answer at once.

    accelerate launch recipes/sft_teacher.py
    accelerate launch recipes/sft_teacher.py --config recipes/configs/ml-100k/sft_teacher.yaml --reasoning false

It ends with the teacher's evaluation on the test users; `--baselines true` adds popularity, item-kNN and SASRec.
"""

from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import begin, plain_errors, start_job
from anyo_rl.stages.evaluate import evaluate_run, show
from anyo_rl.stages.sft import DIRECTLY, Lesson, train_sft

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class SFTRecipeArguments:
    """Settings of this recipe alone."""

    reasoning: bool = field(
        default=True, metadata={"help": "Reason before the answer, or answer at once (direct).", "free": True}
    )
    baselines: bool = field(
        default=False, metadata={"help": "Also evaluate popularity, item-kNN and SASRec.", "free": True}
    )


@plain_errors()
def main() -> None:
    """Begin; SFT; evaluate, print."""
    args, data_args, model_args, teacher_args, training_args, _ = begin(
        (SFTRecipeArguments, DataArguments, ModelConfig, TeacherArguments, SFTConfig),
        default_config=CONFIGS / "toy" / "sft_teacher.yaml",
    )
    job = start_job(data_args, model_args, teacher_args, training_args, args)

    stage = "sft" if args.reasoning else "direct"
    teacher = train_sft(job, stage, training_args, Lesson() if args.reasoning else DIRECTLY)
    show(job, evaluate_run(job, {stage: teacher}, baselines=args.baselines), teacher)


if __name__ == "__main__":
    main()
