"""The stages of a run: SFT, GRPO, evaluation. Nothing finished is done twice or lost.

Each stage keeps its checkpoints in a folder of the run, goes on from the newest complete one, and ends with its best
teacher in `<stage>/teacher`; that this folder is there says that the stage is done.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from accelerate import PartialState
from accelerate.state import AcceleratorState
from datasets import Dataset, concatenate_datasets
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import ModelConfig, SFTConfig

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.catalog.semantic_ids import SemanticIds
from anyo_rl.config import TeacherArguments
from anyo_rl.evaluation.answers import Mode, answer_together
from anyo_rl.evaluation.evaluator import REASONING_MODES, Evaluation, weights_of
from anyo_rl.evaluation.report import write_report
from anyo_rl.evaluation.table import markdown_table
from anyo_rl.item_tokens import adapters, load_answering, semantic_ids, teacher_files
from anyo_rl.launch import go_on_alone, whole_weights
from anyo_rl.model_card import write_cards
from anyo_rl.ranking.likelihood import LikelihoodRanker
from anyo_rl.run_folder import METRICS, write_whole
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.task import Task
from anyo_rl.teacher import load_teacher, make_tiny_teacher, save_teacher, show_bias, stop_at_marker, train_tokenizer
from anyo_rl.tokens import Tokens, add_codes
from anyo_rl.training.callbacks import MetricsFile, best_checkpoint, keep_best, stopping, train_to_the_end
from anyo_rl.training.critic import detach_critic
from anyo_rl.training.sft import TeacherSFTTrainer, sft_dataset
from anyo_rl.training.throughput import Throughput
from anyo_rl.training.validation import Validation
from anyo_rl.training.weights import unquantised

logger = logging.getLogger(__name__)

TEACHER = "teacher"


def teacher_folder(stage_dir: Path) -> Path:
    """Where a stage keeps its finished teacher; that the folder is there says that the stage is done."""
    return stage_dir / TEACHER


def finish_stage(
    trainer: Trainer,
    stage_dir: Path,
    tokens: Tokens,
    start: Callable[[], PreTrainedModel],
    ids: SemanticIds | None = None,
) -> None:
    """Trains from the newest complete checkpoint to the end, and saves the best teacher in `teacher_folder`.

    Args:
        trainer: the trainer.
        stage_dir: the folder of its checkpoints.
        tokens: the teacher's tokenizer and marker.
        start: gives the model that the stage started from, on which LoRA adapters lie.
        ids: the semantic ids that the teacher answers with, if it does.
    """
    show_bias(trainer.model)
    trainer.add_callback(Throughput(trainer))
    train_to_the_end(trainer, stage_dir)
    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        # Read from the disk: what the trainer holds may be shared out over the processes.
        with whole_weights():
            best = best_checkpoint(stage_dir)
            model = load_checkpoint(best, start) if best else unquantised(start())
        if not best:
            logger.warning("%s: no validation was better than at the start, whose teacher is kept", stage_dir)
        detach_critic(model)
        stop_at_marker(model, tokens)
        save_teacher(model, tokens.tokenizer, teacher_folder(stage_dir), teacher_files(ids))
    accelerator.wait_for_everyone()


def load_checkpoint(
    checkpoint: Path, start: Callable[[], PreTrainedModel], kind: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    """The model of a checkpoint: whole, or LoRA adapters (and their new head) merged into what `start` gives.

    Adapters of a quantised model are merged into its weights as the adapters saw them, in full precision: quantised
    again, the merged weights would be others than those that were trained.
    """
    if (checkpoint / "adapter_config.json").exists():
        return PeftModel.from_pretrained(unquantised(start()), checkpoint).merge_and_unload()
    return kind.from_pretrained(checkpoint, dtype="auto", use_safetensors=True)


@dataclass(frozen=True)
class OpenTeacher:
    """A finished teacher, whole and ready to be asked.

    Attributes:
        model: its weights, on this process's device.
        tokens: its tokenizer and marker.
        catalog: the catalog in its tokens.
        ids: the semantic ids that it answers with, if it does.
    """

    model: PreTrainedModel
    tokens: Tokens
    catalog: Catalog
    ids: SemanticIds | None


def open_teacher(
    run_dir: Path,
    task: Task,
    teacher: Path | str,
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    seed: int,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> OpenTeacher:
    """Loads a teacher to sample from it and to rank with it. All processes call this, and each gets all of it."""
    model_args = dataclasses.replace(model_args, model_name_or_path=str(teacher))
    ids = semantic_ids(run_dir, task, teacher_args, teacher, partial(load_teacher, model_args), seed)
    with whole_weights():
        model, tokenizer = load_answering(model_args, ids)
    model.to(PartialState().device)
    tokens = Tokens.of(tokenizer, teacher_args.marker_token, chat_template_kwargs)
    return OpenTeacher(model, tokens, build_catalog(task.interactions.items, tokens, ids), ids)


def make_teacher(
    model_args: ModelConfig, teacher_args: TeacherArguments, task: Task, seed: int, ids: SemanticIds | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The teacher at the given path, or a tiny one made for the task where there is no path; it knows all codes."""
    if model_args.model_name_or_path:
        return load_answering(model_args, ids)
    tokenizer = train_tokenizer(task.texts(), teacher_args.tiny_vocab_size)
    add_codes(tokenizer, ids.tokens() if ids else [])
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
        *(task.rows(train, catalog, tokens), catalog, tokens, rationales if reasoning else None),
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
    rows = task.rows(task.split("train").filter(pl.col("example_id").is_in(drawn.tolist())), catalog, tokens)
    rows = [{**row, "prompt": task.hinted_prompt(row, catalog, tokens)} for row in rows]
    return sft_dataset(rows, catalog, tokens, task.rationales)


