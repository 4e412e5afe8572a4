"""Trains a teacher by SFT: to reason before it answers, or, with `--reasoning false`, to answer at once.

accelerate launch recipes/sft_teacher.py
accelerate launch recipes/sft_teacher.py --config recipes/configs/ml-100k/sft_teacher.yaml --reasoning false
"""

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import PartialState
from trl import ModelConfig, SFTConfig

from anyo_rl.config import TeacherArguments, parse, plain_errors
from anyo_rl.launch import check_launch
from anyo_rl.stages import start_run, train_sft
from anyo_rl.task import DataArguments, load_task

CONFIGS = Path(__file__).parent / "configs"


@dataclass
class SFTRecipeArguments:
    """What this recipe alone is told."""

    reasoning: bool = field(default=True, metadata={"help": "Reason before the answer, or answer at once (direct)."})


@plain_errors()
def main() -> None:
    """Parse, build, train, save."""
    recipe_args, data_args, model_args, teacher_args, training_args, _ = parse(
        (SFTRecipeArguments, DataArguments, ModelConfig, TeacherArguments, SFTConfig),
        default_config=CONFIGS / "toy" / "sft_teacher.yaml",
    )
    logging.basicConfig(level=logging.INFO if PartialState().is_main_process else logging.ERROR, format="%(message)s")
    check_launch()
    task = load_task(data_args)
    run_dir = Path(training_args.output_dir)
    if PartialState().is_main_process:
        resolved = (recipe_args, data_args, model_args, teacher_args)
        arguments = {type(a).__name__: dataclasses.asdict(a) for a in resolved}
        start_run(run_dir, {**arguments, "SFTConfig": training_args.to_dict()})
    stage = "sft" if recipe_args.reasoning else "direct"
    teacher = train_sft(run_dir, task, model_args, teacher_args, training_args, stage, reasoning=recipe_args.reasoning)
    if PartialState().is_main_process:
        print(f"teacher: {teacher}")
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
