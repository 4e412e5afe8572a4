"""The result table, in Markdown and for the console, from the contents of `evaluation.json`.

Every table states how it was measured (dataset, split, users, items, ranker, history masking, paths), since a number
without these cannot be compared with another.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from anyo_rl.evaluation.stages import ORACLE, table_order

MODE_ORDER = ("mixture", "greedy", "plain")
MAIN_METRIC = "ndcg@10"
COLUMNS = (("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"), ("mrr", "MRR"), ("coverage@10", "Coverage@10"))
NONE = "–"


class Value(NamedTuple):
    """A mean with its interval; `low` and `high` are None where no interval is known."""

    mean: float
    low: float | None = None
    high: float | None = None
    n: int | None = None


@dataclass(frozen=True)
class Row:
    """One stage asked in one mode; `metrics` has only the values that are known."""

    stage: str
    mode: str
    metrics: dict[str, Value]
    share_of_oracle: float | None


def finite(raw: Any) -> float | None:
    """`raw` as a float, or None where it is missing, not a number, NaN or infinite."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    return float(raw) if math.isfinite(raw) else None


def read_value(raw: Any) -> Value | None:
    """A value from `evaluation.json`: a number, or an object with mean, low, high, n. None where there is no mean."""
    if not isinstance(raw, dict):
        mean = finite(raw)
        return None if mean is None else Value(mean)
    mean = finite(raw.get("mean"))
    if mean is None:
        return None
    n = finite(raw.get("n"))
    return Value(mean, finite(raw.get("low")), finite(raw.get("high")), None if n is None else int(n))


def stage_value(evaluation: dict[str, Any], stage: str, mode: str, metric: str = MAIN_METRIC) -> Value | None:
    """The value of a stage in a mode; a stage with one mode only (a baseline) is compared in any mode by that one."""
    modes = evaluation.get("stages", {}).get(stage, {})
    if mode not in modes and len(modes) == 1:
        mode = next(iter(modes))
    return read_value(modes.get(mode, {}).get(metric))


def best_mode(evaluation: dict[str, Any], stage: str) -> str | None:
    """The mode that stands for a stage in a summary: mixture, else greedy, else the first there is."""
    modes = evaluation.get("stages", {}).get(stage, {})
    return next((mode for mode in (*MODE_ORDER, *modes) if mode in modes), None)


def split_difference(name: str, stages: dict[str, Any]) -> tuple[str, str] | None:
    """The two stages of a difference `a-b`; None where they are not both known. Stage names may have hyphens."""
    parts = name.split("-")
    for cut in range(1, len(parts)):
        after, before = "-".join(parts[:cut]), "-".join(parts[cut:])
        if after in stages and before in stages:
            return after, before
    return None


def lift_percent(evaluation: dict[str, Any], name: str, mode: str, metric: str = MAIN_METRIC) -> float | None:
    """Relative lift in percent of the means of the two stages of `a-b`: 100 (a / b - 1)."""
    pair = split_difference(name, evaluation.get("stages", {}))
    if pair is None:
        return None
    after, before = (stage_value(evaluation, stage, mode, metric) for stage in pair)
    if after is None or before is None or before.mean == 0:
        return None
    return 100.0 * (after.mean / before.mean - 1.0)


def rows(evaluation: dict[str, Any]) -> list[Row]:
    """The rows of the table: known stages in their order, then the others as given, the oracles last."""
    stages = evaluation.get("stages", {})
    oracle = _oracle_value(evaluation)
    table = []
    for stage in table_order(list(stages)):
        # A reader goes from the simple answer to the costly one, so greedy stands above mixture.
        for mode in sorted(stages[stage]):
            raw = stages[stage][mode]
            metrics = {key: value for key in raw if (value := read_value(raw[key])) is not None}
            main = metrics.get(MAIN_METRIC)
            share = main.mean / oracle if main is not None and oracle else None
            table.append(Row(stage, mode, metrics, share))
    return table


