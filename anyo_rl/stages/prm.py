"""A process reward model as a stage of a run: label paths, train, measure on validation users.

    prm/validation/            paths of validation users, sampled in shards
    prm/labels/train.parquet, prm/labels/validation.parquet    paths with the values of their states
    prm/judge/                 answers of a judge, where it labels
    prm/model/                 the model with the least validation loss
    prm/quality.json, prm/quality.md, prm/calibration.svg      how far its scores can be trusted

Each is there whole or not at all and is not made again, quality aside.
"""

import dataclasses
import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from accelerate import PartialState
from accelerate.state import AcceleratorState
from transformers import AutoModelForTokenClassification, PreTrainedModel, TrainingArguments, set_seed
from trl import ModelConfig, get_peft_config

from anyo_rl.data.schema import DataError
from anyo_rl.data.task import Task
from anyo_rl.evaluation.prm_quality import calibration_svg, markdown, quality
from anyo_rl.evaluation.true_value import truth
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.reasoning.rows import Row, make_rows
from anyo_rl.run.files import write_table, write_whole
from anyo_rl.run.folder import METRICS
from anyo_rl.run.launch import whole_weights
from anyo_rl.sampling.shards import partition, read_paths
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.stages.arguments import PrmArguments, TeacherArguments
from anyo_rl.stages.dpo import load_paths
from anyo_rl.stages.finish import load_checkpoint
from anyo_rl.stages.opening import OpenTeacher, open_teacher
from anyo_rl.stages.sample import JobEngine, path_ranker, sample_in_shards
from anyo_rl.teacher.load import load_tokenizer
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.dpo import check_paths
from anyo_rl.training.loop.callbacks import MetricsFile, best_checkpoint, keep_best, stopping, train_to_the_end
from anyo_rl.training.prm import LOSS, PrmTrainer, load_classifier, prm_dataset
from anyo_rl.values.prm import PRM_FILE, Prm, label_paths
from anyo_rl.values.step_values import forced_answer_values, monte_carlo_values

logger = logging.getLogger(__name__)

PRM = "prm"
SPLITS = ("train", "validation")


def prm_folder(run_dir: Path) -> Path:
    """Where a run keeps its finished PRM; that the folder is there says that it was trained."""
    return run_dir / PRM / "model"


def labels_file(run_dir: Path, split: str) -> Path:
    """Where the labelled paths of a split are."""
    return run_dir / PRM / "labels" / f"{split}.parquet"


def make_labels(
    run_dir: Path,
    task: Task,
    teacher: Path | str,
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    prm_args: PrmArguments,
    seed: int,
) -> dict[str, pl.DataFrame]:
    """The labelled paths of training users, which were given, and of validation users, which are sampled here.

    All processes share the work. What is labelled already is read.

    Raises:
        DataError: the paths cannot be used, or are not of these examples or this teacher.
    """
    files = {split: labels_file(run_dir, split) for split in SPLITS}
    if not all(file.exists() for file in files.values()):
        with whole_weights():
            opened = open_teacher(
                *(run_dir, task, teacher, model_args, teacher_args, seed),
                chat_template_kwargs=prm_args.chat_template_kwargs,
            )
            train = make_rows(task, task.split("train"), opened.catalog, opened.tokens)
            held_out = make_rows(
                task, task.split("validation", task.args.max_validation), opened.catalog, opened.tokens
            )
            try:
                given = load_paths(Path(prm_args.paths or ""))
                check_paths(given, train)
                given = some_examples(given, prm_args.max_examples, seed)
                sampled = sample_validation(run_dir, task, opened, held_out, teacher_args, prm_args, seed)
                asked: dict[str, Any] = {
                    "task": task,
                    "opened": opened,
                    "teacher_args": teacher_args,
                    "prm_args": prm_args,
                }
                n, n_held_out = prm_args.n_continuations, prm_args.n_validation_continuations
                label_in_parts(given, train, files["train"], **asked, n=n, seed=seed)
                label_in_parts(sampled, held_out, files["validation"], **asked, n=n_held_out or n, seed=seed)
            except ValueError as error:
                raise DataError(str(error)) from error
    return {split: pl.read_parquet(file) for split, file in files.items()}


def some_examples(paths: pl.DataFrame, most: int | None, seed: int) -> pl.DataFrame:
    """All paths of that many examples, drawn at random."""
    ids = paths["example_id"].unique(maintain_order=True).to_list()
    if most is None or most >= len(ids):
        return paths
    chosen = np.random.default_rng(seed).choice(len(ids), most, replace=False)
    return paths.filter(pl.col("example_id").is_in([ids[place] for place in chosen]))


def sample_validation(
    run_dir: Path,
    task: Task,
    opened: OpenTeacher,
    rows: list[Row],
    teacher_args: TeacherArguments,
    prm_args: PrmArguments,
    seed: int,
) -> pl.DataFrame:
    """Paths of validation users: a sampling job in shards."""
    folder = run_dir / PRM / "validation"
    asked: dict[str, Any] = {
        "n": prm_args.n_validation_paths,
        "temperature": prm_args.temperature,
        "top_p": prm_args.top_p,
        "max_new_tokens": teacher_args.max_reasoning_tokens,
        "seed": seed,
    }
    sample_in_shards(
        rows,
        folder,
        JobEngine("hf", opened.model.name_or_path, opened.model, opened.tokens, asked),
        path_ranker(opened.catalog, opened.model, prm_args),
        opened.tokens,
        asked,
        mask_history=task.args.mask_history,
        n_shards=prm_args.n_shards,
        split="validation",
        policy="teacher",
    )
    return read_paths(folder)


