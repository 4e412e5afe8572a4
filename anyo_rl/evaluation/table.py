"""The result table, in Markdown and for the console, from a `Summary`.

Every table states how it was measured (dataset, split, users, items, ranker, history masking, paths), since a number
without these cannot be compared with another.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from anyo_rl.evaluation import causal, searches
from anyo_rl.evaluation.stages import DRAW_NOTHING, of_written, table_order
from anyo_rl.evaluation.summary import AUC, MAIN_METRIC, TOKENS, Metrics, Summary
from anyo_rl.metrics.intervals import Interval

COLUMNS = (("hr@10", "HR@10"), ("ndcg@10", "NDCG@10"), ("mrr", "MRR"), ("coverage@10", "Coverage@10"))
SAME_COLUMNS = (("same_top1", "Top 1 as evidence"), ("same_top10", "Top 10 as evidence"))  # where any answer has them
DIFFERENCE_COLUMNS = ("ndcg@10", "hr@10", "mrr")
NONE = "–"
ADDED, DIFFERENCES = "What each stage added", "Paired differences"
SEARCHES = "Searches, by what a recommendation costs"

Cells = list[list[str]]


@dataclass(frozen=True)
class Row:
    """One stage asked in one mode; `metrics` has only the values that are known."""

    stage: str
    mode: str
    metrics: Metrics
    share_of_oracle: float | None


def rows(summary: Summary) -> list[Row]:
    """The rows of the table: known stages in their order, then the others as given, the oracles last."""
    table = []
    for stage in table_order(list(summary.stages)):
        # A reader goes from the simple answer to the costly one, so greedy stands above mixture.
        for mode, metrics in sorted(summary.stages[stage].items()):
            if TOKENS in metrics:
                continue  # it stands in the table of searches
            main = metrics.get(MAIN_METRIC)
            share = main.mean / summary.oracle if main is not None and summary.oracle else None
            table.append(Row(stage, mode, metrics, share))
    return table


def facts(summary: Summary) -> list[tuple[str, str]]:
    """How the numbers were measured, as (name, value) pairs; only what is known."""
    several = summary.n_examples if summary.n_examples != summary.n_users else None
    pairs = [
        ("dataset", summary.dataset),
        ("split", summary.split),
        ("examples", _count(several)),
        ("users", _count(summary.n_users)),
        ("items", _count(summary.n_items)),
        ("ranker", summary.ranker),
        ("of what is written", "embedding" if any(map(of_written, summary.stages)) else None),
        ("history masking", None if summary.mask_history is None else "on" if summary.mask_history else "off"),
        ("paths per mixture", _count(summary.n_paths)),
        ("seeds", " ".join(map(str, summary.seeds)) or None),
        ("seed", None if summary.seeds else _count(summary.seed)),
    ]
    return [(name, value) for name, value in pairs if value is not None]


def interval_note(summary: Summary) -> str:
    """What the intervals of the table are over."""
    if len(summary.seeds) > 1:
        return (
            f"Means over {len(summary.seeds)} seeds with 95% bootstrap intervals over users, each drawn with all of "
            "its seeds; differences are paired by user."
        )
    return "95% bootstrap intervals over users; differences are paired by user."


def format_value(value: Interval | None, bounds: bool = False, signed: bool = False) -> str:
    """`0.1234`, or `0.1234 [0.1000, 0.1500]`; a dash where there is no value."""
    return NONE if value is None else value.text(signed, bounds)


def format_percent(value: float | None, signed: bool = False) -> str:
    """A percentage with one decimal, or a dash."""
    return NONE if value is None else format(value, "+.1f" if signed else ".1f") + "%"


def result_cells(summary: Summary) -> tuple[list[str], Cells]:
    """Header and cells of the main table."""
    table = rows(summary)
    with_share = any(row.share_of_oracle is not None for row in table)
    same = [column for column in SAME_COLUMNS if any(column[0] in row.metrics for row in table)]
    header = ["Stage", "Mode", *(label for _, label in (*COLUMNS, *same))]
    with_auc = any(AUC in row.metrics for row in table)
    header += [*(["AUC"] if with_auc else []), *(["Share of oracle"] if with_share else [])]
    body = []
    for row in table:
        cells = [_label(summary, row), row.mode]
        cells += [format_value(row.metrics.get(key), bounds=key == MAIN_METRIC) for key, _ in COLUMNS]
        for key, _ in same:
            value = row.metrics.get(key)
            cells.append(format_percent(None if value is None else 100 * value.mean))
        if with_auc:
            cells.append(format_value(row.metrics.get(AUC), bounds=True))
        if with_share:
            cells.append(format_percent(None if row.share_of_oracle is None else 100 * row.share_of_oracle))
        body.append(cells)
    return header, body


def _label(summary: Summary, row: Row) -> str:
    """A stage's name, with what is to be known of its numbers."""
    ndcg, n_seeds = row.metrics.get(MAIN_METRIC), len(summary.seeds)
    notes = ["not converged"] if row.stage in summary.not_converged else []
    if ndcg is not None and 0 < len(ndcg.by_seed) < n_seeds and row.stage not in DRAW_NOTHING:
        notes.append(f"{len(ndcg.by_seed)} of {n_seeds} seeds")
    return f"{row.stage} ({', '.join(notes)})" if notes else row.stage


