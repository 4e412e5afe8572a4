"""SFT as a stage of a run: a teacher that reasons, or (`direct`) one that answers at once."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from accelerate.state import AcceleratorState
from datasets import Dataset, concatenate_datasets
from trl import ModelConfig, SFTConfig

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.catalog.item_tokens import adapters, semantic_ids
from anyo_rl.data.task import Task
from anyo_rl.reasoning.rows import hinted_prompt, make_rows
from anyo_rl.run.folder import METRICS
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.finish import finish_stage, teacher_folder, validation
from anyo_rl.stages.opening import make_teacher
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.loop.callbacks import MetricsFile, keep_best, stopping
from anyo_rl.training.sft import TeacherSFTTrainer, sft_dataset


def train_sft(
    run_dir: Path,
    task: Task,
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    training_args: SFTConfig,
    stage: str,
    *,
    reasoning: bool,
    rationales: Mapping[str, Sequence[Sequence[str]]] | None = None,
    hint_share: float = 0.0,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Path:
    """Trains a teacher by SFT: on reasonings, or (`reasoning=False`, the `direct` teacher) to answer at once.

    Args:
        run_dir: the run folder.
        task: the data.
        model_args: how the model is loaded, and its adapters.
        teacher_args: how a tiny teacher is made and how teachers are validated.
        training_args: TRL's settings.
        stage: name of the stage and of its folder.
        reasoning: whether the teacher learns to reason.
        rationales: example id to one reasoning or more; the task's rationales if `None`.
        hint_share: share of the task's rationales that are also shown with the target as a hint.
        chat_template_kwargs: what the chat template is told.

    Returns:
        The folder of the finished teacher; if it is there already nothing is done.

    Raises:
        ValueError: an example is longer than `max_length`.
    """
    folder = teacher_folder(run_dir / stage)
    if folder.exists():
        return folder
    make = partial(make_teacher, model_args, teacher_args, task, training_args.seed)
    ids = semantic_ids(run_dir, task, teacher_args, model_args.model_name_or_path, make, training_args.seed)
    make = partial(make, ids=ids)
    model, tokenizer = make()
    tokens = Tokens.of(tokenizer, teacher_args.marker_token, chat_template_kwargs)
    catalog = build_catalog(task.interactions.items, tokens, ids)
    rationales = task.rationales if rationales is None else rationales
    train = task.split("train")
    if reasoning:
        train = train.filter(pl.col("example_id").is_in(list(rationales)))
    early = teacher_args.early_answer_share if reasoning else 0.0
    dataset = sft_dataset(
        *(make_rows(task, train, catalog, tokens), catalog, tokens, rationales if reasoning else None),
        early_share=early,
        seed=training_args.seed,
    )
    if hint_share:
        dataset = concatenate_datasets([dataset, hinted_dataset(task, catalog, tokens, hint_share)])
    longest = max(map(len, dataset["input_ids"]))
    if training_args.max_length is not None and longest > training_args.max_length:
        raise ValueError(
            f"an example takes {longest} tokens and max_length is {training_args.max_length}, which would cut its "
            f"answer off; raise max_length or lower history_tokens"
        )
    training_args = keep_best(training_args, run_dir / stage)
    stop_at_marker(model, tokens)
    AcceleratorState._reset_state()  # DeepSpeed would hold the last stage's batch size against this one's
    trainer = TeacherSFTTrainer(
        model=model,
        args=training_args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=adapters(model_args, model, tokenizer, ids),
        validation=validation(task, catalog, tokens, teacher_args, teacher_args.eval_mode if reasoning else "plain"),
        callbacks=[*stopping(teacher_args.early_stopping_patience), MetricsFile(run_dir / METRICS, stage)],
    )
    finish_stage(trainer, run_dir / stage, tokens, lambda: make()[0], ids)
    return folder


def hinted_dataset(task: Task, catalog: Catalog, tokens: Tokens, share: float) -> Dataset:
    """A share of the task's rationales, after prompts with the target as a hint: so hints mean something to STaR."""
    ids = np.array(sorted(task.rationales))
    drawn = np.random.default_rng(task.args.split_seed).permutation(ids)[: max(1, round(share * len(ids)))]
    rows = make_rows(task, task.split("train").filter(pl.col("example_id").is_in(drawn.tolist())), catalog, tokens)
    rows = [{**row, "prompt": hinted_prompt(task, row, catalog, tokens)} for row in rows]
    return sft_dataset(rows, catalog, tokens, task.rationales)
