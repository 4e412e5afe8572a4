"""The stages of a run: SFT, GRPO, evaluation. Nothing finished is done twice or lost.

Each stage keeps its checkpoints in a folder of the run, goes on from the newest complete one, and ends with its best
teacher in `<stage>/teacher`; that this folder is there says that the stage is done.
"""

import dataclasses
import importlib.metadata
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import yaml
from accelerate import PartialState
from accelerate.state import AcceleratorState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerState
from trl import GRPOConfig, ModelConfig, SFTConfig, get_peft_config
from trl.models import unwrap_model_for_generation

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.config import ReasonerArguments, TeacherArguments
from anyo_rl.evaluation.answers import Mode, answer
from anyo_rl.evaluation.evaluator import REASONING_MODES, Evaluation
from anyo_rl.evaluation.report import write_report
from anyo_rl.evaluation.table import markdown_table
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.likelihood import LikelihoodRanker
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.task import Row, Task
from anyo_rl.teacher import load_teacher, make_tiny_teacher, save_teacher, stop_at_marker, train_tokenizer
from anyo_rl.tokens import Tokens
from anyo_rl.training.callbacks import MetricsFile, keep_best, latest_checkpoint, stopping
from anyo_rl.training.reasoner import ReasonerTrainer
from anyo_rl.training.sft import TeacherSFTTrainer, sft_dataset
from anyo_rl.training.validation import Validation

METRICS = "metrics.jsonl"
PACKAGES = ("anyo-rl", "accelerate", "datasets", "peft", "tokenizers", "torch", "transformers", "trl")
TEACHER = "teacher"


def teacher_folder(stage_dir: Path) -> Path:
    """Where a stage keeps its finished teacher; that the folder is there says that the stage is done."""
    return stage_dir / TEACHER


def finish_stage(trainer: Trainer, stage_dir: Path) -> None:
    """Trains from the newest complete checkpoint to the end, and saves the best teacher in `teacher_folder`."""
    accelerator = trainer.accelerator
    checkpoint = latest_checkpoint(stage_dir) if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        checkpoint = latest_checkpoint(stage_dir)
    if checkpoint and training_is_over(checkpoint):
        load_best(trainer, checkpoint)
    else:
        if checkpoint:
            trainer.args.eval_on_start = False  # measured and written down before the kill
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    with unwrap_model_for_generation(trainer.model_wrapped, accelerator) as model:  # gathers weights under ZeRO-3
        if accelerator.is_main_process:
            save_teacher(model, trainer.processing_class, teacher_folder(stage_dir))
    accelerator.wait_for_everyone()


def training_is_over(checkpoint: Path) -> bool:
    """Whether a checkpoint was the last one; resumed from it, the trainer would take one step too many."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    control = state["stateful_callbacks"]["TrainerControl"]["args"]
    return state["global_step"] >= state["max_steps"] or control["should_training_stop"]


def load_best(trainer: Trainer, checkpoint: Path) -> None:
    """Loads the best weights, as the trainer does at the end of training, without training."""
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    best = trainer.state.best_model_checkpoint
    trainer.state.best_model_checkpoint = best if best and Path(best).is_dir() else str(checkpoint)
    trainer.is_deepspeed_enabled = trainer.is_fsdp_enabled = False  # nothing is wrapped: plain weights, plain load
    trainer._load_best_model()


def start_run(run_dir: Path, arguments: Mapping[str, Any]) -> None:
    """Writes what is needed to repeat the run: every argument, versions of packages, and how it was launched.

    Secrets are never arguments here: tokens come from the environment and are not written.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    secret = ("hub_token", "_key", "_secret", "password")
    resolved = {
        name: {k: v for k, v in values.items() if not k.endswith(secret)} for name, values in arguments.items()
    }
    (run_dir / "config.yaml").write_text(
        yaml.safe_dump(json.loads(json.dumps(resolved, default=str)), sort_keys=False)
    )
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    state = PartialState()
    launch = {"num_processes": state.num_processes, "distributed_type": state.distributed_type.value}
    (run_dir / "versions.json").write_text(
        json.dumps({"python": platform.python_version(), **versions, **launch}, indent=2)
    )


