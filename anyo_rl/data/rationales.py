"""Reads rationales that were written to a file: by the recipe that asks an LLM, or by anything with its columns."""

import json
from pathlib import Path

import polars as pl

from anyo_rl.data.completion import parse
from anyo_rl.data.schema import DataError
from anyo_rl.run.files import scan_table

PATHS_FILE = "paths.parquet"
DATASET_FILE = "train.parquet"
Rationales = list[tuple[str, tuple[str, ...]]]


def read_rationales(path: Path, targets: dict[str, str]) -> Rationales:
    """(example id, steps) of each rationale that was kept, several for an example where there are, in their order.

    Args:
        path: a run folder of make_rationales, the paths table in it (rows whose `rewards` say `kept`), or its data set
            (columns `example_id`, `completion` and, if it is there, `target_id`).
        targets: the target of each training example.

    Raises:
        DataError: there is no such file, it holds no rationale, or it was made for other examples.
    """
    file = next((place for place in (path / PATHS_FILE, path / DATASET_FILE, path) if place.is_file()), None)
    if file is None:
        raise DataError(
            f"found no rationales at rationales_path {path}: expected a run folder of make_rationales, its "
            f"{PATHS_FILE}, or its data set"
        )
    try:
        frame = scan_table(file).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{file} can't be read as parquet: {error}") from None
    if {"example_id", "steps", "rewards"} <= set(frame.columns):
        frame = frame.filter(pl.col("rewards").map_elements(_is_kept, return_dtype=pl.Boolean))
        steps = [tuple(row or ()) for row in frame["steps"].to_list()]
    elif {"example_id", "completion"} <= set(frame.columns):
        steps = [parse(_text(completion)).steps for completion in frame["completion"].to_list()]
    else:
        raise DataError(
            f"{file} has the columns {frame.columns}: expected example_id, steps and rewards (a paths table), or "
            f"example_id and completion"
        )
    found = [pair for pair in zip(frame["example_id"].to_list(), steps, strict=True) if pair[1]]
    if not found:
        raise DataError(f"{file} holds no rationale that was kept: its report says why (rationales.json)")
    _check_examples(file, frame, targets)
    return found


def _check_examples(file: Path, frame: pl.DataFrame, targets: dict[str, str]) -> None:
    """Ids of another split or another data set must not be taken for these."""
    ids = frame["example_id"].unique(maintain_order=True).to_list()
    unknown = [example_id for example_id in ids if example_id not in targets]
    if unknown:
        raise DataError(
            f"{file}: {len(unknown)} of its {len(ids)} examples, as {unknown[0]!r}, are none of the {len(targets)} "
            f"training examples: it was made for other data or another split; give the data arguments it was made with"
        )
    if "target_id" in frame.columns:
        rows = frame.select("example_id", "target_id").unique(maintain_order=True).iter_rows()
        other = [(example_id, target) for example_id, target in rows if targets[example_id] != target]
        if other:
            raise DataError(
                f"{file}: {len(other)} of its {len(ids)} examples have another target, as {other[0][0]!r}: "
                f"{other[0][1]!r} there and {targets[other[0][0]]!r} here; it was made for other data"
            )


def _is_kept(rewards: str | None) -> bool:
    return json.loads(rewards or "{}").get("kept", 0) > 0


def _text(completion: str | list[dict[str, str]]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]
