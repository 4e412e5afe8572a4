"""Trains a process reward model: what a reasoning is worth after each step, fitted to the values of sampled paths.

    accelerate launch recipes/train_prm.py --model_name_or_path runs/toy/sft/teacher --paths runs/toy-paths

The paths are those of a sampling job (a folder of shards) or a parquet file of the paths table, sampled from the
teacher that is named for training examples. They are labelled here, and so are paths of validation users, which are
sampled here too: they choose the checkpoint, and say how far its scores can be trusted (`prm/quality.md`). A teacher
that was never trained to answer early is labelled by `--step_values monte_carlo`, and an LLM can label (`judge`).
"""

from pathlib import Path

from transformers import TrainingArguments
from trl import ModelConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.evaluation.prm_quality import markdown
from anyo_rl.run.launch import go_on_alone
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import begin, plain_errors, start_job
from anyo_rl.stages.dpo import check_start
from anyo_rl.stages.prm import PrmArguments, measure_prm, train_prm

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Begin; labels and PRM; its quality, print."""
    data_args, model_args, teacher_args, prm_args, training_args, _ = begin(
        (DataArguments, ModelConfig, TeacherArguments, PrmArguments, TrainingArguments),
        default_config=CONFIGS / "toy" / "train_prm.yaml",
    )
    start = check_start(model_args, prm_args.paths)
    with plain_errors(ValueError, OSError):
        judge = prm_args.asked()
    job = start_job(
        *(data_args, model_args, teacher_args, training_args, prm_args),
        chat_template_kwargs=prm_args.chat_template_kwargs,
        **judge,
    )

    model = train_prm(job, start, prm_args, training_args)
    if go_on_alone():
        print(markdown(measure_prm(job, start)))
        print(f"PRM: {model}\nquality: {model.parent / 'quality.md'}")


if __name__ == "__main__":
    main()
