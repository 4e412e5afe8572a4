"""Opening a teacher together with its tokens and its catalog, and closing it."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from anyo_rl.catalog.catalog import Catalog, open_catalog
from anyo_rl.catalog.item_tokens import ItemTokens, load_answering, semantic_ids
from anyo_rl.catalog.semantic_ids import SemanticIds
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.memory import free_memory
from anyo_rl.teacher.load import load_tokenizer
from anyo_rl.teacher.tokens import Tokens

CATALOG = "catalog"  # the folder of a run in which the trees of its catalogs lie, for all processes of a machine


@dataclass
class Teacher:
    """An open teacher.

    Attributes:
        model: its weights.
        tokens: its tokenizer and marker.
        catalog: the catalog in its tokens.
        ids: the semantic ids that it answers with, if it does.
    """

    model: PreTrainedModel
    tokens: Tokens
    catalog: Catalog
    ids: SemanticIds | None = None

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
        marker_token: the added token that serves as the marker; `->` or `</think>` if `None`.
        chat_template_kwargs: what chat templates are told.
    """

    folder: Path
    items: pl.DataFrame
    model_args: ModelConfig
    make: Callable[[Sequence[str]], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    item_tokens: ItemTokens = field(default_factory=ItemTokens)
    marker_token: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

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
        tokens = self.tokens(load_tokenizer(self.of_path(path)))
        return tokens, open_catalog(self.items, tokens, self.ids(path), self.folder / CATALOG)

    def weights(
        self, path: Path | str | None, ids: SemanticIds | None
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Weights and tokenizer alone; they know the codes of semantic ids."""
        if path is None:
            return self.make(ids.tokens() if ids else [])
        return load_answering(self.of_path(path), ids)

    def ids(self, path: Path | str | None) -> SemanticIds | None:
        """The semantic ids of the teacher at a path; see `anyo_rl.catalog.item_tokens.semantic_ids`."""

        def load() -> tuple[PreTrainedModel, Tokens]:
            model, tokenizer = self.weights(path, None)
            return model, self.tokens(tokenizer)

        return semantic_ids(self.folder, self.items, self.item_tokens, path, load)

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
        return Teacher(model, tokens, open_catalog(self.items, tokens, ids, self.folder / CATALOG), ids)
