"""Does a teacher's reasoning follow the history, and its item the reasoning: what interventions came to, as numbers.

docs/causal.md has the formulas. Each measure is one number per example, in a table that the run keeps; where an
intervention could not be made or changed nothing that can be told apart, the number is missing, and `n` says for how
many examples there is one.

    causal/<stage>.parquet    example_id, user_id and a column for each measure
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl

from anyo_rl.evaluation.paired import SEED, with_seeds
from anyo_rl.metrics.intervals import Interval, bootstrap_interval, finite
from anyo_rl.run.files import read_table

FOLDER = "causal"
FOLLOWS_REASONING, FOLLOWS_TASTE = "item_follows_reasoning", "item_follows_taste"
FOLLOWS_SWAP, FOLLOWS_DROP = "reasoning_follows_swap", "reasoning_follows_drop"
KEEPS_THE_REST, GROUNDED = "reasoning_keeps_the_rest", "grounded"
BY_REASONING, BY_HISTORY = "changed_by_reasoning", "changed_by_history"
OWN, EXCHANGED, WITHOUT = "ndcg_own", "ndcg_exchanged", "ndcg_without"
# Measure → its name in tables.
MEASURES = {
    FOLLOWS_REASONING: "Item follows reasoning",
    FOLLOWS_TASTE: "Item follows a changed taste",
    FOLLOWS_SWAP: "Reasoning follows a swap",
    FOLLOWS_DROP: "Reasoning follows a drop",
    KEEPS_THE_REST: "Kept when others are dropped",
    GROUNDED: "Names that the history has",
    BY_REASONING: "Change by reasoning",
    BY_HISTORY: "Change by history",
    OWN: "NDCG@10, own reasoning",
    EXCHANGED: "NDCG@10, another user's reasoning",
    WITHOUT: "NDCG@10, no reasoning",
}
TITLE = "Causal report: what follows from what"


@dataclass(frozen=True)
class Causal:
    """The causal report of a teacher.

    Attributes:
        n: how many examples were looked at.
        measures: measure → its mean over the examples that have it, with its interval over users; none of a measure
            that no example has.
    """

    n: int
    measures: Mapping[str, Interval]

    def as_json(self) -> dict[str, object]:
        """The measures with the number of examples."""
        return {"n": self.n, **{name: value.as_json() for name, value in self.measures.items()}}

    @classmethod
    def from_json(cls, raw: object) -> Self | None:
        """What `as_json` wrote; measures that are no numbers are left out."""
        if not isinstance(raw, Mapping) or (n := finite(raw.get("n"))) is None:
            return None
        found = {name: Interval.from_json(raw.get(name)) for name in MEASURES}
        return cls(int(n), {name: value for name, value in found.items() if value is not None})

    @classmethod
    def of(cls, frame: pl.DataFrame, seed: int) -> Self:
        """The report of what was measured.

        Args:
            frame: `user_id`, the measures, and `seed` where there are several.
            seed: of the bootstrap, which draws users with all of their rows.
        """
        found = {}
        for name in MEASURES:
            there = frame.filter(pl.col(name).is_not_null())
            if there.is_empty():
                continue
            value = bootstrap_interval(there[name].to_numpy(), there["user_id"], seed=seed)
            if SEED in there.columns:
                means = there.group_by(SEED).agg(pl.col(name).mean()).sort(SEED)
                value = with_seeds(value, means[name].to_list())
            found[name] = value
        return cls(len(frame), found)


def file_of(run_dir: Path, stage: str) -> Path:
    """Where what was measured of a stage is kept."""
    return run_dir / FOLDER / f"{stage}.parquet"


def read_causal(run_dir: Path, stages: Iterable[str]) -> dict[str, pl.DataFrame]:
    """What a run has measured of its stages, as far as it has."""
    files = {stage: file_of(run_dir, stage) for stage in stages}
    return {stage: read_table(file) for stage, file in files.items() if file.is_file()}


def causal_frame(example_ids: list[str], user_ids: list[Any], measured: Mapping[str, np.ndarray]) -> pl.DataFrame:
    """What was measured as a table; NaN becomes a missing number.

    Args:
        example_ids: of the examples.
        user_ids: of the same.
        measured: measure → a number for each.
    """
    columns = {name: pl.Series(name, measured[name], dtype=pl.Float64).fill_nan(None) for name in MEASURES}
    return pl.DataFrame({"example_id": example_ids, "user_id": user_ids, **columns})


def causal_cells(reports: Mapping[str, Causal]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table: a row for each stage and measure, for there are many measures and few stages."""
    header = ["Stage", "Measure", "Value", "Examples"]
    body = [
        [stage, label, report.measures[name].text(), f"{report.measures[name].n} of {report.n}"]
        for stage, report in reports.items()
        for name, label in MEASURES.items()
        if name in report.measures
    ]
    return header, body