def validation(task: Task, catalog: Catalog, tokens: Tokens, teacher_args: TeacherArguments, mode: Mode) -> Validation:
    """What is measured on validation users while training."""
    return Validation(
        rows=task.rows(task.split("validation", task.args.max_validation), catalog, tokens),
        catalog=catalog,
        tokens=tokens,
        mode=mode,
        n_paths=teacher_args.n_paths,
        max_new_tokens=teacher_args.max_reasoning_tokens,
        mask_history=task.args.mask_history,
    )


def evaluate_run(
    run_dir: Path,
    task: Task,
    teachers: Mapping[str, Path | str],
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    *,
    baselines: bool,
    seed: int,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Evaluates the teachers of a run on its test users; writes `evaluation.json`, table, report and model cards.

    All processes call this at their end, and share the users; then the main process goes on alone.

    Args:
        run_dir: the run folder.
        task: the data.
        teachers: stage name to teacher folder; the stage `direct` answers without reasoning.
        model_args: how teachers are loaded.
        teacher_args: the marker, the number of paths and the length of a reasoning.
        baselines: whether to evaluate popularity, item-kNN, SASRec and the oracle too.
        seed: of draws and intervals.
        chat_template_kwargs: what the chat template is told, as in training.

    Returns:
        What `evaluation.json` has; `None` in the other processes.
    """
    model_args = dataclasses.replace(model_args, load_in_4bit=False, load_in_8bit=False)  # as they were saved
    test = task.split("test", task.args.max_test)
    evaluation = None
    for stage, path in teachers.items():
        opened = open_teacher(run_dir, task, path, model_args, teacher_args, seed, chat_template_kwargs)
        tokens, catalog = opened.tokens, opened.catalog
        evaluation = Evaluation(run_dir, task, catalog, test, seed)
        rows = task.rows(test, catalog, tokens)
        for mode in ("plain",) if stage == "direct" else REASONING_MODES:
            ask = partial(
                answer_together,
                rows,
                LikelihoodRanker(catalog, opened.model),
                TransformersSampler(opened.model, tokens, with_log_probs=True),
                tokens,
                mode,
                n_paths=teacher_args.n_paths,
                max_new_tokens=teacher_args.max_reasoning_tokens,
                seed=seed,
                mask_history=task.args.mask_history,
            )
            made_with = {
                "weights": weights_of(path),
                "marker": tokens.marker_id,
                "chat_template_kwargs": chat_template_kwargs,
                "max_new_tokens": teacher_args.max_reasoning_tokens,
            }
            if opened.ids is not None:
                made_with["item_tokens"] = catalog.tree.fingerprint
            if mode == "mixture":
                made_with["n_paths"] = teacher_args.n_paths
            with whole_weights():  # a process must not wait for others in its forwards
                evaluation.keep(stage, mode, ask, made_with, together=True)
    if evaluation is None:
        raise ValueError("no teacher to evaluate; name at least one stage and its folder")
    if not go_on_alone():
        return None
    if baselines:
        evaluation.baselines()
    summary = evaluation.summary(LikelihoodRanker.kind, teacher_args.n_paths)
    write_whole(run_dir / "evaluation.json", json.dumps(summary, indent=2))
    write_whole(run_dir / "evaluation.md", markdown_table(summary))
    write_report(run_dir)
    write_cards(run_dir, task, teachers, tokens, summary)
    return summary
