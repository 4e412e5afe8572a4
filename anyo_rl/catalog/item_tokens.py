"""What a teacher answers with: titles, item tokens or semantic ids; the last two are kept in its folder.

Semantic ids are made once, by the first stage that needs them: published ones are read from a column of the item
table, others are quantised from vectors of the titles (`anyo_rl.catalog.semantic_ids`). They lie in the run folder, so
that a run that is started again has the same, and in the folder of every teacher that was trained on them: computed
from its new vectors they would be others, and its tokens would mean something else. Item tokens are semantic ids of
one code, by the order of the item table.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import torch
from accelerate import PartialState
from peft import LoraConfig, PeftConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config

from anyo_rl.catalog.item_vectors import VectorKind
from anyo_rl.catalog.semantic_ids import (
    SemanticIds,
    codebook_size,
    computed_ids,
    item_tokens,
    published_ids,
    quantise,
    read_ids,
    write_ids,
)
from anyo_rl.data.schema import DataError
from anyo_rl.encoders.titles import ItemEncoder
from anyo_rl.run.files import write_whole
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.codes import add_item_tokens, train_item_tokens
from anyo_rl.teacher.load import load_teacher
from anyo_rl.teacher.tokens import add_codes, known_thoughts

logger = logging.getLogger(__name__)

SEMANTIC_IDS = "semantic_ids.json"
Kind = Literal["title", "item", "semantic_id"]


@dataclass(frozen=True)
class ItemTokens:
    """What teachers answer with.

    Attributes:
        kind: `title`; `item`, an added token for each item; or `semantic_id`: codes, an added token each.
        column: of the item table, with published semantic ids; computed from titles if `None`.
        vectors: what their vectors start from; semantic ids are computed of the same, of titles' for `mean`.
        encoder: what embeds titles for that.
        n_levels: codes of a computed semantic id.
        n_codes: codes of a level, a power of two; if `None` 256, or fewer below 2,048 items.
        seed: of the codebooks.
    """

    kind: Kind = "title"
    column: str | None = None
    vectors: VectorKind = "mean"
    encoder: ItemEncoder = "teacher"
    n_levels: int = 3
    n_codes: int | None = None
    seed: int = 0


def semantic_ids(
    folder: Path,
    items: pl.DataFrame,
    wanted: ItemTokens,
    teacher: Path | str | None,
    vectors: Callable[[], np.ndarray],
) -> SemanticIds | None:
    """The semantic ids that a teacher answers with, item tokens among them; `None` where it answers with titles.

    All processes call this; the main one computes the ids where there are none.

    Args:
        folder: the run folder, where computed ids are kept.
        items: the item table.
        wanted: what is asked for.
        teacher: the teacher's folder or name; `None` for one made from scratch.
        vectors: gives (N, D) vectors of the items, in the main process alone. Not called where ids are there or in a
            column.

    Raises:
        DataError: the ids cannot be made, the teacher was trained on others, or it answers with something else.
    """
    column = wanted.column
    own = own_ids(teacher)
    try:
        if wanted.kind == "title" and wanted.vectors != "mean":
            raise UsageError(
                f"item_vectors is {wanted.vectors} and item_tokens is title: there is no added token that could start "
                f"from them; leave item_vectors out, or set item_tokens to item or semantic_id"
            )
        if column and wanted.kind != "semantic_id":
            raise UsageError(
                f"semantic_id_column is {column!r} but item_tokens is {wanted.kind}: set item_tokens to semantic_id"
            )
        if own is None:
            return None if wanted.kind == "title" else _made(folder, items, wanted, vectors)
        ids = read_ids(own)
        if wanted.kind != ids.kind and not column:
            names = {"item": "item tokens", "semantic_id": "semantic ids"}
            raise UsageError(
                f"the teacher {teacher} answers with {names[ids.kind]} ({own}) and item_tokens is {wanted.kind}: set "
                f"item_tokens to {ids.kind}"
            )
        if column:
            _check_column(items, ids, column, own)
    except (ValueError, ImportError) as error:
        raise DataError(str(error)) from error
    return ids


def own_ids(teacher: Path | str | None) -> Path | None:
    """The file of the semantic ids that a teacher was trained on; `None` where it was trained on none."""
    file = None if teacher is None else Path(teacher) / SEMANTIC_IDS
    return file if file is not None and file.is_file() else None


def load_answering(
    model_args: ModelConfig, ids: SemanticIds | None, thoughts: Sequence[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a teacher and its tokenizer, with what it was not trained on added: codes of semantic ids, thoughts.

    Raises:
        UsageError: it was trained with fewer thoughts.
    """
    codes = [] if ids is None or own_ids(model_args.model_name_or_path) else ids.tokens()
    if not codes and not thoughts:
        return load_teacher(model_args)
    with whole_weights():  # rows cannot be added to weights that are shared out
        model, tokenizer = load_teacher(model_args)
        if codes:
            add_item_tokens(model, tokenizer, codes)
        add_thoughts(model, tokenizer, thoughts)
    return model, tokenizer


