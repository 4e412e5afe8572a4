"""Paths tables for tests, of rows that name only what a test is about."""

from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl

from anyo_rl.sampling.paths import SampledPath, paths_table


def table_of(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """The paths table of rows."""
    return paths_table([SampledPath(**row) for row in rows])
