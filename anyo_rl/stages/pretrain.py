"""The sequence stage of a run: a teacher that has read each user's sequence once, and answers at once."""

from dataclasses import dataclass, field
from pathlib import Path

from trl import SFTConfig

from anyo_rl.catalog.item_tokens import adapters
from anyo_rl.data.sequences import train_sequences
from anyo_rl.run.folder import METRICS
from anyo_rl.run.settings import Bounds, UsageError
from anyo_rl.stages.finish import finish_stage
from anyo_rl.stages.job import Job
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.teacher.policy import set_attention_dropout, set_residual_dropout
from anyo_rl.training.aligned import aligned_sequences
from anyo_rl.training.lazy import LENGTH, as_stored, joined
from anyo_rl.training.loop.callbacks import MetricsFile, keep_best, stopping
from anyo_rl.training.loop.closing import forget_last_trainer
from anyo_rl.training.sequence import Reading, SequenceTrainer, sequence_dataset


@dataclass
class SequenceArguments:
    """How users' sequences are read as a whole."""

    max_events: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(1, 100_000),
            "help": "Longest history that is read at once, max_history if unset; longer sequences are cut into "
            "windows.",
        },
    )
    asked_share: float = field(
        default=1.0,
        metadata={
            "bounds": Bounds(0, 1),
            "help": "Share of the events that are asked as a prompt asks; the others are read off at the end of the "
            "line before them, for a third of the price (item_tokens item alone).",
        },
    )
    cuttings: int = field(
        default=4,
        metadata={
            "bounds": Bounds(1, 1000),
            "help": "In how many ways long sequences are cut, so that no event always has a short history; an epoch "
            "reads each sequence so often.",
        },
    )
    dropout: float = field(
        default=0.0,
        metadata={
            "bounds": Bounds(0, 0.9),
            "help": "Of embeddings, attention and both blocks of a layer, while training: small data from random "
            "weights need some .3.",
        },
    )

    def reading(self, max_history: int) -> Reading:
        """How sequences are read where prompts show `max_history` events."""
        return Reading(self.max_events or max_history, self.asked_share, self.cuttings)


def pretrain(job: Job, stage: str, training_args: SFTConfig, args: SequenceArguments) -> Path:
    """Trains a teacher on whole sequences.

    Args:
        job: of the run; the path in its `model_args` is what training starts from.
        stage: name of the stage and of its folder.
        training_args: TRL's settings.
        args: how sequences are read.

    Returns:
        The folder of the finished teacher, which SFT and reinforcement can start from; if it is there already nothing
        is done.

    Raises:
        ValueError: a window is longer than `max_length`; see also `sequence_dataset` and `SequenceTrainer`.
    """
    if job.teacher_folder(stage).exists():
        return job.teacher_folder(stage)
    start = job.model_args.model_name_or_path
    teacher = job.opening.load(start)
    reading = args.reading(job.task.args.max_history)
    dataset = sequence_dataset(
        job.task,
        train_sequences(job.task, teacher.catalog.index),
        teacher.catalog,
        teacher.tokens,
        reading,
        seed=training_args.seed,
    )
    aligned = job.alignment_rows(teacher, len(dataset), training_args.seed, reasons=False)
    if aligned is not None:
        dataset = joined(dataset, aligned_sequences(aligned, teacher.catalog, teacher.tokens))
    longest = max(as_stored(dataset)[LENGTH][:])
    if training_args.max_length is not None and longest > training_args.max_length:
        raise UsageError(
            f"a window of {reading.max_events} events takes {longest} tokens with its answers and max_length is "
            f"{training_args.max_length}; raise max_length or lower max_events"
        )
    stop_at_marker(teacher.model, teacher.tokens)
    if args.dropout:
        set_attention_dropout(teacher.model, args.dropout)
        set_residual_dropout(teacher.model, args.dropout)
    forget_last_trainer()
    trainer = SequenceTrainer(
        model=teacher.model,
        args=keep_best(training_args, job.folder / stage),
        train_dataset=dataset,
        processing_class=teacher.tokens.tokenizer,
        peft_config=adapters(job.model_args, teacher.model, teacher.tokens.tokenizer, teacher.ids),
        catalog=teacher.catalog,
        validation=job.validation(teacher, "plain"),
        callbacks=[
            *stopping(job.teacher_args.early_stopping_patience),
            MetricsFile(job.folder / METRICS, stage),
        ],
    )
    ids = teacher.ids
    return finish_stage(job, stage, trainer, teacher, lambda: job.opening.weights(start, ids)[0])
