"""SFT as a stage of a run: a teacher that reasons, or (`direct`) one that answers at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import Dataset
from transformers import TrainerCallback
from trl import SFTConfig

from anyo_rl.catalog.item_tokens import adapters
from anyo_rl.catalog.opening import Teacher
from anyo_rl.run.folder import METRICS
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.finish import finish_stage
from anyo_rl.stages.job import Job
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.teacher.policy import set_attention_dropout
from anyo_rl.training.lazy import LENGTH, as_stored, joined
from anyo_rl.training.loop.callbacks import MetricsFile, keep_best, stopping
from anyo_rl.training.loop.closing import forget_last_trainer
from anyo_rl.training.sft import TeacherSFTTrainer, sft_dataset

Reasoning = Literal["before", "after", "none"]


@dataclass(frozen=True)
class Lesson:
    """What SFT teaches.

    Attributes:
        reasoning: where the reasoning stands: `before` the item; `after` it, which is what the rationales teach one
            who does not read them; `none` for the `direct` teacher, which answers at once.
        rationales: example id to one reasoning or more; the task's rationales if `None`.
        hint_share: share of the task's rationales that are also shown with the target as a hint.
        dropout: of the attention's weights, in training alone; the model's own if `None`.
    """

    reasoning: Reasoning = "before"
    rationales: Mapping[str, Sequence[Sequence[str]]] | None = None
    hint_share: float = 0.0
    dropout: float | None = None


DIRECTLY = Lesson("none")


def train_sft(
    job: Job,
    stage: str,
    training_args: SFTConfig,
    lesson: Lesson = Lesson(),
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Trains a teacher by SFT.

    Args:
        job: of the run; the path in its `model_args` is what training starts from.
        stage: name of the stage and of its folder.
        training_args: TRL's settings.
        lesson: what it learns.
        callbacks: of the trainer, besides those of every stage.

    Returns:
        The folder of the finished teacher; if it is there already nothing is done.

    Raises:
        ValueError: an example is longer than `max_length`.
    """
    if job.teacher_folder(stage).exists():
        return job.teacher_folder(stage)
    start = job.model_args.model_name_or_path
    teacher = job.opening.load(start)
    rationales = job.task.rationales if lesson.rationales is None else lesson.rationales
    reasons = lesson.reasoning == "before"
    rows = job.rows("train", teacher)
    dataset = sft_dataset(
        rows.of(rationales) if reasons else rows,
        teacher.answers,
        teacher.tokens,
        None if lesson.reasoning == "none" else rationales,
        item_first=lesson.reasoning == "after",
        early_share=job.teacher_args.early_answer_share if reasons else 0.0,
        seed=training_args.seed,
    )
    if lesson.hint_share:
        dataset = joined(dataset, hinted_dataset(job, teacher, lesson.hint_share))
    aligned = job.alignment_rows(teacher, len(dataset), training_args.seed, reasons=reasons)
    if aligned is not None:
        steps = aligned.rationales if reasons else None
        dataset = joined(dataset, sft_dataset(aligned, teacher.answers, teacher.tokens, steps))
    longest = max(as_stored(dataset)[LENGTH][:])
    if training_args.max_length is not None and longest > training_args.max_length:
        raise UsageError(
            f"an example takes {longest} tokens and max_length is {training_args.max_length}, which would cut its "
            f"answer off; raise max_length or lower history_tokens"
        )
    stop_at_marker(teacher.model, teacher.tokens)
    if lesson.dropout is not None:
        set_attention_dropout(teacher.model, lesson.dropout)
    forget_last_trainer()
    trainer = TeacherSFTTrainer(
        model=teacher.model,
        args=keep_best(training_args, job.folder / stage),
        train_dataset=dataset,
        processing_class=teacher.tokens.tokenizer,
        peft_config=adapters(job.model_args, teacher.model, teacher.tokens.tokenizer, teacher.ids),
        catalog=teacher.answers,
        # The weight of items keeps few targets from being learned by heart; at once one answers from all examples.
        loss=job.teacher_args.sft_loss if reasons else replace(job.teacher_args.sft_loss, item_weight=1.0),
        validation=job.validation(teacher, None if reasons else "plain"),
        callbacks=[
            *stopping(job.teacher_args.early_stopping_patience),
            MetricsFile(job.folder / METRICS, stage),
            *callbacks,
        ],
    )
    ids = teacher.ids
    return finish_stage(job, stage, trainer, teacher, lambda: job.opening.weights(start, ids)[0])


def hinted_dataset(job: Job, teacher: Teacher, share: float) -> Dataset:
    """A share of the task's rationales, after prompts with the target as a hint: so hints mean something to STaR."""
    task = job.task
    ids = np.array(sorted(task.rationales))
    drawn = np.random.default_rng(task.args.split_seed).permutation(ids)[: max(1, round(share * len(ids)))]
    rows = job.rows("train", teacher).of(drawn.tolist()).hinted()
    return sft_dataset(rows, teacher.answers, teacher.tokens, task.rationales)
