"""Alignment tasks in the form of the sequence stage: a prompt, and the item read off behind its marker."""

from collections.abc import Sequence

import numpy as np
from datasets import Dataset

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.reasoning.rows import Row
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.lazy import lazy_dataset
from anyo_rl.training.sequence import SequenceRow, one_choice, tokens_before


def aligned_sequences(rows: Sequence[Row], catalog: Catalog, tokens: Tokens) -> Dataset:
    """Rows without a history as windows of one event, which can stand among those of `sequence_dataset`.

    Args:
        rows: of alignment tasks.
        catalog: the catalog.
        tokens: the teacher's tokenizer and marker.
    """
    source = _Aligned(rows, catalog, tokens)
    return lazy_dataset(source, np.array([len(source[row]["input_ids"]) for row in range(len(rows))]))


class _Aligned:
    def __init__(self, rows: Sequence[Row], catalog: Catalog, tokens: Tokens) -> None:
        self.rows, self.catalog, self.tokens = rows, catalog, tokens
        self.depth = one_choice(catalog) or 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> SequenceRow:
        row = self.rows[number]
        context, item = self.tokens.context_ids(row.prompt), self.catalog.index[row.target_id]
        asked = [*context, *self.tokens.reasoning_ids([], context)]
        ids = [*asked, *tokens_before(self.catalog, item)]
        return SequenceRow(
            input_ids=ids,
            branch=[0] * len(ids),
            position_ids=list(range(len(ids))),
            begin=[0] * len(ids),
            place=[len(asked) - 1 + self.depth],
            items=[item],
            n_past=[0],
            past=[],
        )
