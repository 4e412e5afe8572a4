"""The fair comparison of a reasoning teacher: `direct` trained to convergence, controls, an ensemble, three seeds.

    accelerate launch recipes/compare.py --config recipes/configs/toy/compare.yaml
    accelerate launch recipes/compare.py --config recipes/configs/ml-100k/grpo_teacher.yaml --output_dir runs/fair

It takes what `recipes/grpo_teacher.py` takes, and trains that recipe's teacher with every seed. What claims are made
on is measured here: the quick table of a single run is for a look. It takes hours where a run takes minutes; killed
and started again it goes on. docs/comparison.md says what is trained, and by which rules.
"""

from dataclasses import asdict
from functools import partial
from pathlib import Path

from trl import GRPOConfig, ModelConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.evaluation.table import console_table
from anyo_rl.run.folder import ROUNDS
from anyo_rl.stages.arguments import GrpoArguments, TeacherArguments
from anyo_rl.stages.begin import begin, plain_errors, start_job
from anyo_rl.stages.compare import CompareArguments, Comparison
from anyo_rl.stages.path_arguments import StarArguments
from anyo_rl.stages.reinforce import checked_method, checked_rewards
from anyo_rl.stages.warm_start import parse_beside, parse_warm_start, recorded
from reward.load import load_rewards

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Begin; train every seed; evaluate, print."""
    args, data_args, model_args, teacher_args, grpo_args, training_args, config = begin(
        (CompareArguments, DataArguments, ModelConfig, TeacherArguments, GrpoArguments, GRPOConfig),
        default_config=CONFIGS / "toy" / "compare.yaml",
        defaults={"num_generations_eval": 1, "train_direct": False},  # direct is trained to convergence instead
    )
    with plain_errors(ValueError, OSError):
        rewards = partial(checked_rewards, load_rewards, grpo_args, training_args)
        rewards()
        checked_method(grpo_args, training_args, model_args)
        warm_start = parse_warm_start(grpo_args, config, training_args, teacher_args)
        if warm_start is None:
            raise ValueError("a comparison trains its teachers from the start: name an sft_config")
        rounds, of_rounds = None, {}
        if args.star_config:
            *_, star_args, _, star_training_args = parse_beside(args.star_config, config, training_args, StarArguments)
            rounds, of_rounds = (star_args, star_training_args), {ROUNDS: star_training_args.to_dict()}
            of_rounds[ROUNDS] |= asdict(star_args)
    job = start_job(
        *(data_args, model_args, teacher_args, training_args, grpo_args, args), **recorded(warm_start), **of_rounds
    )

    comparison = Comparison(job, args, warm_start, grpo_args, training_args, rewards, rounds)
    teachers = {seed: comparison.train(seed) for seed in args.seeds}
    summary = comparison.evaluate(teachers, baselines=grpo_args.baselines)
    if summary is not None:
        print(console_table(summary))
        print(f"report: {job.folder / 'evaluation.md'}, and report.html of each seed")


if __name__ == "__main__":
    main()
