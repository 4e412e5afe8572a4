"""The report's section on rounds of STaR: what was sampled, what was kept of it, and what that was worth."""

import json
from pathlib import Path
from typing import Any

from anyo_rl.evaluation import table
from anyo_rl.evaluation.report import plots
from anyo_rl.evaluation.report.plots import Plot

HEADER = ("Round", "NDCG@10", "Paths", "Kept", "With a hint", "Kept of these", "Examples kept", "Different")


def read_rounds(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of `star/rounds.json`; none where a run has no such file.

    Raises:
        ValueError: the file is not a list of rounds.
    """
    file = run_dir / "star" / "rounds.json"
    if not file.exists():
        return []
    rows = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "round" in row for row in rows):
        raise ValueError("expected a list of rounds")
    return rows


def round_cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each round: validation, paths and the share kept, the same of the hinted ones, and diversity."""
    return [
        [
            str(row["round"]),
            table.format_value(table.read_value({**row, "mean": row.get(table.MAIN_METRIC)}), interval=True),
            *_kept(row.get("sampled", {})),
            *_kept(row.get("hinted", {})),
            _share(_examples_kept(row), row.get("sampled", {}).get("examples")),
            table.NONE if row.get("diversity") is None else f"{row['diversity']:.1%}",
        ]
        for row in rows
    ]


def round_plots(rows: list[dict[str, Any]]) -> list[Plot]:
    """Validation, acceptance and diversity by round."""
    found = []
    values = [(row["round"], row[table.MAIN_METRIC]) for row in rows if table.MAIN_METRIC in row]
    if values:
        svg = plots.line_plot({"": _axes(values)}, "p-rounds", "NDCG@10", smooth=False, xlabel="round")
        found.append(Plot("Validation NDCG@10 by round", "Round 0 is the teacher that the rounds start from.", svg))
    shares = {
        "reasonings that differ": [(row["round"], row.get("diversity")) for row in rows],
        "kept with a hint": [(row["round"], _ratio(row.get("hinted", {}))) for row in rows],
        "kept": [(row["round"], _ratio(row.get("sampled", {}))) for row in rows],
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


def _axes(points: list[tuple[int, float]]) -> tuple[list[float], list[float]]:
    return [float(x) for x, _ in points], [y for _, y in points]


def _ratio(counts: dict[str, int]) -> float | None:
    return counts["kept"] / counts["sampled"] if counts.get("sampled") else None


def _kept(counts: dict[str, int]) -> tuple[str, str]:
    if not counts:
        return table.NONE, table.NONE
    return f"{counts['sampled']:,}", f"{counts['kept']:,} ({_share(counts['kept'], counts['sampled'])})"


def _examples_kept(row: dict[str, Any]) -> int:
    # No example is in both: a hint is for those of which no path was good enough.
    return sum(row.get(part, {}).get("examples_kept", 0) for part in ("sampled", "hinted"))


def _share(part: int, whole: int | None) -> str:
    return f"{part / whole:.1%}" if whole else table.NONE