def add_thoughts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, thoughts: Sequence[str]) -> None:
    """Adds thoughts without words to a teacher that knows none; one that does keeps what it has.

    Raises:
        UsageError: it was trained with fewer.
    """
    known = known_thoughts(tokenizer)
    if known and len(thoughts) > len(known):
        raise UsageError(
            f"n_thoughts is {len(thoughts)}, and the teacher was trained with {len(known)}: take as many or fewer, or "
            "train from a teacher without thoughts"
        )
    if thoughts and not known:
        add_item_tokens(model, tokenizer, thoughts)


def adapters(
    model_args: ModelConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: SemanticIds | None
) -> PeftConfig | None:
    """The LoRA adapters that `ModelConfig` asks for, which train the codes of semantic ids, and thoughts, too."""
    codes = [] if ids is None else add_codes(tokenizer, ids.tokens())
    codes += tokenizer.convert_tokens_to_ids(known_thoughts(tokenizer))
    return train_item_tokens(get_peft_config(model_args), model, codes)


def without_dropout(lora: PeftConfig | None) -> PeftConfig | None:
    """Adapters for reinforcement: what is sampled, ranked and trained is to be one policy; dropout makes it two."""
    if isinstance(lora, LoraConfig):
        lora.lora_dropout = 0.0
    return lora


def teacher_files(ids: SemanticIds | None) -> dict[str, str]:
    """What a teacher keeps in its folder beside its weights."""
    return {} if ids is None else {SEMANTIC_IDS: write_ids(ids)}


def _check_column(items: pl.DataFrame, ids: SemanticIds, column: str, file: Path) -> None:
    published = published_ids(items, column).codes
    other = [item_id for item_id, codes in published.items() if ids.codes.get(item_id) != codes]
    if other:
        raise UsageError(
            f"item {other[0]!r} is {''.join(published[other[0]])} by column {column!r} and "
            f"{''.join(ids.codes.get(other[0], ('unknown',)))} in {file}, which the teacher was trained on "
            f"({len(other)} of {len(published)} items): leave semantic_id_column out, or take another teacher"
        )


def _made(folder: Path, items: pl.DataFrame, wanted: ItemTokens, vectors: Callable[[], np.ndarray]) -> SemanticIds:
    """Item tokens, published ids, or computed ones by way of the run folder."""
    if wanted.kind == "item":
        return item_tokens(items["item_id"].to_list())
    if wanted.column:
        return published_ids(items, wanted.column)
    file = folder / SEMANTIC_IDS
    if PartialState().is_main_process and not file.is_file():
        n_codes = wanted.n_codes or codebook_size(len(items))
        codes_N_L = quantise(vectors(), n_levels=wanted.n_levels, n_codes=n_codes, seed=wanted.seed)
        ids = computed_ids(items["item_id"].to_list(), codes_N_L)
        source = "title" if wanted.vectors in ("mean", "text") else wanted.vectors
        logger.info("semantic ids: %d levels of %d codes from %s vectors", codes_N_L.shape[1], n_codes, source)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(file, write_ids(ids))
    if torch.distributed.is_initialized():  # not after training, when the main process goes on alone
        PartialState().wait_for_everyone()
    return read_ids(file)
