"""The paths table: its columns, and writing it so that a file is there complete or not at all."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

KEY = ("example_id", "sample_index", "policy")  # one path each
PATHS_SCHEMA = pl.Schema(
    {
        "example_id": pl.String(),
        "sample_index": pl.Int64(),  # from 0
        "policy": pl.String(),  # revision of the weights
        "split": pl.String(),
        "user_id": pl.String(),
        "history": pl.List(pl.String()),  # titles
        "prompt": pl.String(),
        "completion": pl.String(),
        "token_ids": pl.List(pl.Int64()),  # of the completion, its stop token included
        "token_log_probs": pl.List(pl.Float32()),
        "steps": pl.List(pl.String()),
        "item_id": pl.String(),
        "item_title": pl.String(),
        "target_id": pl.String(),
        "target_title": pl.String(),
        "rank": pl.Int64(),  # 1-based
        "ranker": pl.String(),
        "cap": pl.Int64(),  # ranks are told apart up to here; null: all are
        "rewards": pl.String(),  # JSON, by name
        "step_values": pl.List(pl.Float32()),
        "finish_reason": pl.String(),
        "model": pl.String(),
        "seed": pl.Int64(),
    }
)


def paths_table(paths: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """Paths as a table of all columns, those not given null.

    Raises:
        ValueError: a path lacks a part of its key, or has a column that the table has not.
    """
    for path in paths:
        unknown, missing = sorted(path.keys() - PATHS_SCHEMA.keys()), [name for name in KEY if path.get(name) is None]
        if unknown or missing:
            raise ValueError(
                f"a path has the columns {sorted(path)}: {missing or 'none'} missing of its key, {unknown or 'none'} "
                f"unknown to the paths table; expected of {list(PATHS_SCHEMA)}"
            )
    return pl.DataFrame([dict(path) for path in paths], schema=PATHS_SCHEMA, orient="row")
