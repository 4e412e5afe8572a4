"""Reason distillation: a small language model learns to reason from a teacher, first its paths, then on its own.

taught/paths/        what the teacher wrote for training examples, in shards
taught/kept.parquet  of these what the small model is taught (`anyo_rl.stages.kept_paths`)
taught/teacher/      the small model after SFT on them
distilled/teacher/   the same after on-policy distillation
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerBase
from trl import DistillationConfig

from anyo_rl.catalog.item_tokens import adapters
from anyo_rl.evaluation.stages import DISTILLED, TAUGHT
from anyo_rl.run.folder import METRICS
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.settings import Bounds, UsageError
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.stages.candidates import items_only
from anyo_rl.stages.finish import finish_stage
from anyo_rl.stages.fusion import training_fusion
from anyo_rl.stages.job import Job
from anyo_rl.stages.kept_paths import KeptPaths, training_places
from anyo_rl.stages.path_arguments import PathArguments
from anyo_rl.stages.sft import Lesson, train_sft
from anyo_rl.stages.warm_start import WarmStart
from anyo_rl.teacher.load import load_tokenizer, stop_at_marker
from anyo_rl.training.distillation import ReasoningDistiller
from anyo_rl.training.loop.callbacks import MetricsFile, keep_best, stopping
from anyo_rl.training.loop.closing import forget_last_trainer
from anyo_rl.training.rewards.setup import prompts_dataset
from anyo_rl.training.star import reasonings


@dataclass
class DistillReasoningArguments(PathArguments):
    """What a small language model learns from, and how."""

    teacher: str = field(
        default="", metadata={"help": "The teacher: a folder such as RUN/grpo/teacher, of the same data and tokens."}
    )
    n_samples: int = field(default=4, metadata={"bounds": Bounds(1), "help": "Paths sampled of each example."})
    max_examples: int | None = field(
        default=None, metadata={"bounds": Bounds(1), "help": "Most training examples that paths are sampled of."}
    )
    rationalise: bool = field(
        default=False, metadata={"help": "Sample again, with the target as a hint, where no path was kept."}
    )
    on_policy: bool = field(
        default=True, metadata={"help": "Go on, after SFT on the teacher's paths, with what the small model writes."}
    )
    item_loss_weight: float = field(
        default=0.3, metadata={"bounds": Bounds(0), "help": "Weight of −log p(target) in on-policy distillation."}
    )


def check_teacher(args: DistillReasoningArguments) -> str:
    """The teacher's path.

    Raises:
        UsageError: there is none.
    """
    if not args.teacher:
        raise UsageError("no teacher: name a finished one, such as --teacher runs/toy/grpo/teacher")
    return args.teacher


def teach(
    job: Job, teacher: Path | str, args: DistillReasoningArguments, warm_start: WarmStart, sampling: Sampling
) -> Path:
    """SFT of the small model on the paths of its teacher that lead to the target.

    Args:
        job: of the run; its model is the small one.
        teacher: samples the paths.
        args: which paths.
        warm_start: settings of SFT.
        sampling: how paths are sampled, and the seed.

    Returns:
        The folder of the small model; if it is there already nothing is done.

    Raises:
        UsageError: no path is good enough, or the two have other tokens.
    """
    if job.teacher_folder(TAUGHT.name).exists():
        return job.teacher_folder(TAUGHT.name)
    check_same_tokens(job, teacher)
    patient = dataclasses.replace(job, teacher_args=warm_start.teacher_args)
    fusion = training_fusion(job, TAUGHT.name, teacher, args)
    places = training_places(job, args, sampling.seed, 1, fusion)
    paths = KeptPaths(job, args, job.folder / TAUGHT.name, "teacher", sampling, places, fusion).kept(teacher)
    return train_sft(patient, TAUGHT.name, warm_start.training_args, Lesson(rationales=reasonings(paths)))


def distill(
    job: Job, start: Path | str, teacher: Path | str, item_loss_weight: float, training_args: DistillationConfig
) -> Path:
    """On-policy distillation of a teacher's reasoning.

    Args:
        job: of the run.
        start: the small model.
        teacher: says how it would go on.
        item_loss_weight: weight of −log p(target | its own reasoning).
        training_args: TRL's settings.

    Returns:
        The folder of the small model; if it is there already nothing is done.

    Raises:
        UsageError: the two have other tokens.
    """
    items_only(job.asking.kind, "reason distillation")
    stage = DISTILLED.name
    if job.teacher_folder(stage).exists():
        return job.teacher_folder(stage)
    opening = job.opening
    student = opening.load(start)
    ids, tokenizer = student.ids, student.tokens.tokenizer
    with whole_weights():
        teacher_model, of_teacher = opening.weights(teacher, ids)
    check_vocabularies(tokenizer, of_teacher, teacher)
    training_args = keep_best(training_args, job.folder / stage)
    training_args.max_completion_length = job.max_reasoning_tokens
    stop_at_marker(student.model, student.tokens)
    forget_last_trainer()
    trainer = ReasoningDistiller(
        model=student.model,
        teacher_model=teacher_model,
        args=training_args,
        train_dataset=prompts_dataset(job.rows("train", student)),
        processing_class=tokenizer,
        peft_config=adapters(opening.of_path(start), student.model, tokenizer, ids),
        catalog=student.catalog,
        tokens=student.tokens,
        validation=job.validation(student),
        item_loss_weight=item_loss_weight,
        callbacks=[*stopping(job.teacher_args.early_stopping_patience), MetricsFile(job.folder / METRICS, stage)],
    )
    return finish_stage(job, stage, trainer, student, lambda: opening.weights(start, ids)[0])


def check_same_tokens(job: Job, teacher: Path | str) -> None:
    """Refuses a teacher whose tokens the small model does not have, before anything is sampled.

    Raises:
        UsageError: as `check_vocabularies`.
    """
    own = job.opening.load(job.model_args.model_name_or_path)
    check_vocabularies(own.tokens.tokenizer, load_tokenizer(job.opening.of_path(teacher)), teacher)
    own.close()


def check_vocabularies(own: PreTrainedTokenizerBase, of_teacher: PreTrainedTokenizerBase, teacher: Path | str) -> None:
    """Refuses two tokenizers that are not the same.

    Raises:
        UsageError: says how many tokens they have, and share.
    """
    ours, theirs = own.get_vocab(), of_teacher.get_vocab()
    if ours != theirs:
        shared = len(ours.items() & theirs.items())
        raise UsageError(
            f"the small model has {len(ours)} tokens and {teacher} has {len(theirs)}, of which {shared} are the same: "
            f"both need one vocabulary. Take a smaller model of the teacher's family, or, for teachers made from "
            f"scratch, the same data, tiny_vocab_size and item_tokens"
        )