def label_in_parts(
    paths: pl.DataFrame,
    rows: list[Row],
    file: Path,
    *,
    task: Task,
    opened: OpenTeacher,
    teacher_args: TeacherArguments,
    prm_args: PrmArguments,
    n: int,
    seed: int,
) -> None:
    """Labels paths, a part of the examples at a time, each process its share; then all go into one file."""
    state, folder = PartialState(), file.with_suffix("")
    values = partial(
        forced_answer_values,
        ranker=path_ranker(opened.catalog, opened.model, prm_args),
        tokens=opened.tokens,
        mask_history=task.args.mask_history,
    )
    if prm_args.step_values == "monte_carlo":
        values = partial(
            monte_carlo_values,
            sampler=TransformersSampler(opened.model, opened.tokens),
            n=n,
            max_new_tokens=teacher_args.max_reasoning_tokens,
            temperature=prm_args.temperature,
            top_p=prm_args.top_p,
            seed=seed,
            **values.keywords,
        )
    elif prm_args.step_values == "judge":
        values = partial(prm_args.judge_values(file.parents[1] / "judge").values, tokens=opened.tokens)
    ids = paths["example_id"].unique(maintain_order=True).to_list()
    parts = [part for part in partition(len(ids), prm_args.n_shards) if part]
    files = [folder / f"part-{number:05d}-of-{len(parts):05d}.parquet" for number in range(len(parts))]
    done = file.exists()
    for number, (part, part_file) in enumerate(zip(parts, files, strict=True)):
        if number % state.num_processes == state.process_index and not done and not part_file.exists():
            chosen = paths.filter(pl.col("example_id").is_in(ids[part.start : part.stop]))
            write_table(label_paths(chosen, rows, opened.tokens, values), part_file)
            logger.info("%s: %d paths labelled by %s", part_file.name, len(chosen), prm_args.step_values)
    state.wait_for_everyone()
    if state.is_main_process and not done:
        write_table(pl.concat([pl.read_parquet(part_file) for part_file in files]), file)
        shutil.rmtree(folder)
    state.wait_for_everyone()


def train_prm(
    run_dir: Path,
    task: Task,
    teacher: Path | str,
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    prm_args: PrmArguments,
    training_args: TrainingArguments,
) -> Path:
    """Trains a PRM from a teacher's weights on the values of its own paths.

    Args:
        run_dir: the run folder.
        task: the data.
        teacher: the teacher that the paths were sampled from.
        model_args: how it is loaded, and adapters.
        teacher_args: the marker, and the length of a reasoning.
        prm_args: where the paths are, and what labels them.
        training_args: transformers' settings.

    Returns:
        The folder of the finished PRM; if it is there already nothing is done.

    Raises:
        DataError: see `make_labels`.
    """
    folder = prm_folder(run_dir)
    if folder.exists():
        return folder
    labels = make_labels(run_dir, task, teacher, model_args, teacher_args, prm_args, training_args.seed)
    model_args = dataclasses.replace(model_args, model_name_or_path=str(teacher), lora_task_type="TOKEN_CLS")
    tokenizer = load_tokenizer(model_args)
    tokens = Tokens.of(tokenizer, teacher_args.marker_token, prm_args.chat_template_kwargs)

    def start() -> PreTrainedModel:
        set_seed(training_args.seed)  # of the new head
        return load_classifier(model_args)

    model = start()
    model.config.pad_token_id = tokenizer.pad_token_id
    training_args = keep_best(training_args, run_dir / PRM, LOSS)
    AcceleratorState._reset_state()  # DeepSpeed would hold the last stage's batch size against this one's
    trainer = PrmTrainer(
        model=model,
        args=training_args,
        train_dataset=prm_dataset(labels["train"], tokens),
        eval_dataset=prm_dataset(labels["validation"], tokens),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[*stopping(teacher_args.early_stopping_patience), MetricsFile(run_dir / METRICS, PRM)],
    )
    notes = {
        "marker_token": tokenizer.convert_ids_to_tokens(tokens.marker_id),
        "chat_template_kwargs": prm_args.chat_template_kwargs,
        "step_values": prm_args.step_values,
    }
    train_to_the_end(trainer, run_dir / PRM)
    if trainer.accelerator.is_main_process:
        with whole_weights():
            best = best_checkpoint(run_dir / PRM, LOSS)
            trained = load_checkpoint(best, start, AutoModelForTokenClassification) if best else start()
        save_teacher(trained, tokenizer, folder, {PRM_FILE: json.dumps(notes, indent=2)})
    trainer.accelerator.wait_for_everyone()
    return folder


def measure_prm(
    run_dir: Path,
    task: Task,
    teacher: Path | str,
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    prm_args: PrmArguments,
    seed: int,
) -> dict[str, Any]:
    """Scores the paths of validation users and writes how the scores agree with the values of their states.

    On the toy world also with what the states are truly worth, for which the teacher is asked. Arguments as
    `train_prm`'s.
    """
    prm = Prm.load(prm_folder(run_dir), device=PartialState().device)
    labels = pl.read_parquet(labels_file(run_dir, "validation"))
    known = None
    if task.world is not None and not task.args.mask_history:
        opened = open_teacher(
            *(run_dir, task, teacher, model_args, teacher_args, seed),
            chat_template_kwargs=prm_args.chat_template_kwargs,
        )
        known = truth(labels, task, DistributionRanker(opened.catalog, opened.model), opened.tokens)
    scores_B = prm.scores(labels["prompt_ids"].to_list(), labels["token_ids"].to_list())
    found = quality(labels, scores_B, prm.tokens, task, truth=known, seed=seed)
    write_whole(run_dir / PRM / "quality.json", json.dumps(found, indent=2))
    write_whole(run_dir / PRM / "quality.md", markdown(found))
    write_whole(run_dir / PRM / "calibration.svg", calibration_svg(found))
    return found
