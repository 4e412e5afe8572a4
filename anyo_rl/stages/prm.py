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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from accelerate import PartialState
from transformers import AutoModelForTokenClassification, PreTrainedModel, TrainingArguments, set_seed
from trl import get_peft_config

from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.schema import DataError
from anyo_rl.evaluation.prm_quality import Quality, calibration_svg, markdown, quality
from anyo_rl.evaluation.true_value import truth
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.files import read_table, write_table, write_whole
from anyo_rl.run.folder import METRICS
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.settings import Bounds, UsageError, check_bounds
from anyo_rl.run.shards import partition
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.shards import ShardedJob, read_paths
from anyo_rl.stages.arguments import RankArguments
from anyo_rl.stages.candidates import items_only
from anyo_rl.stages.dpo import load_paths
from anyo_rl.stages.finish import load_checkpoint
from anyo_rl.stages.job import Job
from anyo_rl.stages.judge_arguments import JudgeArguments
from anyo_rl.stages.sample import EngineChoice, JobEngine, path_ranker, sample_in_shards
from anyo_rl.teacher.load import load_tokenizer
from anyo_rl.teacher.save import save_teacher
from anyo_rl.training.dpo import check_paths
from anyo_rl.training.loop.callbacks import MetricsFile, keep_best, stopping, train_to_the_end
from anyo_rl.training.loop.checkpoints import best_checkpoint
from anyo_rl.training.loop.closing import close_trainer, forget_last_trainer
from anyo_rl.training.loop.console import show_on_console
from anyo_rl.training.prm import LOSS, PrmTrainer, load_classifier, prm_dataset
from anyo_rl.values.prm import PRM_FILE, Prm, label_paths
from anyo_rl.values.step_values import forced_answer_values, monte_carlo_values

logger = logging.getLogger(__name__)

PRM = "prm"
SPLITS = ("train", "validation")


