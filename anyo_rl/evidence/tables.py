"""Evidence on disk: a folder for each set of examples that met the same retrievers, read through memory maps.

    candidates.npy    (R, K) int32
    features.npy      (R, K, X) float32
    examples.parquet  example id and index of the target, a row each
    table.json        names of the features, and what the table was made with

A table is written under another name and renamed when it is whole: what is there is finished, also after a kill.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from tqdm import tqdm

from anyo_rl.data.schema import EXAMPLE_ID
from anyo_rl.data.sequences import held_out
from anyo_rl.data.task import Task
from anyo_rl.evidence.candidates import Items
from anyo_rl.evidence.features import Gatherer, features_of, gather
from anyo_rl.evidence.retrievers import Fitted
from anyo_rl.run.files import read_json, read_table, readable, sync, write_table
from anyo_rl.run.settings import UsageError

TARGET = "target"
MOST_SCORES = 2**21  # in a block of scores: 8 MB, which the allocator gives again without clearing
FILES = ("candidates.npy", "features.npy", "examples.parquet", "table.json")


@dataclass(frozen=True)
class Table:
    """The evidence of some examples.

    Attributes:
        example_ids: a row each.
        targets_R: item indices.
        candidates_R_K: see `features.Block`; a memory map.
        features_R_K_X: as well.
        names: of the features.
    """

    example_ids: list[str]
    targets_R: NDArray[np.int64]
    candidates_R_K: Items
    features_R_K_X: NDArray[np.float32]
    names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.example_ids)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Example id → row."""
        return {example: row for row, example in enumerate(self.example_ids)}

    @cached_property
    def hit_R(self) -> NDArray[np.bool_]:
        """Whether the target is a candidate."""
        return (self.candidates_R_K == self.targets_R[:, None]).any(axis=1)


def keep_table(
    folder: Path, task: Task, examples: pl.DataFrame, fitted: Fitted, how: Gatherer, made_with: Mapping[str, Any]
) -> None:
    """Gathers the evidence of some examples into a folder.

    Args:
        folder: where to; what is there is made again.
        task: the data.
        examples: rows of its examples frame.
        fitted: retrievers, which these examples are to meet.
        how: see `Gatherer`.
        made_with: what the table depends on besides, ready for JSON.
    """
    item_ids = task.interactions.items["item_id"].to_list()
    index = {item_id: place for place, item_id in enumerate(item_ids)}
    names = [feature.name for feature in features_of(fitted.scorers, how.vectors_N_D is not None)]
    partial = folder.with_name(f"{folder.name}.partial")
    for left in (partial, folder):
        shutil.rmtree(left, ignore_errors=True)
    partial.mkdir(parents=True)
    shape = (len(examples), how.n_candidates)
    candidates = open_memmap(partial / "candidates.npy", mode="w+", dtype=np.int32, shape=shape)
    features = open_memmap(partial / "features.npy", mode="w+", dtype=np.float32, shape=(*shape, len(names)))
    targets, at_once = [], max(1, MOST_SCORES // fitted.n_items)
    for start in tqdm(range(0, len(examples), at_once), desc=folder.name, mininterval=5, leave=False):
        asked = held_out(task, examples[start : start + at_once], index)
        block = gather(asked, fitted, how)
        candidates[start : start + at_once] = block.candidates_R_K
        features[start : start + at_once] = block.features_R_K_X
        targets += asked.targets
    candidates.flush()
    features.flush()
    write_table(
        examples.select(EXAMPLE_ID).with_columns(pl.Series(TARGET, targets, dtype=pl.Int64)),
        partial / "examples.parquet",
    )
    (partial / "table.json").write_text(json.dumps({"features": names, "made_with": dict(made_with)}, indent=2))
    for file in FILES:
        sync(partial / file)
    partial.replace(folder)
    sync(folder.parent)


def is_kept(folder: Path, made_with: Mapping[str, Any]) -> bool:
    """Whether a table is there, made with the very same."""
    file = folder / "table.json"
    return file.is_file() and read_json(file)["made_with"] == json.loads(json.dumps(made_with))


def open_table(folder: Path) -> Table:
    """Maps a finished table into memory.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    if not (folder / "table.json").is_file():
        raise UsageError(f"found no evidence in {folder}: run recipes/rank_evidence.py")
    examples = read_table(folder / "examples.parquet")
    with readable(folder):
        arrays = [np.load(folder / name, mmap_mode="r", allow_pickle=False) for name in FILES[:2]]
        names = tuple(read_json(folder / "table.json")["features"])
        if {len(array) for array in arrays} != {len(examples)} or arrays[1].shape[-1] != len(names):
            raise ValueError(f"{len(examples)} examples, arrays of {arrays[0].shape} and {arrays[1].shape}")
    return Table(examples[EXAMPLE_ID].to_list(), examples[TARGET].to_numpy(), arrays[0], arrays[1], names)
