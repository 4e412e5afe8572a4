"""What a recipe was asked to do, as one noun that its stages share."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.item_tokens import ItemTokens
from anyo_rl.catalog.opening import Opening, Teacher
from anyo_rl.data.sequences import train_sequences
from anyo_rl.data.task import Task
from anyo_rl.evidence.fusion import Fusion
from anyo_rl.ranking.order import write_order
from anyo_rl.reasoning.alignment import AlignmentRows
from anyo_rl.reasoning.kinds.asking import Asking
from anyo_rl.reasoning.rows import Row, Rows, make_rows, sample_texts
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import How, Mode
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.candidates import Asks
from anyo_rl.teacher.load import load_tokenizer
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens, add_codes
from anyo_rl.training.loop.validation import Validation

logger = logging.getLogger(__name__)

TEACHER = "teacher"
REASONING_TOKENS, THINKING_TOKENS = 64, 512  # of a completion at most, where nothing is set


@dataclass(frozen=True)
class Job:
    """What a recipe was asked.

    Attributes:
        folder: the run folder.
        task: the data.
        model_args: how teachers are loaded (TRL's); the path in it is what the run starts from, none makes a tiny one.
        teacher_args: the marker, what teachers answer with, how long they reason, how they are validated.
        seed: of everything that is drawn.
        chat_template_kwargs: what chat templates get besides the messages.
    """

    folder: Path
    task: Task
    model_args: ModelConfig
    teacher_args: TeacherArguments
    seed: int = 0
    chat_template_kwargs: Mapping[str, Any] | None = None

    def teacher_folder(self, stage: str) -> Path:
        """Where a stage keeps its finished teacher; that the folder is there says that the stage is done."""
        return self.folder / stage / TEACHER

    @cached_property
    def max_reasoning_tokens(self) -> int:
        """Most tokens of a reasoning, the marker included: of the run's settings, else what its teacher is used to."""
        told, path = self.teacher_args.max_reasoning_tokens, self.model_args.model_name_or_path
        if told is not None or path is None:
            return told or REASONING_TOKENS
        return THINKING_TOKENS if self.opening.tokens(load_tokenizer(self.model_args)).thinks else REASONING_TOKENS

    @property
    def asks(self) -> Asks:
        """What questions about candidates are made of."""
        args = self.teacher_args
        writes = args.sft_item_loss == "tokens"
        return Asks(self.folder, self.task, args.kind(), args.evidence, args.baselines_from, self.seed, writes)

    @cached_property
    def asking(self) -> Asking:
        """How teachers are asked: by the run's kind of reasoning. All processes call this together."""
        kind, state = self.teacher_args.kind(), PartialState()
        asking = Asking(kind, self.task, self.asks.questions())
        if asking.kind.prepare is not None:
            if state.is_main_process:
                asking.prepare(self.folder)
            if torch.distributed.is_initialized():  # not after training, when the main process goes on alone
                state.wait_for_everyone()
            if not state.is_main_process:  # it finds what that one has kept
                asking.prepare(self.folder)
        return asking

    @property
    def opening(self) -> Opening:
        """How this run's teachers are opened."""
        args = self.teacher_args
        return Opening(
            folder=self.folder,
            items=self.task.interactions.items,
            model_args=self.model_args,
            make=self._make,
            item_tokens=ItemTokens(
                kind=args.item_tokens,
                column=args.semantic_id_column,
                vectors=args.item_vectors,
                encoder=args.title_vectors,
                n_levels=args.semantic_id_levels,
                n_codes=args.semantic_id_codes,
                seed=self.seed,
            ),
            sequences=self._sequences,
            marker_token=args.marker_token,
            chat_template_kwargs=self.chat_template_kwargs,
            choices=self.teacher_args.kind().choices,
            thoughts=self.teacher_args.kind().thoughts,
        )

    def opened(self, path: Path | str) -> AbstractContextManager[Teacher]:
        """A teacher to be asked; see `Opening.opened`."""
        return self.opening.opened(path)

    def rows(self, split: str, teacher: Teacher, limit: int | None = None) -> Rows:
        """The examples of a split as a teacher reads them; with a limit, that many drawn by the data seed.

        Where teachers are asked about candidates, those that have a right answer.

        Raises:
            UsageError: none has one.
        """
        places, questions = self.task.places(split, limit), self.asking.questions
        if questions is not None:
            usable = questions.usable(places)
            logger.info("%s: %d of %d %s examples have a right answer", self.folder, len(usable), len(places), split)
            if not len(usable):
                raise UsageError(
                    f"none of {len(places)} {split} examples has a right answer among "
                    f"{self.asking.listed.n_candidates} candidates: raise n_candidates, or take another source of them"
                )
            places = usable
        return self.rows_at(places, teacher)

    def order_tokens(self, teacher: Teacher) -> int:
        """Most tokens of a whole order of candidates, its end included."""
        return len(teacher.tokens.item_ids(write_order(range(self.asking.listed.width))))

    def rows_at(self, places: np.ndarray, teacher: Teacher | tuple[Tokens, Catalog]) -> Rows:
        """The examples at some row numbers, as a teacher reads them, or as its tokens and catalog alone tell."""
        tokens, catalog = teacher if isinstance(teacher, tuple) else (teacher.tokens, teacher.catalog)
        return Rows(self.task, places, catalog, tokens, asking=self.asking)

    def alignment_rows(self, teacher: Teacher, n_others: int, seed: int, *, reasons: bool) -> AlignmentRows | None:
        """Rows of the run's alignment tasks, as many as their share asks for; `None` where there are none.

        Args:
            teacher: reads them.
            n_others: rows that they stand beside.
            seed: of their order.
            reasons: whether words can be written before an item; else the task that asks for them is left out.

        Raises:
            UsageError: teachers are asked about candidates; see also `AlignmentRows`.
        """
        alignment = self.teacher_args.alignment
        tasks = [name for name in alignment.tasks if reasons or name != "words"]
        n_rows = alignment.n_rows(n_others)
        if not tasks or not n_rows:
            return None
        if self.asking.questions is not None:
            raise UsageError(
                f"alignment_tasks answer with items, and the kind of reasoning {self.asking.kind.name} with "
                f"candidates: leave alignment_tasks out, or train an earlier stage with them"
            )
        return AlignmentRows(self.task, teacher.catalog, teacher.tokens, tasks, n_rows, seed)

    def rows_of(self, examples: pl.DataFrame, teacher: Teacher) -> list[Row]:
        """A few examples as a teacher reads them, all at once."""
        return make_rows(self.task, examples, teacher.catalog, teacher.tokens, self.asking)

    def how(self, mode: Mode, *, seed: int, top_k: int = 20) -> How:
        """How users are answered in this run; see `How` for the settings."""
        args = self.teacher_args
        sampling = Sampling(n=args.n_paths, max_new_tokens=self.max_reasoning_tokens, seed=seed)
        return How(mode, sampling, top_k=top_k)

    def sampler(self, model: PreTrainedModel, tokens: Tokens, *, with_log_probs: bool = False) -> TransformersSampler:
        """A sampler of a teacher in hand, within the run's memory."""
        return TransformersSampler(model, tokens, self.teacher_args.sampling_tokens, with_log_probs)

    def validation(self, teacher: Teacher, mode: Mode | None = None, fusion: Fusion | None = None) -> Validation:
        """What is measured on validation users while training.

        Args:
            teacher: reads them.
            mode: how it answers; as the run's settings say if `None`.
            fusion: evidence that ranks are taken together with.
        """
        return Validation(
            rows=list(self.rows("validation", teacher, self.task.args.max_validation)),
            catalog=teacher.answers,
            tokens=teacher.tokens,
            how=self.how(mode or self.teacher_args.eval_mode, seed=0, top_k=1),
            node_budget=self.teacher_args.validation_node_budget or None,
            cache_tokens=self.teacher_args.sampling_tokens,
            fusion=fusion,
        )

    def _sequences(self) -> list[list[int]]:
        """The items of each training user, by row of the item table."""
        rows = {item_id: row for row, item_id in enumerate(self.task.interactions.items["item_id"].to_list())}
        return train_sequences(self.task, rows)

    def _make(self, codes: Sequence[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A tiny teacher for the task, which knows the codes."""
        args = self.teacher_args
        texts = [*sample_texts(self.task), *self.asking.kind.sample_texts()]
        tokenizer = train_tokenizer(texts, args.tiny_vocab_size)
        add_codes(tokenizer, codes)
        model = make_tiny_teacher(
            tokenizer, hidden_size=args.tiny_hidden_size, n_layers=args.tiny_layers, seed=self.seed
        )
        return model, tokenizer
