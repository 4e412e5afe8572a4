"""TRL's datasets without their rows: a column of row numbers, and rows that are made when a batch is drawn.

A million rows of prompts and token ids are gigabytes in each process; their numbers are a few megabytes.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
from datasets import Dataset
from torch.utils.data import ConcatDataset

ROW, LENGTH = "row", "length"
STORED = (ROW, LENGTH)  # what a trainer must not take away as unused


class Source(Protocol):
    """Rows as columns of values, each made when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Mapping[str, object]: ...


def lazy_dataset(source: Source, lengths: Sequence[int] | np.ndarray | None = None) -> Dataset:
    """A dataset that has the rows of its source, and keeps none of them.

    Args:
        source: the rows.
        lengths: their numbers of tokens, for batches of rows of one length (`group_by_length`).
    """
    stored = {ROW: np.arange(len(source), dtype=np.int32)}
    if lengths is not None:
        stored[LENGTH] = np.asarray(lengths, dtype=np.int32)
    dataset = Dataset.from_dict(stored)
    dataset.set_transform(_Reader(source))
    return dataset


def as_stored(dataset: Dataset) -> Dataset:
    """Row numbers and lengths alone: of these no row has to be made."""
    return dataset.with_format(None)


def joined(*datasets: Dataset) -> Dataset:
    """Lazy datasets with lengths, one after the other."""
    lengths = [np.asarray(as_stored(dataset).with_format("numpy")[LENGTH][:]) for dataset in datasets]
    return lazy_dataset(ConcatDataset(datasets), np.concatenate(lengths))


class _Reader:
    """Makes the rows of a batch. Datasets copy and hash their transform again and again: this one is opaque."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __call__(self, batch: Mapping[str, list[int]]) -> dict[str, list[object]]:
        # A batch of GRPO has each prompt several times; none of them is to see what is done to another.
        made = {row: self.source[row] for row in dict.fromkeys(batch.get(ROW, []))}
        rows = [copy.deepcopy(made[row]) for row in batch.get(ROW, [])]
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}

    def __deepcopy__(self, memo: Any) -> "_Reader":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _not_here, ()


def _not_here() -> NoReturn:
    raise RuntimeError("a lazy dataset cannot go to another program: leave dataloader_multiprocessing_context unset")