def make_teacher(
    model_args: ModelConfig, teacher_args: TeacherArguments, task: Task, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The teacher at the given path, or a tiny one made for the task where there is no path."""
    if model_args.model_name_or_path:
        return load_teacher(model_args)
    tokenizer = train_tokenizer(task.texts(), teacher_args.tiny_vocab_size)
    model = make_tiny_teacher(
        tokenizer, hidden_size=teacher_args.tiny_hidden_size, n_layers=teacher_args.tiny_layers, seed=seed
    )
    return model, tokenizer


def train_sft(
    run_dir: Path,
    task: Task,
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    training_args: SFTConfig,
    stage: str,
    *,
    reasoning: bool,
) -> Path:
    """Trains a teacher by SFT: on the rationales, or (`reasoning=False`, the `direct` teacher) to answer at once.

    Returns:
        The folder of the finished teacher; if it is there already nothing is done.

    Raises:
        ValueError: an example is longer than `max_length`.
    """
    folder = teacher_folder(run_dir / stage)
    if folder.exists():
        return folder
    model, tokenizer = make_teacher(model_args, teacher_args, task, training_args.seed)
    tokens = Tokens.of(tokenizer, teacher_args.marker_token)
    catalog = build_catalog(task.interactions.items, tokens)
    train = task.split("train")
    if reasoning:
        train = train.filter(pl.col("example_id").is_in(list(task.rationales)))
    dataset = sft_dataset(task.rows(train, catalog, tokens), catalog, tokens, task.rationales if reasoning else None)
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
        peft_config=get_peft_config(model_args),
        validation=validation(task, catalog, tokens, teacher_args, teacher_args.eval_mode if reasoning else "plain"),
        callbacks=[*stopping(teacher_args.early_stopping_patience), MetricsFile(run_dir / METRICS, stage)],
    )
    finish_stage(trainer, run_dir / stage)
    return folder


def validation(task: Task, catalog: Catalog, tokens: Tokens, teacher_args: TeacherArguments, mode: Mode) -> Validation:
    """What is measured on validation users while training."""
    return Validation(
        rows=task.rows(task.split("validation", task.args.max_validation), catalog, tokens),
        catalog=catalog,
        tokens=tokens,
        mode=mode,
        max_new_tokens=teacher_args.max_reasoning_tokens,
        mask_history=task.args.mask_history,
    )


def train_grpo(
    run_dir: Path,
    task: Task,
    teacher_path: Path | str,
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    reasoner_args: ReasonerArguments,
    training_args: GRPOConfig,
    reward_funcs: Sequence[Callable[..., Any]],
) -> Path:
    """Trains a teacher's reasoning by GRPO.

    Returns:
        The folder of the finished teacher; if it is there already nothing is done.
    """
    stage_dir = run_dir / "grpo"
    folder = teacher_folder(stage_dir)
    if folder.exists():
        return folder
    model, tokenizer = load_teacher(dataclasses.replace(model_args, model_name_or_path=str(teacher_path)))
    tokens = Tokens.of(tokenizer, teacher_args.marker_token)
    catalog = build_catalog(task.interactions.items, tokens)
    rows = task.rows(task.split("train"), catalog, tokens)
    if reasoner_args.min_gain_spread:
        rows = keep_spread(rows, model, catalog, tokens, teacher_args, reasoner_args.min_gain_spread, stage_dir)
    training_args = keep_best(training_args, stage_dir)
    training_args.max_completion_length = teacher_args.max_reasoning_tokens
    stop_at_marker(model, tokens)
    AcceleratorState._reset_state()  # DeepSpeed would hold the last stage's batch size against this one's
    trainer = ReasonerTrainer(
        model=model,
        args=training_args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        reward_funcs=reward_funcs,
        catalog=catalog,
        tokens=tokens,
        validation=validation(task, catalog, tokens, teacher_args, teacher_args.eval_mode),
        item_loss=reasoner_args.item_loss,
        item_loss_weight=reasoner_args.item_loss_weight,
        mask_history=task.args.mask_history,
        callbacks=[*stopping(teacher_args.early_stopping_patience), MetricsFile(run_dir / METRICS, "grpo")],
    )
    finish_stage(trainer, stage_dir)
    return folder


def keep_spread(
    rows: list[Row],
    model: PreTrainedModel,
    catalog: Catalog,
    tokens: Tokens,
    teacher_args: TeacherArguments,
    least: float,
    stage_dir: Path,
    n_paths: int = 4,
) -> list[Row]:
    """Leaves out examples that are too easy or hopeless: sampled paths make no difference to their gain.

    Args:
        rows: training examples.
        model: the teacher that GRPO starts from.
        catalog: the catalog.
        tokens: the teacher's tokenizer and marker.
        teacher_args: for the length of a reasoning.
        least: examples whose largest and smallest gain over the paths differ by less are left out.
        stage_dir: the outcome is kept there, so that a resumed run trains on the same examples.
        n_paths: paths sampled of each example.

    Raises:
        ValueError: nothing is left.
    """
    file = stage_dir / "kept_examples.json"
    if not file.exists():
        answers = answer(
            rows,
            LikelihoodRanker(catalog, model),
            TransformersSampler(model, tokens),
            tokens,
            "mixture",
            n_paths=n_paths,
            max_new_tokens=teacher_args.max_reasoning_tokens,
            top_k=1,
        )
        gains = ndcg(np.array([path["rank"] for path in answers.paths])).reshape(len(rows), n_paths)
        spread = gains.max(1) - gains.min(1)
        stage_dir.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps([r["example_id"] for r, s in zip(rows, spread, strict=True) if s >= least]))
        partial.replace(file)
    kept = set(json.loads(file.read_text()))
    if not kept:
        raise ValueError(
            f"no example has a gain spread of {least} or more over {n_paths} paths; lower min_gain_spread"
        )
    return [row for row in rows if row["example_id"] in kept]


def evaluate_run(
    run_dir: Path,
    task: Task,
    teachers: Mapping[str, Path | str],
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    *,
    baselines: bool,
    seed: int,
) -> dict[str, Any]:
    """Evaluates the teachers of a run on its test users, and writes `evaluation.json`, the table and the report.

    Args:
        run_dir: the run folder.
        task: the data.
        teachers: stage name to teacher folder; the stage `direct` answers without reasoning.
        model_args: how teachers are loaded.
        teacher_args: the marker, the number of paths and the length of a reasoning.
        baselines: whether to evaluate popularity, item-kNN, SASRec and the oracle too.
        seed: of draws and intervals.
    """
    test = task.split("test", task.args.max_test)
    evaluation = None
    for stage, path in teachers.items():
        model, tokenizer = load_teacher(dataclasses.replace(model_args, model_name_or_path=str(path)))
        if torch.cuda.is_available():
            model.to("cuda")
        tokens = Tokens.of(tokenizer, teacher_args.marker_token)
        catalog = build_catalog(task.interactions.items, tokens)
        evaluation = Evaluation(run_dir, task, catalog, test, seed)
        rows = task.rows(test, catalog, tokens)
        for mode in ("plain",) if stage == "direct" else REASONING_MODES:
            ask = partial(
                answer,
                rows,
                LikelihoodRanker(catalog, model),
                TransformersSampler(model, tokens, with_log_probs=True),
                tokens,
                mode,
                n_paths=teacher_args.n_paths,
                max_new_tokens=teacher_args.max_reasoning_tokens,
                seed=seed,
                mask_history=task.args.mask_history,
            )
            evaluation.keep(stage, mode, ask)
    if evaluation is None:
        raise ValueError("no teacher to evaluate; name at least one stage and its folder")
    if baselines:
        evaluation.baselines()
    summary = evaluation.summary(LikelihoodRanker.kind, teacher_args.n_paths)
    for name, text in (("evaluation.json", json.dumps(summary, indent=2)), ("evaluation.md", markdown_table(summary))):
        (run_dir / f"{name}.partial").write_text(text)
        (run_dir / f"{name}.partial").replace(run_dir / name)
    write_report(run_dir)
    return summary
