"""Trains a teacher on whole sequences: each user's once, the next item learned at every event (docs/pretrain.md).

    accelerate launch recipes/pretrain_teacher.py
    accelerate launch recipes/pretrain_teacher.py --config recipes/configs/ml-100k/pretrain_teacher.yaml

It ends with the evaluation on the test users, who are answered at once, as by `direct`. SFT goes on from it with
`--model_name_or_path runs/toy-pretrain/pretrain/teacher`, and the same items and prompts.
"""

from dataclasses import dataclass, field
from pathlib import Path

from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.evaluation.stages import PRETRAIN
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import begin, plain_errors, start_job
from anyo_rl.stages.evaluate import evaluate_run, show
from anyo_rl.stages.pretrain import SequenceArguments, pretrain

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class PretrainRecipeArguments(SequenceArguments):
    """Settings of this recipe alone."""

    baselines: bool = field(
        default=False, metadata={"help": "Also evaluate popularity, item-kNN and SASRec.", "free": True}
    )


@plain_errors()
def main() -> None:
    """Begin; the sequence stage; evaluate, print."""
    args, data_args, model_args, teacher_args, training_args, _ = begin(
        (PretrainRecipeArguments, DataArguments, ModelConfig, TeacherArguments, SFTConfig),
        default_config=CONFIGS / "toy" / "pretrain_teacher.yaml",
    )
    job = start_job(data_args, model_args, teacher_args, training_args, args)

    teacher = pretrain(job, PRETRAIN.name, training_args, args)
    show(job, evaluate_run(job, {PRETRAIN.name: teacher}, baselines=args.baselines), teacher)


if __name__ == "__main__":
    main()
