"""DPO as a stage of a run: preference pairs from sampled paths, then training on them."""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from accelerate import PartialState
from datasets import Dataset
from trl import DPOConfig, ModelConfig

from anyo_rl.catalog.item_tokens import adapters
from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.schema import DataError
from anyo_rl.evaluation import stages
from anyo_rl.run.files import read_table, write_table
from anyo_rl.run.folder import METRICS
from anyo_rl.run.settings import Bounds
from anyo_rl.run.shards import JobError
from anyo_rl.sampling.paths import PATHS_SCHEMA
from anyo_rl.sampling.shards import read_paths
from anyo_rl.stages.candidates import items_only
from anyo_rl.stages.finish import finish_stage
from anyo_rl.stages.job import Job
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.training.dpo import TeacherDPOTrainer, check_paths, dpo_dataset
from anyo_rl.training.loop.callbacks import MetricsFile, keep_best, stopping
from anyo_rl.training.loop.closing import forget_last_trainer
from anyo_rl.training.pairs import PairGain, preference_pairs

logger = logging.getLogger(__name__)

DPO = stages.DPO.name
PAIRS = Path("pairs") / "train.parquet"


@dataclass
class PairArguments:
    """What makes a preference pair, and what DPO trains beside it."""

    paths: str | None = field(
        default=None, metadata={"help": "Sampled paths of training examples: a job's folder, or a parquet file."}
    )
    pair_gain: PairGain = field(default="ndcg", metadata={"help": "What a path's rank is worth: ndcg, mrr, log."})
    least_gap: float = field(
        default=0.1,
        metadata={
            "bounds": Bounds(0, 1),
            "help": "Least difference in gain of the best and the worst path of an example.",
        },
    )
    max_pairs_per_target: int = field(
        default=0,
        metadata={
            "bounds": Bounds(0),
            "help": "Most pairs with one item as their target, the widest gaps first; 0 for no cap.",
        },
    )
    item_loss_weight: float = field(
        default=0.1,
        metadata={
            "bounds": Bounds(0),
            "help": "Weight of −log p(target | chosen reasoning) beside DPO's loss; 0 for none.",
        },
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Settings of the chat template, as when the paths were sampled (in YAML)."}
    )
    baselines: bool = field(
        default=False, metadata={"help": "Also evaluate popularity, item-kNN and SASRec.", "free": True}
    )


def check_start(model_args: ModelConfig, paths: str | None) -> str:
    """The teacher that paths were sampled from, where both are named.

    Raises:
        SystemExit: one is not.
    """
    if model_args.model_name_or_path is None:
        raise SystemExit("no teacher: set model_name_or_path to the teacher that the paths were sampled from")
    if paths is None:
        raise SystemExit("no paths: set paths to the folder of a sampling job, or to a parquet file of paths")
    return model_args.model_name_or_path


def load_paths(path: Path) -> pl.DataFrame:
    """A paths table: the folder of a finished sampling job, or a parquet file.

    Raises:
        DataError: there is nothing of the kind, or the job is not finished.
    """
    try:
        paths = read_paths(path) if path.is_dir() else read_table(path)
    except (JobError, OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"no paths at {path}: {error}") from error
    missing = sorted(PATHS_SCHEMA.keys() - paths.schema.keys())
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}, expected a paths table")
    return paths


def make_pairs(job: Job, teacher: Teacher, pair_args: PairArguments) -> Dataset:
    """The run's preference pairs: made once, kept in `pairs/`, and mapped into memory from there by all processes.

    Args:
        job: of the run.
        teacher: the teacher that is trained.
        pair_args: where the paths are, and what makes a pair.

    Raises:
        DataError: the paths cannot be used, are not of these examples or this tokenizer, or give no pair.
    """
    file, state = job.folder / PAIRS, PartialState()
    tokens = teacher.tokens
    if not file.exists():
        # All processes do the work: each must see the error, and none may wait for one that does not come.
        try:
            paths = load_paths(Path(pair_args.paths or ""))
            rows = list(job.rows("train", teacher).of(paths["example_id"]))
            check_paths(paths, rows)
            pairs = preference_pairs(
                paths,
                tokens.marker_id,
                least_gap=pair_args.least_gap,
                gain=pair_args.pair_gain,
                n_items=len(teacher.catalog),
                max_per_target=pair_args.max_pairs_per_target or None,
            )
            counts = {"pairs": len(pairs.frame), **pairs.left_out}
            logger.info("preference pairs: %s", ", ".join(f"{name} {count}" for name, count in counts.items()))
            dataset = dpo_dataset(pairs.frame, rows, tokens)
        except ValueError as error:
            raise DataError(str(error)) from error
        state.wait_for_everyone()
        if state.is_main_process:
            write_table(dataset.to_polars(), file, {"counts": json.dumps(counts)})
    state.wait_for_everyone()
    return Dataset.from_parquet(str(file), cache_dir=str(file.parent / "mapped"))


def train_dpo(job: Job, start: Path | str, pair_args: PairArguments, training_args: DPOConfig) -> Path:
    """Trains a teacher's reasoning by DPO on pairs of its own paths, the best of an example against the worst.

    The reference is the teacher as it comes: the model without its adapters, or a second copy of full weights.

    Args:
        job: of the run.
        start: the teacher, which should be the one that the paths were sampled from.
        pair_args: where the paths are, what makes a pair, and the item loss.
        training_args: TRL's settings.

    Returns:
        The folder of the finished teacher; if it is there already nothing is done.

    Raises:
        DataError: see `make_pairs`.
        ValueError: a pair is longer than `max_length`.
    """
    items_only(job.asking.kind, "DPO")
    if job.teacher_folder(DPO).exists():
        return job.teacher_folder(DPO)
    opening = job.opening
    teacher = opening.load(start)
    ids, tokenizer = teacher.ids, teacher.tokens.tokenizer
    dataset = make_pairs(job, teacher, pair_args)
    stop_at_marker(teacher.model, teacher.tokens)
    lora = adapters(opening.of_path(start), teacher.model, tokenizer, ids)
    whole_reference = lora is None and not training_args.precompute_ref_log_probs
    forget_last_trainer()
    trainer = TeacherDPOTrainer(
        model=teacher.model,
        # Not left to TRL: it would load the path anew, without codes that were added.
        ref_model=opening.weights(start, ids)[0] if whole_reference else None,
        args=keep_best(training_args, job.folder / DPO),
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora,
        catalog=teacher.catalog,
        tokens=teacher.tokens,
        validation=job.validation(teacher),
        item_loss_weight=pair_args.item_loss_weight,
        callbacks=[*stopping(job.teacher_args.early_stopping_patience), MetricsFile(job.folder / METRICS, DPO)],
    )
    return finish_stage(job, DPO, trainer, teacher, lambda: opening.weights(start, ids)[0])
