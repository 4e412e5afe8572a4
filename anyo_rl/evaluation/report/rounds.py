"""Rounds of STaR: what was sampled, what was kept of it, and what that was worth; and the report's section on them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from anyo_rl.evaluation import table
from anyo_rl.evaluation.report import plots
from anyo_rl.evaluation.report.plots import Plot
from anyo_rl.evaluation.stages import STAR
from anyo_rl.evaluation.summary import FUSED, MAIN_METRIC
from anyo_rl.metrics.intervals import Interval, finite
from anyo_rl.run.files import read_json, readable

COLUMNS = ("Paths", "Kept", "With a hint", "Kept of these", "Examples kept", "Different")


@dataclass(frozen=True)
class Chosen:
    """What a round is trained on, as `kept.json` counts it; what is not known is empty or `None`.

    Attributes:
        sampled: counts of the paths (`anyo_rl.training.star.Kept`).
        hinted: the same of those sampled with a hint; empty where none were.
        diversity: share of an example's reasonings that differ from one another.
    """

    sampled: dict[str, int] = field(default_factory=dict)
    hinted: dict[str, int] = field(default_factory=dict)
    diversity: float | None = None

    def as_json(self) -> dict[str, object]:
        """The contents of `kept.json`."""
        if not self.sampled:
            return {}
        found: dict[str, object] = {"sampled": self.sampled, "diversity": self.diversity}
        return found | ({"hinted": self.hinted} if self.hinted else {})

    @classmethod
    def from_json(cls, raw: Mapping[str, object]) -> Self:
        """Reads what `as_json` wrote."""
        return cls(_counts(raw.get("sampled")), _counts(raw.get("hinted")), finite(raw.get("diversity")))


@dataclass(frozen=True)
class Round:
    """A round of STaR: a row of `rounds.json`.

    Attributes:
        number: 0 for the teacher that the rounds start from.
        validation: NDCG@10; `None` where it is not known.
        chosen: what it was trained on.
        fused: whether it was validated together with evidence.
    """

    number: int
    validation: Interval | None = None
    chosen: Chosen = Chosen()
    fused: bool = False

    @property
    def ndcg(self) -> float:
        """Mean NDCG@10 on validation; NaN where it is not known."""
        return math.nan if self.validation is None else self.validation.mean

    def as_json(self) -> dict[str, object]:
        """The row."""
        interval = self.validation or Interval(math.nan)
        bounds = {"low": interval.low, "high": interval.high}
        metric = f"{FUSED}{MAIN_METRIC}" if self.fused else MAIN_METRIC
        return {"round": self.number, metric: finite(interval.mean), **bounds, **self.chosen.as_json()}

    @classmethod
    def from_json(cls, raw: object) -> Self:
        """Reads what `as_json` wrote.

        Raises:
            ValueError: it is no round.
        """
        number = raw.get("round") if isinstance(raw, Mapping) else None
        if not isinstance(raw, Mapping) or not isinstance(number, int):
            raise ValueError("expected a list of rounds")
        fused = f"{FUSED}{MAIN_METRIC}" in raw
        mean = raw.get(f"{FUSED}{MAIN_METRIC}" if fused else MAIN_METRIC)
        return cls(number, Interval.from_json({**raw, "mean": mean}), Chosen.from_json(raw), fused)


def rounds_file(run_dir: Path) -> Path:
    """Where a run keeps its rounds."""
    return run_dir / STAR.name / "rounds.json"


def read_rounds(run_dir: Path) -> list[Round]:
    """Rounds of a run; none where it has no such file.

    Raises:
        ValueError: the file is not a list of rounds.
    """
    file = rounds_file(run_dir)
    if not file.exists():
        return []
    rows = read_json(file)
    with readable(file):
        if not isinstance(rows, list):
            raise TypeError("expected a list of rounds")
        return [Round.from_json(row) for row in rows]


def round_header(rounds: Sequence[Round]) -> list[str]:
    """What stands over the columns of `round_cells`."""
    return ["Round", _metric(rounds), *COLUMNS]


def round_cells(rounds: Sequence[Round]) -> list[list[str]]:
    """A row for each round: validation, paths and the share kept, the same of the hinted ones, and diversity."""
    return [
        [
            str(each.number),
            table.format_value(each.validation, bounds=True),
            *_kept(each.chosen.sampled),
            *_kept(each.chosen.hinted),
            _share(_examples_kept(each.chosen), each.chosen.sampled.get("examples")),
            table.NONE if each.chosen.diversity is None else f"{each.chosen.diversity:.1%}",
        ]
        for each in rounds
    ]


def round_plots(rounds: Sequence[Round]) -> list[Plot]:
    """Validation, acceptance and diversity by round."""
    found = []
    values = [(each.number, each.validation.mean) for each in rounds if each.validation is not None]
    if values:
        svg = plots.line_plot({"": _axes(values)}, "p-rounds", _metric(rounds), smooth=False, xlabel="round")
        found.append(
            Plot(f"Validation {_metric(rounds)} by round", "Round 0 is the teacher that the rounds start from.", svg)
        )
    shares = {
        "reasonings that differ": [(each.number, each.chosen.diversity) for each in rounds],
        "kept with a hint": [(each.number, _ratio(each.chosen.hinted)) for each in rounds],
        "kept": [(each.number, _ratio(each.chosen.sampled)) for each in rounds],
    }
    series = {
        name: _axes(known)
        for name, points in shares.items()
        if (known := [(number, share) for number, share in points if share is not None])
    }
    if series:
        svg = plots.line_plot(series, "p-acceptance", "share of paths", smooth=False, xlabel="round")
        note = "Paths that a round is trained on, and reasonings of one example that differ from one another."
        found.append(Plot("Acceptance and diversity by round", note, svg))
    return found


def _metric(rounds: Sequence[Round]) -> str:
    return "NDCG@10 with evidence" if any(each.fused for each in rounds) else "NDCG@10"


def _counts(raw: object) -> dict[str, int]:
    if not isinstance(raw, Mapping):
        return {}
    return {name: count for name, count in raw.items() if isinstance(count, int)}


def _axes(points: list[tuple[int, float]]) -> tuple[list[float], list[float]]:
    return [float(x) for x, _ in points], [y for _, y in points]


def _ratio(counts: dict[str, int]) -> float | None:
    return counts["kept"] / counts["sampled"] if counts.get("sampled") and "kept" in counts else None


def _kept(counts: dict[str, int]) -> tuple[str, str]:
    if "sampled" not in counts or "kept" not in counts:
        return table.NONE, table.NONE
    return f"{counts['sampled']:,}", f"{counts['kept']:,} ({_share(counts['kept'], counts['sampled'])})"


def _examples_kept(chosen: Chosen) -> int:
    # No example is in both: a hint is for those of which no path was good enough.
    return sum(counts.get("examples_kept", 0) for counts in (chosen.sampled, chosen.hinted))


def _share(part: int, whole: int | None) -> str:
    return f"{part / whole:.1%}" if whole else table.NONE
