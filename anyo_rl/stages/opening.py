"""Opening a teacher together with its catalog."""

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.catalog.item_tokens import load_answering, semantic_ids
from anyo_rl.catalog.semantic_ids import SemanticIds
from anyo_rl.data.task import Task
from anyo_rl.reasoning.rows import sample_texts
from anyo_rl.run.launch import whole_weights
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.teacher.load import load_teacher
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens, add_codes


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
    tokenizer = train_tokenizer(sample_texts(task), teacher_args.tiny_vocab_size)
    add_codes(tokenizer, ids.tokens() if ids else [])
    model = make_tiny_teacher(
        tokenizer, hidden_size=teacher_args.tiny_hidden_size, n_layers=teacher_args.tiny_layers, seed=seed
    )
    return model, tokenizer
