"""Lets a teacher make its own training data: it samples reasonings, and is trained on those that lead to the target.

    accelerate launch recipes/star_teacher.py
    accelerate launch recipes/star_teacher.py --config recipes/configs/ml-100k/star_teacher.yaml
    accelerate launch recipes/star_teacher.py --rounds 1 --n_samples 16 --most_per_example 1 --rationalise false \
        --output_dir runs/rejection   # rejection sampling: the best of 16

With no arguments it runs on the embedded toy world: a warm start by SFT on the rationales of a few users, rounds of
STaR on all users, the same teacher without reasoning, baselines, and a report. Run again, it goes on from where it
was.
"""

from pathlib import Path

from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import begin, plain_errors, start_job
from anyo_rl.stages.evaluate import evaluate_run, show
from anyo_rl.stages.path_arguments import StarArguments
from anyo_rl.stages.star import Star
from anyo_rl.stages.warm_start import parse_warm_start, recorded, train_direct, train_warm_start

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Begin; warm start, rounds of STaR; evaluate, print."""
    data_args, model_args, teacher_args, star_args, training_args, config = begin(
        (DataArguments, ModelConfig, TeacherArguments, StarArguments, SFTConfig),
        default_config=CONFIGS / "toy" / "star_teacher.yaml",
    )
    with plain_errors(ValueError):
        warm_start = parse_warm_start(star_args, config, training_args, teacher_args)
    job = start_job(data_args, model_args, teacher_args, training_args, star_args, **recorded(warm_start))

    teachers = train_warm_start(job, warm_start, hint_share=star_args.hint_share)
    teachers["star"] = Star(job, star_args, training_args).train(teachers["sft"])
    teachers |= train_direct(job, warm_start)
    show(job, evaluate_run(job, teachers, baselines=star_args.baselines))


if __name__ == "__main__":
    main()
