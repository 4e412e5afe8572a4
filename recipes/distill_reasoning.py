"""Teaches a small language model to reason as a teacher does: on the teacher's paths, then on its own.

    accelerate launch recipes/distill_reasoning.py --teacher runs/toy/grpo/teacher
    accelerate launch recipes/distill_reasoning.py --teacher runs/toy/grpo/teacher --on_policy false \
        --least_gain 0.5 --n_samples 8 --output_dir runs/toy-taught

The teacher samples paths of training examples, and those that lead to the target are what the small model is taught
by SFT. After that it reasons by itself, and is moved towards what the teacher would have written at each token (TRL's
`DistillationTrainer`). The table has the teacher, both stages of the small model, and the small model without
reasoning. Run again, it goes on from where it was.
"""

from pathlib import Path

from trl import DistillationConfig, ModelConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.evaluation.stages import DISTILLED, TAUGHT, TEACHER
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import begin, plain_errors, start_job
from anyo_rl.stages.distill_reasoning import DistillReasoningArguments, check_teacher, distill, teach
from anyo_rl.stages.evaluate import evaluate_run, show
from anyo_rl.stages.warm_start import parse_warm_start, recorded, train_direct

CONFIGS = Path(__file__).parent / "configs"


@plain_errors()
def main() -> None:
    """Begin; teach, distil; evaluate, print."""
    data_args, model_args, teacher_args, args, training_args, config = begin(
        (DataArguments, ModelConfig, TeacherArguments, DistillReasoningArguments, DistillationConfig),
        default_config=CONFIGS / "toy" / "distill_reasoning.yaml",
    )
    with plain_errors(ValueError):
        teacher = check_teacher(args)
        warm_start = parse_warm_start(args, config, training_args, teacher_args)
        if warm_start is None:
            raise ValueError("the small model is taught before it goes on by itself: name an sft_config")
    job = start_job(
        *(data_args, model_args, teacher_args, training_args, args),
        chat_template_kwargs=training_args.chat_template_kwargs,
        **recorded(warm_start),
    )

    sampling = Sampling(
        args.n_samples, training_args.temperature, training_args.top_p, job.max_reasoning_tokens, training_args.seed
    )
    models = {TEACHER.name: teacher, TAUGHT.name: teach(job, teacher, args, warm_start, sampling)}
    if args.on_policy:
        models[DISTILLED.name] = distill(job, models[TAUGHT.name], teacher, args.item_loss_weight, training_args)
    models |= train_direct(job, warm_start)
    show(job, evaluate_run(job, models, baselines=args.baselines))


if __name__ == "__main__":
    main()
