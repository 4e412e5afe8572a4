"""Opening a teacher together with its tokens and its catalog, and closing it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from anyo_rl.catalog.catalog import Catalog, build_catalog, open_catalog
from anyo_rl.catalog.item_tokens import ItemTokens, add_thoughts, load_answering, own_ids, semantic_ids
from anyo_rl.catalog.item_vectors import ITEM_VECTORS, code_vectors, item_vectors, kept_vectors
from anyo_rl.catalog.semantic_ids import SemanticIds
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.memory import free_memory
from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.codes import start_item_tokens
from anyo_rl.teacher.load import load_tokenizer
from anyo_rl.teacher.tokens import Tokens, add_codes

CATALOG = "catalog"  # the folder of a run in which the trees of its catalogs lie, for all processes of a machine


@dataclass
class Teacher:
    """An open teacher.

    Attributes:
        model: its weights.
        tokens: its tokenizer and marker.
        catalog: the catalog in its tokens.
        ids: the semantic ids that it answers with, if it does.
        choices: what it answers with in place of items, as a catalog of its own; `None` for items.
    """

    model: PreTrainedModel
    tokens: Tokens
    catalog: Catalog
    ids: SemanticIds | None = None
    choices: Catalog | None = None

    @property
    def answers(self) -> Catalog:
        """What it answers with: what is ranked, and trained behind the marker."""
        return self.catalog if self.choices is None else self.choices

    def close(self) -> None:
        """Lets go of the weights: `model` is there no more, and its memory is free unless somebody else holds it."""
        del self.model
        free_memory()


@dataclass(frozen=True)
class Opening:
    """How the teachers of a run are opened. All processes open them together.

    Attributes:
        folder: the run folder, where computed semantic ids and the trees of catalogs are kept.
        items: the item table.
        model_args: how weights are loaded (TRL's), their path aside.
        make: makes a teacher from scratch, where there is no path to load one from; it is given the codes that it has
            to know.
        item_tokens: what teachers answer with.
        sequences: gives the items of each training user by row of the item table, for collaborative vectors.
        marker_token: the added token that serves as the marker; `->` or `</think>` if `None`.
        chat_template_kwargs: what chat templates get besides the messages.
        choices: what teachers answer with in place of items, in the columns of an item table; `None` for items.
        thoughts: tokens that prompts hold, of thoughts without words.
    """

    folder: Path
    items: pl.DataFrame
    model_args: ModelConfig
    make: Callable[[Sequence[str]], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    item_tokens: ItemTokens = field(default_factory=ItemTokens)
    sequences: Callable[[], Sequence[Sequence[int]]] = list
    marker_token: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    choices: pl.DataFrame | None = None
    thoughts: Sequence[str] = ()

    def load(self, path: Path | str | None) -> Teacher:
        """A teacher to be trained: its weights lie where the launch puts them. `None` makes one from scratch.

        Raises:
            DataError: see `anyo_rl.catalog.item_tokens.semantic_ids`.
            ValueError: there is no teacher at the path, or its tokenizer has no marker.
        """
        ids = self.ids(path)
        return self._with_catalog(*self.weights(path, ids), ids)

    @contextmanager
    def opened(self, path: Path | str) -> Iterator[Teacher]:
        """A teacher to be asked, whole on this process's device; closed at the end of the block.

        Raises:
            DataError, ValueError: see `load`.
        """
        ids = self.ids(path)
        with whole_weights():
            model, tokenizer = self.weights(path, ids)
        model.to(PartialState().device)
        teacher = self._with_catalog(model, tokenizer, ids)
        del model
        try:
            yield teacher
        finally:
            teacher.close()

    def catalog(self, path: Path | str) -> tuple[Tokens, Catalog]:
        """Tokens and catalog of a teacher, without its weights."""
        tokenizer = load_tokenizer(self.of_path(path))
        add_codes(tokenizer, self.thoughts)
        tokens = self.tokens(tokenizer)
        return tokens, open_catalog(self.items, tokens, self.ids(path), self.folder / CATALOG)

    def weights(
        self, path: Path | str | None, ids: SemanticIds | None
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Weights and tokenizer alone; they know the codes of semantic ids, which start as the run's settings say."""
        model, tokenizer = self._plain_weights(path, ids)
        if ids is not None and self._needs_vectors(path):
            vectors_N_D = np.load(self.folder / ITEM_VECTORS, mmap_mode="r", allow_pickle=False)
            wanted = self.item_tokens
            start_item_tokens(
                model,
                add_codes(tokenizer, ids.tokens()),
                code_vectors(ids, self.items["item_id"].to_list(), vectors_N_D),
                own_space=wanted.encoder == "teacher" and wanted.vectors != "collaborative",
                seed=wanted.seed,
            )
        return model, tokenizer

    def _plain_weights(
        self, path: Path | str | None, ids: SemanticIds | None
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The same, new codes at the mean of the teacher's vectors."""
        if path is None:
            model, tokenizer = self.make(ids.tokens() if ids else [])
            add_thoughts(model, tokenizer, self.thoughts)
            return model, tokenizer
        return load_answering(self.of_path(path), ids, self.thoughts)

    def _needs_vectors(self, path: Path | str | None) -> bool:
        """Whether the added tokens of the teacher at a path are new, and start from vectors of items."""
        return self.item_tokens.vectors != "mean" and own_ids(path) is None

    def ids(self, path: Path | str | None) -> SemanticIds | None:
        """The semantic ids of the teacher at a path, and the vectors that new ones start from, in the run folder.

        All processes call this; see `anyo_rl.catalog.item_tokens.semantic_ids`.
        """
        ids = semantic_ids(self.folder, self.items, self.item_tokens, path, lambda: self._vectors(path, None))
        if ids is not None and self._needs_vectors(path):
            if PartialState().is_main_process:
                self._vectors(path, ids)
            if torch.distributed.is_initialized():  # not after training, when the main process goes on alone
                PartialState().wait_for_everyone()
        return ids

    def _vectors(self, path: Path | str | None, ids: SemanticIds | None) -> np.ndarray:
        """(N, D) vectors of the items, made if they are not there."""

        def load() -> tuple[PreTrainedModel, Tokens]:
            with whole_weights():
                model, tokenizer = self._plain_weights(path, ids)
            return model, self.tokens(tokenizer)

        wanted, titles = self.item_tokens, self.items["title"].to_list()
        try:
            return kept_vectors(
                self.folder / ITEM_VECTORS,
                lambda: item_vectors(wanted.vectors, titles, wanted.encoder, load, self.sequences()),
            )
        except ImportError as error:
            raise UsageError(str(error)) from error

    def of_path(self, path: Path | str | None) -> ModelConfig:
        """How the teacher at a path is loaded."""
        return dataclasses.replace(self.model_args, model_name_or_path=None if path is None else str(path))

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> Tokens:
        """A tokenizer with the run's marker and chat template."""
        return Tokens.of(tokenizer, self.marker_token, self.chat_template_kwargs)

    def _with_catalog(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: SemanticIds | None
    ) -> Teacher:
        tokens = self.tokens(tokenizer)
        catalog = open_catalog(self.items, tokens, ids, self.folder / CATALOG)
        choices = None if self.choices is None else build_catalog(self.choices, tokens)
        return Teacher(model, tokens, catalog, ids, choices)