def difference_cells(summary: Summary) -> tuple[list[str], Cells]:
    """Header and cells of the table of paired differences; no cells where there are no differences.

    Those of `Summary.added` stand in a table of their own.
    """
    names = [name for name in summary.differences if name not in summary.added]
    return _difference_cells(summary, names, "Difference", "−")


def added_cells(summary: Summary) -> tuple[list[str], Cells]:
    """Header and cells of what each stage added to the one that it builds on; no cells where that is not known."""
    return _difference_cells(summary, summary.added, "Added by", "to")


def _difference_cells(summary: Summary, names: Iterable[str], label: str, word: str) -> tuple[list[str], Cells]:
    header = [label, "Mode", "NDCG@10", "Lift", "HR@10", "MRR"]
    body = []
    for name in names:
        for mode, metrics in sorted(summary.differences.get(name, {}).items()):
            cells = [format_value(metrics.get(key), bounds=True, signed=True) for key in DIFFERENCE_COLUMNS]
            lift = format_percent(summary.lift_percent(name, mode), signed=True)
            pair = summary.compared(name)
            body.append([name if pair is None else f"{pair[0]} {word} {pair[1]}", mode, cells[0], lift, *cells[1:]])
    return header, body


def markdown_table(summary: Summary) -> str:
    """The result table in Markdown: how it was measured, stage by mode, then the paired differences.

    Args:
        summary: of a run, or of several seeds.
    """
    lines = [
        ", ".join(f"{name}: {_escape(value)}" for name, value in facts(summary)),
        "",
        interval_note(summary),
    ]
    header, body = result_cells(summary)
    lines += ["", *(markdown_cells(header, body) if body else ["No stage was evaluated."])]
    tables = ((SEARCHES, searches.search_cells(summary)), (ADDED, added_cells(summary)))
    last = ((DIFFERENCES, difference_cells(summary)), (causal.TITLE, causal.causal_cells(summary.causal)))
    for title, (header, body) in (*tables, *last):
        if body:
            lines += ["", f"{title}:", "", *markdown_cells(header, body)]
    for note in (*convergence_notes(summary), *searches.ahead(summary)):
        lines += ["", _escape(note)]
    return "\n".join(lines).lstrip("\n") + "\n"


def console_table(summary: Summary, width: int | None = None) -> str:
    """The same for a terminal, as plain text.

    Args:
        summary: of a run, or of several seeds.
        width: columns of the terminal; None asks the terminal, and takes at least 100 so that no number is cut.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(color_system=None, force_terminal=False)
    console.width = width or max(console.width, 100)
    with console.capture() as capture:
        console.print(Text(", ".join(f"{name}: {value}" for name, value in facts(summary))))
        console.print(Text(interval_note(summary)))
        cells = (searches.search_cells(summary), added_cells(summary), difference_cells(summary))
        for header, body in (result_cells(summary), *cells, causal.causal_cells(summary.causal)):
            if not body:
                continue
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for column, label in enumerate(header):
                table.add_column(label, justify="left" if column < 2 else "right")
            for row in body:
                table.add_row(*(Text(cell) for cell in row))  # Text: a name with [brackets] is not mark-up
            console.print(table)
        for note in (*convergence_notes(summary), *searches.ahead(summary)):
            console.print(Text(note))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"


def convergence_notes(summary: Summary) -> list[str]:
    """A sentence for each stage that is not converged, and so shows nothing by being behind."""
    return [
        f"{stage} is not converged, and that another is ahead of it says little: {why}."
        for stage, why in summary.not_converged.items()
    ]


def _count(n: int | None) -> str | None:
    return None if n is None else f"{n:,}"


def _escape(text: str) -> str:
    """Keeps a name inside its cell: pipes and line breaks would open others."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def markdown_cells(header: list[str], body: list[list[str]]) -> list[str]:
    """A table's lines: names on the left, numbers on the right."""
    aligned = ["---", "---"] + ["---:"] * (len(header) - 2)
    return ["| " + " | ".join(_escape(cell) for cell in cells) + " |" for cells in (header, aligned, *body)]