def facts(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """How the numbers were measured, as (name, value) pairs; only what is known."""
    pairs = [
        ("dataset", evaluation.get("dataset")),
        ("split", evaluation.get("split")),
        ("users", _count(evaluation.get("n_users"))),
        ("items", _count(evaluation.get("n_items"))),
        ("ranker", evaluation.get("ranker")),
        ("history masking", {True: "on", False: "off"}.get(evaluation.get("mask_history", ""))),
        ("paths per mixture", _count(evaluation.get("n_paths"))),
    ]
    if evaluation.get("seeds"):
        pairs.append(("seeds", " ".join(str(seed) for seed in evaluation["seeds"])))
    else:
        pairs.append(("seed", _count(evaluation.get("seed"))))
    return [(name, str(value)) for name, value in pairs if value is not None]


def interval_note(evaluation: dict[str, Any]) -> str:
    """What the intervals of the table are over."""
    seeds = evaluation.get("seeds")
    if not seeds:
        return "95% bootstrap intervals over users; differences are paired by user."
    if len(seeds) == 1:
        return "One seed: no interval over seeds."
    return f"Means over {len(seeds)} seeds with 95% Student t intervals over seeds; differences are paired by user."


def format_value(value: Value | None, interval: bool = False, signed: bool = False) -> str:
    """`0.1234`, or `0.1234 [0.1000, 0.1500]`; a dash where there is no value."""
    if value is None:
        return NONE
    spec = "+.4f" if signed else ".4f"
    text = format(value.mean, spec)
    if interval and value.low is not None and value.high is not None:
        text += f" [{value.low:{spec}}, {value.high:{spec}}]"
    return text


def format_percent(value: float | None, signed: bool = False) -> str:
    """A percentage with one decimal, or a dash."""
    return NONE if value is None else format(value, "+.1f" if signed else ".1f") + "%"


def result_cells(evaluation: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the main table."""
    table = rows(evaluation)
    with_share = any(row.share_of_oracle is not None for row in table)
    header = ["Stage", "Mode", *(label for _, label in COLUMNS)] + (["Share of oracle"] if with_share else [])
    body = []
    for row in table:
        cells = [row.stage, row.mode]
        cells += [format_value(row.metrics.get(key), interval=key == MAIN_METRIC) for key, _ in COLUMNS]
        if with_share:
            cells.append(format_percent(None if row.share_of_oracle is None else 100 * row.share_of_oracle))
        body.append(cells)
    return header, body


def difference_cells(evaluation: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of paired differences; no cells where there are no differences."""
    header = ["Difference", "Mode", "NDCG@10", "Lift", "HR@10", "MRR"]
    body = []
    for name, mode, metrics in _differences(evaluation):
        cells = [
            format_value(read_value(metrics.get(key)), interval=True, signed=True)
            for key in ("ndcg@10", "hr@10", "mrr")
        ]
        lift = format_percent(lift_percent(evaluation, name, mode), signed=True)
        body.append([_difference_name(name, evaluation), mode, cells[0], lift, *cells[1:]])
    return header, body


def markdown_table(evaluation: dict[str, Any]) -> str:
    """The result table in Markdown: how it was measured, stage by mode, then the paired differences.

    Args:
        evaluation: the contents of `evaluation.json`; with a list of `seeds` it is read as a summary over seeds.
    """
    lines = [
        ", ".join(f"{name}: {_escape(value)}" for name, value in facts(evaluation)),
        "",
        interval_note(evaluation),
    ]
    header, body = result_cells(evaluation)
    lines += ["", *(_markdown(header, body) if body else ["No stage was evaluated."])]
    header, body = difference_cells(evaluation)
    if body:
        lines += ["", "Paired differences:", "", *_markdown(header, body)]
    return "\n".join(lines).lstrip("\n") + "\n"


def console_table(evaluation: dict[str, Any], width: int | None = None) -> str:
    """The same for a terminal, as plain text.

    Args:
        evaluation: the contents of `evaluation.json`.
        width: columns of the terminal; None asks the terminal, and takes at least 100 so that no number is cut.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(color_system=None, force_terminal=False)
    console.width = width or max(console.width, 100)
    with console.capture() as capture:
        console.print(Text(", ".join(f"{name}: {value}" for name, value in facts(evaluation))))
        console.print(Text(interval_note(evaluation)))
        for header, body in (result_cells(evaluation), difference_cells(evaluation)):
            if not body:
                continue
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for column, label in enumerate(header):
                table.add_column(label, justify="left" if column < 2 else "right")
            for cells in body:
                table.add_row(*(Text(cell) for cell in cells))  # Text: a name with [brackets] is not mark-up
            console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def _differences(evaluation: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, modes in evaluation.get("differences", {}).items():
        for mode in sorted(modes):
            yield name, mode, modes[mode]


def _difference_name(name: str, evaluation: dict[str, Any]) -> str:
    pair = split_difference(name, evaluation.get("stages", {}))
    return name if pair is None else f"{pair[0]} − {pair[1]}"


def _oracle_value(evaluation: dict[str, Any]) -> float | None:
    value = stage_value(evaluation, ORACLE, "plain")
    return None if value is None or value.mean <= 0 else value.mean


def _count(raw: Any) -> str | None:
    return f"{raw:,}" if isinstance(raw, int) and not isinstance(raw, bool) else None


def _escape(text: str) -> str:
    """Keeps a name inside its cell: pipes and line breaks would open others."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def _markdown(header: list[str], body: list[list[str]]) -> list[str]:
    aligned = ["---", "---"] + ["---:"] * (len(header) - 2)
    return ["| " + " | ".join(_escape(cell) for cell in cells) + " |" for cells in (header, aligned, *body)]