@dataclass
class PrmArguments(RankArguments, JudgeArguments):
    """What a process reward model is trained on, and how its labels are made."""

    paths: str | None = field(
        default=None, metadata={"help": "Sampled paths of training examples: a job's folder, or a parquet file."}
    )
    max_examples: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(1),
            "help": "Most training examples whose paths are labelled; all if unset.",
            "free": True,
        },
    )
    step_values: Literal["forced_answer", "monte_carlo", "judge"] = field(
        default="forced_answer",
        metadata={"help": "What labels a state between steps: forced_answer, monte_carlo, judge."},
    )
    n_continuations: int = field(
        default=4, metadata={"bounds": Bounds(1), "help": "Reasonings sampled from each state by monte_carlo."}
    )
    n_validation_continuations: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(1),
            "help": "The same for validation users, whose labels quality is measured with; as many if unset.",
        },
    )
    n_validation_paths: int = field(
        default=4, metadata={"bounds": Bounds(1), "help": "Paths sampled of each validation example."}
    )
    temperature: float = field(
        default=1.0, metadata={"bounds": Bounds(0, 100), "help": "At which reasonings are sampled."}
    )
    top_p: float = field(
        default=1.0, metadata={"bounds": Bounds(above=0, most=1), "help": "Nucleus, above 0 and up to 1."}
    )
    n_shards: int = field(
        default=16,
        metadata={"bounds": Bounds(1), "help": "Parts that sampling and labelling come in; a kill costs one."},
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Settings of the chat template, as when the paths were sampled (in YAML)."}
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if (self.step_values == "judge") != (self.judge is not None):
            raise UsageError("step_values judge and the settings of a judge go together: set both, or neither")


def prm_folder(run_dir: Path) -> Path:
    """Where a run keeps its finished PRM; that the folder is there says that it was trained."""
    return run_dir / PRM / "model"


def labels_file(run_dir: Path, split: str) -> Path:
    """Where the labelled paths of a split are."""
    return run_dir / PRM / "labels" / f"{split}.parquet"


def make_labels(job: Job, start: Path | str, prm_args: PrmArguments) -> dict[str, pl.DataFrame]:
    """The labelled paths of training users, which were given, and of validation users, which are sampled here.

    All processes share the work. What is labelled already is read.

    Args:
        job: of the run.
        start: the teacher that the paths were sampled from.
        prm_args: where the paths are, and what labels them.

    Raises:
        DataError: the paths cannot be used, or are not of these examples or this teacher.
    """
    items_only(job.asking.kind, "a PRM")
    files = {split: labels_file(job.folder, split) for split in SPLITS}
    if not all(file.exists() for file in files.values()):
        with whole_weights(), job.opened(start) as teacher:
            held_out = list(job.rows("validation", teacher, job.task.args.max_validation))
            try:
                given = load_paths(Path(prm_args.paths or ""))
                train = list(job.rows("train", teacher).of(given["example_id"]))
                check_paths(given, train)
                given = some_examples(given, prm_args.max_examples, job.seed)
                sampled = sample_validation(job, teacher, held_out, prm_args)
                n, n_held_out = prm_args.n_continuations, prm_args.n_validation_continuations
                label_in_parts(job, teacher, prm_args, given, train, files["train"], n)
                label_in_parts(job, teacher, prm_args, sampled, held_out, files["validation"], n_held_out or n)
            except ValueError as error:
                raise DataError(str(error)) from error
    return {split: read_table(file) for split, file in files.items()}


def some_examples(paths: pl.DataFrame, most: int | None, seed: int) -> pl.DataFrame:
    """All paths of that many examples, drawn at random."""
    ids = paths["example_id"].unique(maintain_order=True).to_list()
    if most is None or most >= len(ids):
        return paths
    chosen = np.random.default_rng(seed).choice(len(ids), most, replace=False)
    return paths.filter(pl.col("example_id").is_in([ids[place] for place in chosen]))


def sample_validation(job: Job, teacher: Teacher, rows: Sequence[Row], prm_args: PrmArguments) -> pl.DataFrame:
    """Paths of validation users: a sampling job in shards."""
    folder, sampling = job.folder / PRM / "validation", _sampling(job, prm_args, prm_args.n_validation_paths)
    sample_in_shards(
        rows,
        ShardedJob(folder, sampling, policy="teacher", n_shards=prm_args.n_shards, split="validation"),
        JobEngine(
            EngineChoice(cache_tokens=job.teacher_args.sampling_tokens),
            teacher.model.name_or_path,
            teacher.model,
            teacher.tokens,
            sampling,
        ),
        teacher.catalog,
        ranker=path_ranker(teacher.catalog, teacher.model, prm_args),
    )
    return read_paths(folder)


def _sampling(job: Job, prm_args: PrmArguments, n: int) -> Sampling:
    return Sampling(n, prm_args.temperature, prm_args.top_p, job.max_reasoning_tokens, job.seed)


def label_in_parts(
    job: Job,
    teacher: Teacher,
    prm_args: PrmArguments,
    paths: pl.DataFrame,
    rows: Sequence[Row],
    file: Path,
    n: int,
) -> None:
    """Labels paths, a part of the examples at a time, each process its share; then all go into one file.

    Args:
        job: of the run.
        teacher: what is asked.
        prm_args: what labels.
        paths: the paths.
        rows: their examples.
        file: where the labelled paths go.
        n: continuations of each state, where these label.
    """
    state, folder, tokens = PartialState(), file.with_suffix(""), teacher.tokens
    ranker = path_ranker(teacher.catalog, teacher.model, prm_args)
    values: Callable[[Sequence[Row], list[list[int]]], list[np.ndarray]]
    if prm_args.step_values == "monte_carlo":
        values = partial(
            monte_carlo_values,
            sampler=job.sampler(teacher.model, tokens),
            ranker=ranker,
            tokens=tokens,
            sampling=_sampling(job, prm_args, n),
        )
    elif prm_args.step_values == "judge":
        values = partial(prm_args.judge_values(file.parents[1] / "judge").values, tokens=tokens)
    else:
        values = partial(forced_answer_values, ranker=ranker, tokens=tokens)
    ids = paths["example_id"].unique(maintain_order=True).to_list()
    parts = [part for part in partition(len(ids), prm_args.n_shards) if part]
    files = [folder / f"part-{number:05d}-of-{len(parts):05d}.parquet" for number in range(len(parts))]
    done = file.exists()
    for number, (part, part_file) in enumerate(zip(parts, files, strict=True)):
        if number % state.num_processes == state.process_index and not done and not part_file.exists():
            chosen = paths.filter(pl.col("example_id").is_in(ids[part.start : part.stop]))
            write_table(label_paths(chosen, rows, tokens, values), part_file)
            logger.info("%s: %d paths labelled by %s", part_file.name, len(chosen), prm_args.step_values)
    state.wait_for_everyone()
    if state.is_main_process and not done:
        write_table(pl.concat([read_table(part_file) for part_file in files]), file)
        shutil.rmtree(folder)
    state.wait_for_everyone()


def train_prm(job: Job, start: Path | str, prm_args: PrmArguments, training_args: TrainingArguments) -> Path:
    """Trains a PRM from a teacher's weights on the values of its own paths.

    Args:
        job: of the run.
        start: the teacher that the paths were sampled from.
        prm_args: where the paths are, and what labels them.
        training_args: transformers' settings.

    Returns:
        The folder of the finished PRM; if it is there already nothing is done.

    Raises:
        DataError: see `make_labels`.
    """
    folder = prm_folder(job.folder)
    if folder.exists():
        return folder
    labels = make_labels(job, start, prm_args)
    model_args = dataclasses.replace(job.opening.of_path(start), lora_task_type="TOKEN_CLS")
    tokenizer = load_tokenizer(model_args)
    tokens = job.opening.tokens(tokenizer)

    def begin() -> PreTrainedModel:
        set_seed(training_args.seed)  # of the new head
        return load_classifier(model_args)

    model = begin()
    model.config.pad_token_id = tokenizer.pad_token_id
    training_args = keep_best(training_args, job.folder / PRM, LOSS)
    forget_last_trainer()
    trainer = PrmTrainer(
        model=model,
        args=training_args,
        train_dataset=prm_dataset(labels["train"], tokens),
        eval_dataset=prm_dataset(labels["validation"], tokens),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        callbacks=[*stopping(job.teacher_args.early_stopping_patience), MetricsFile(job.folder / METRICS, PRM)],
    )
    notes = {
        "marker_token": tokenizer.convert_ids_to_tokens(tokens.marker_id),
        "chat_template_kwargs": job.chat_template_kwargs,
        "step_values": prm_args.step_values,
    }
    show_on_console(trainer, PRM, {LOSS.removeprefix("eval_"): "loss"})
    train_to_the_end(trainer, job.folder / PRM)
    if trainer.accelerator.is_main_process:
        with whole_weights():
            best = best_checkpoint(job.folder / PRM, LOSS)
            trained = load_checkpoint(best, begin, AutoModelForTokenClassification) if best else begin()
        save_teacher(trained, tokenizer, folder, {PRM_FILE: json.dumps(notes, indent=2)})
        del trained
    trainer.accelerator.wait_for_everyone()
    close_trainer(trainer)
    return folder


def measure_prm(job: Job, start: Path | str) -> Quality:
    """Scores the paths of validation users and writes how the scores agree with the values of their states.

    On a toy world also with what the states are truly worth, for which the teacher is asked.

    Args:
        job: of the run.
        start: the teacher that the paths were sampled from.
    """
    task = job.task
    prm = Prm.load(prm_folder(job.folder), device=PartialState().device)
    labels = read_table(labels_file(job.folder, "validation"))
    known = None
    if task.world is not None and not task.args.mask_history:
        with job.opened(start) as teacher:
            known = truth(labels, task, DistributionRanker(teacher.catalog, teacher.model), teacher.tokens)
    scores_B = prm.scores(labels["prompt_ids"].to_list(), labels["token_ids"].to_list())
    found = quality(labels, scores_B, prm.tokens, task, truth=known, seed=job.seed)
    write_whole(job.folder / PRM / "quality.json", json.dumps(found.as_json(), indent=2))
    write_whole(job.folder / PRM / "quality.md", markdown(found))
    write_whole(job.folder / PRM / "calibration.svg", calibration_svg(found))
    return found
