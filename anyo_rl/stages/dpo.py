"""DPO as a stage of a run: preference pairs from sampled paths, then training on them."""

import dataclasses
import json
import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
from accelerate import PartialState
from accelerate.state import AcceleratorState
from datasets import Dataset
from trl import DPOConfig, ModelConfig

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.catalog.item_tokens import adapters, load_answering, semantic_ids
from anyo_rl.data.schema import DataError
from anyo_rl.data.task import Task
from anyo_rl.reasoning.rows import Row, make_rows
from anyo_rl.run.files import write_table
from anyo_rl.run.folder import METRICS
from anyo_rl.sampling.paths import PATHS_SCHEMA
from anyo_rl.sampling.shards import JobError, read_paths
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.finish import finish_stage, teacher_folder, validation
from anyo_rl.teacher.load import load_teacher, stop_at_marker
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.dpo import TeacherDPOTrainer, check_paths, dpo_dataset
from anyo_rl.training.loop.callbacks import MetricsFile, keep_best, stopping
from anyo_rl.training.pairs import PairGain, preference_pairs

logger = logging.getLogger(__name__)

PAIRS = Path("pairs") / "train.parquet"


@dataclass
class PairArguments:
    """What makes a preference pair, and what DPO trains beside it."""

    paths: str | None = field(
        default=None, metadata={"help": "Sampled paths of training examples: a job's folder, or a parquet file."}
    )
    pair_gain: PairGain = field(default="ndcg", metadata={"help": "What a path's rank is worth: ndcg, mrr, log."})
    least_gap: float = field(
        default=0.1, metadata={"help": "Least difference in gain of the best and the worst path of an example."}
    )
    max_pairs_per_target: int = field(
        default=0, metadata={"help": "Most pairs with one item as their target, the widest gaps first; 0 for no cap."}
    )
    item_loss_weight: float = field(
        default=0.1, metadata={"help": "Weight of −log p(target | chosen reasoning) beside DPO's loss; 0 for none."}
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "What the chat template is told, as when the paths were sampled (in YAML)."}
    )
    baselines: bool = field(default=False, metadata={"help": "Also evaluate popularity, item-kNN and SASRec."})


def load_paths(path: Path) -> pl.DataFrame:
    """A paths table: the folder of a finished sampling job, or a parquet file.

    Raises:
        DataError: there is nothing of the kind, or the job is not finished.
    """
    try:
        paths = read_paths(path) if path.is_dir() else pl.read_parquet(path)
    except (JobError, OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"no paths at {path}: {error}") from error
    missing = sorted(PATHS_SCHEMA.keys() - paths.schema.keys())
    if missing:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}, expected a paths table")
    return paths


def make_pairs(run_dir: Path, rows: list[Row], tokens: Tokens, n_items: int, pair_args: PairArguments) -> Dataset:
    """The run's preference pairs: made once, kept in `pairs/`, and read from there by all processes.

    Args:
        run_dir: the run folder.
        rows: the training examples.
        tokens: the teacher's tokenizer and marker.
        n_items: size of the catalog.
        pair_args: where the paths are, and what makes a pair.

    Raises:
        DataError: the paths cannot be used, are not of these examples or this tokenizer, or give no pair.
    """
    file, state = run_dir / PAIRS, PartialState()
    if not file.exists():
        # All processes do the work: each must see the error, and none may wait for one that does not come.
        try:
            paths = load_paths(Path(pair_args.paths or ""))
            check_paths(paths, rows)
            pairs = preference_pairs(
                paths,
                tokens.marker_id,
                least_gap=pair_args.least_gap,
                gain=pair_args.pair_gain,
                n_items=n_items,
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
    return Dataset.from_polars(pl.read_parquet(file))


def train_dpo(
    run_dir: Path,
    task: Task,
    teacher_path: Path | str,
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    pair_args: PairArguments,
    training_args: DPOConfig,
) -> Path:
    """Trains a teacher's reasoning by DPO on pairs of its own paths, the best of an example against the worst.

    The reference is the teacher as it comes: the model without its adapters, or a second copy of full weights.

    Args:
        run_dir: the run folder.
        task: the data.
        teacher_path: the teacher, which should be the one that the paths were sampled from.
        model_args: how it is loaded, and its adapters.
        teacher_args: how it is validated.
        pair_args: where the paths are, what makes a pair, and the item loss.
        training_args: TRL's settings.

    Returns:
        The folder of the finished teacher; if it is there already nothing is done.

    Raises:
        DataError: see `make_pairs`.
        ValueError: a pair is longer than `max_length`.
    """
    stage_dir = run_dir / "dpo"
    folder = teacher_folder(stage_dir)
    if folder.exists():
        return folder
    model_args = dataclasses.replace(model_args, model_name_or_path=str(teacher_path))
    load_start = partial(load_teacher, model_args)
    ids = semantic_ids(run_dir, task, teacher_args, teacher_path, load_start, training_args.seed)
    load = partial(load_answering, model_args, ids)
    model, tokenizer = load()
    tokens = Tokens.of(tokenizer, teacher_args.marker_token, pair_args.chat_template_kwargs)
    catalog = build_catalog(task.interactions.items, tokens, ids)
    rows = make_rows(task, task.split("train"), catalog, tokens)
    dataset = make_pairs(run_dir, rows, tokens, len(catalog), pair_args)
    training_args = keep_best(training_args, stage_dir)
    stop_at_marker(model, tokens)
    lora = adapters(model_args, model, tokenizer, ids)
    AcceleratorState._reset_state()  # DeepSpeed would hold the last stage's batch size against this one's
    trainer = TeacherDPOTrainer(
        model=model,
        # Not left to TRL: it would load the path anew, without codes that were added.
        ref_model=None if lora is not None or training_args.precompute_ref_log_probs else load()[0],
        args=training_args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora,
        catalog=catalog,
        tokens=tokens,
        validation=validation(task, catalog, tokens, teacher_args, teacher_args.eval_mode),
        item_loss_weight=pair_args.item_loss_weight,
        callbacks=[*stopping(teacher_args.early_stopping_patience), MetricsFile(run_dir / METRICS, "dpo")],
    )
    finish_stage(trainer, stage_dir, tokens, lambda: load()[0], ids)
    return folder
