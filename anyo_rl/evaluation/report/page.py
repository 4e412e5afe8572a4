"""The report of a run: one HTML file that needs nothing else, made from what the run folder has.

It can be opened from a disk, sent by mail and read without a network. Text from the data (titles, steps, names) is
never trusted: it is escaped in the HTML, and in the browser of paths it is inserted as text only.

    python -m anyo_rl.evaluation.report.page runs/toy
"""

import base64
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from anyo_rl.evaluation import causal, searches, table
from anyo_rl.evaluation import summary as summaries
from anyo_rl.evaluation.report import paths as report_paths
from anyo_rl.evaluation.report import plots
from anyo_rl.evaluation.report import rounds as report_rounds
from anyo_rl.evaluation.report.plots import Plot
from anyo_rl.evaluation.stages import DIRECT, RANK_TRAINED, SFT, is_oracle, stage_of
from anyo_rl.evaluation.summary import FUSED, MAIN_METRIC, SLICE_METRICS, Summary
from anyo_rl.metrics.intervals import finite
from anyo_rl.run.folder import METRICS, read_metrics
from anyo_rl.run.redact import redact_forms

# What to watch while a policy learns: key in metrics.jsonl (or what follows its last `/`), title, what it tells.
GUARD_RAILS = (
    ("entropy", "Entropy", "near 0: the policy no longer explores"),
    ("guard/flat_groups", "Groups without spread", "near 1: no signal left in the batch"),
    ("parsed_share", "Completions that parse", "should be near 1"),
    ("ungrounded_share", "Without an item of the catalog", "no marker, or an item that can't be recommended"),
    ("completions/clipped_ratio", "Cut at the length limit", "should be near 0"),
    ("completions/mean_length", "Tokens per completion", "sudden growth or collapse is a warning"),
    ("guard/length_ratio", "Drift of the length", "mean length over that of the first steps"),
    ("guard/reward_gap", "Reward less validation NDCG@10", "growth: the reward is learned, and not to recommend"),
    ("rank/mean", "Mean rank of the target", "over sampled completions"),
    ("reward_std", "Spread of the reward", "within groups"),
    ("kl", "KL to the start", "distance from the reference policy"),
    ("grad_norm", "Gradient norm", "spikes are a warning"),
    ("item_loss", "Item loss", "−log p(target)"),
    ("loss", "Loss", "of the stage's objective"),
)

PAIR_NOTE = "correlation of two rewards: near 1 they ask for one thing, below 0 they pull apart"
CORRELATION = "rewards/corr/"  # and the names of two rewards
WARNINGS = "warnings.txt"  # what guard rails said in words while training: a name, then the words

FLOPS = "flops"  # since a stage began

Logged = Mapping[str, object]  # a row of metrics.jsonl

ACCENTED = RANK_TRAINED  # what was trained on the rank stands out


@dataclass
class Run:
    """What a run folder has; what is missing or broken is empty, and said in `notes`."""

    name: str
    summary: Summary = field(default_factory=Summary)
    metrics: list[Logged] = field(default_factory=list)
    rounds: list[report_rounds.Round] = field(default_factory=list)
    config: str = ""
    versions: str = ""
    notes: list[str] = field(default_factory=list)


def write_report(run_dir: str | Path) -> Path:
    """Writes `report.html` into a run folder and returns its path.

    Never fails for what is missing: a section without data is one sentence.

    Args:
        run_dir: a run folder; may have `evaluation.json`, `metrics.jsonl`, `star/rounds.json`, `paths/*.parquet`,
            `config.yaml`.

    Raises:
        NotADirectoryError: there is no such folder.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise NotADirectoryError(f"no run folder at {run_dir}: give the --output_dir of a recipe that has run")
    html = render(read_run(run_dir), run_dir)
    target = run_dir / "report.html"
    partial = target.with_suffix(".html.partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, target)
    return target


def read_run(run_dir: Path) -> Run:
    """Reads what there is; a broken file is noted, not raised."""
    run = Run(run_dir.resolve().name)
    file = run_dir / summaries.FILE
    if file.exists():
        try:
            run.summary = Summary.from_json(json.loads(file.read_text(encoding="utf-8")))
        except ValueError as error:
            run.notes.append(f"evaluation.json could not be read ({error}).")
    rows, broken = read_metrics(run_dir / METRICS)
    run.metrics += rows
    if broken:
        run.notes.append(
            f"{broken} of {len(rows) + broken} lines of metrics.jsonl could not be read and are left out."
        )
    if (run_dir / WARNINGS).exists():
        told = (run_dir / WARNINGS).read_text(encoding="utf-8", errors="replace").splitlines()
        run.notes += [f"Warning while training: {line.split(' ', 1)[-1]}." for line in told if line.strip()]
    try:
        run.rounds = report_rounds.read_rounds(run_dir)
    except ValueError as error:
        run.notes.append(f"star/rounds.json could not be read ({error}).")
    for name, attribute in (("config.yaml", "config"), ("versions.json", "versions")):
        if (run_dir / name).exists():
            text = (run_dir / name).read_text(encoding="utf-8", errors="replace").strip()
            setattr(run, attribute, redact_forms(text))  # it may come from elsewhere, or from an older version
    return run


def render(run: Run, run_dir: Path) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    split = (run.summary.split or "test").split(" ")[0]  # the name may go on with how it was split
    keys, files, unreadable = report_paths.read_keys(run_dir, split)
    if unreadable:
        run.notes.append(f"{len(unreadable)} shards of paths could not be read: {', '.join(unreadable[:5])}.")
    examples = report_paths.load_examples(run_dir, keys, files)
    folder = Path(__file__).parent
    script = (folder / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    browser = {"before": report_paths.BEFORE, "after": report_paths.after(keys), "examples": examples}
    header, body = table.result_cells(run.summary)
    tables = (
        (table.SEARCHES, searches.search_cells),
        (table.ADDED, table.added_cells),
        (table.DIFFERENCES, table.difference_cells),
    )
    compared = [(title, *cells(run.summary)) for title, cells in tables]
    compared.append((causal.TITLE, *causal.causal_cells(run.summary.causal)))
    return environment.get_template("report.html.jinja").render(
        run=run,
        any_table=bool(body) or any(rows for _, _, rows in compared),
        script=script,
        script_hash=f"sha256-{digest}",
        style=(folder / "report.css").read_text(encoding="utf-8"),
        facts=table.facts(run.summary),
        interval_note=table.interval_note(run.summary),
        headlines=headlines(run.summary),
        accented=ACCENTED,
        header=header,
        body=body,
        compared=compared,
        forest=forest_plots(run.summary),
        sections=[
            ("Training", "plots-training", training_plots(run.metrics), "No metrics were logged."),
            ("Ranks and costs", "plots-results", result_plots(run.summary, keys), "No paths or searches to plot."),
        ],
        round_header=report_rounds.round_header(run.rounds),
        rounds=report_rounds.round_cells(run.rounds),
        round_plots=report_rounds.round_plots(run.rounds),
        guard_rails=guard_rail_plots(run.metrics),
        slices=slice_rows(run.summary),
        examples=examples,
        n_paths=sum(len(example["paths"]) for example in examples),
        n_all_paths=keys.height,
        paths_json=report_paths.safe_json(browser),
    )


def headlines(summary: Summary) -> list[dict[str, str]]:
    """The few numbers that a reader wants first: label, value, note, and `tone` (good, bad or none)."""
    stage = next((stage for stage in (*report_paths.AFTER, SFT.name, DIRECT.name) if stage in summary.stages), None)
    if stage is None:
        return []
    mode = summary.best_mode(stage) or ""
    found = []
    value = summary.value(stage, mode)
    if value is not None:
        interval = value.text().partition(" ")[2]
        found.append(_headline(f"NDCG@10, {stage} ({mode})", value.text(bounds=False), interval))
    for other in (SFT.name, DIRECT.name):
        name = f"{stage}-{other}"
        difference = summary.differences.get(name, {}).get(mode, {}).get(MAIN_METRIC)
        if difference is None:
            continue
        lift = summary.lift_percent(name, mode)
        text = table.format_percent(lift, signed=True) if lift is not None else f"{difference.mean:+.4f}"
        note, tone = f"difference {difference.text(signed=True)}", ""
        if difference.low is not None and difference.high is not None:
            tone = "good" if difference.low > 0 else "bad" if difference.high < 0 else ""
            note += "" if tone else ": no clear difference"
        found.append(_headline(f"{stage} over {other}", text, note, tone))
    row = next((row for row in table.rows(summary) if (row.stage, row.mode) == (stage, mode)), None)
    if row is not None and row.share_of_oracle is not None:
        found.append(
            _headline("Share of the oracle", f"{100 * row.share_of_oracle:.1f}%", "of the best NDCG@10 possible")
        )
    true = (summary.true_intent or {}).get(stage)
    if true is not None:
        before = (summary.true_intent or {}).get(SFT.name) if stage != SFT.name else None
        notes = [f"{100 * before.mean:.1f}% after sft"] if before is not None else []
        stated = (summary.stated_intent or {}).get(stage)
        notes += [f"{100 * stated.mean:.1f}% of the reasonings state one"] if stated is not None else []
        found.append(_headline("Stated intents that are true", f"{100 * true.mean:.1f}%", "; ".join(notes)))
    return found


def forest_plots(summary: Summary) -> list[Plot]:
    """NDCG@10 of every stage with its interval, and the oracle as a line: the first thing on the page."""
    rows = [row for row in table.rows(summary) if MAIN_METRIC in row.metrics and not is_oracle(row.stage)]
    if not rows:
        return []
    values = [row.metrics[MAIN_METRIC] for row in rows]
    svg = plots.interval_plot(
        [row.stage if row.mode == "plain" else f"{row.stage} · {row.mode}" for row in rows],
        [value.mean for value in values],
        [value.low for value in values],
        [value.high for value in values],
        [row.stage in ACCENTED for row in rows],
        "p-ndcg",
        summary.oracle,
    )
    note = "Held-out users, whole catalog, with 95% intervals."
    note += "" if summary.oracle is None else " Nobody who sees the same histories can pass the line."
    return [Plot("NDCG@10 by stage", note, svg)]


def result_plots(summary: Summary, keys: pl.DataFrame) -> list[Plot]:
    """What searches cost, ranks before and after, true intents: those that there are data for."""
    found = []
    if curves := searches.curves(summary):
        first = sorted(curves, key=lambda label: not label.endswith(searches.MIXTURE) or "weighted" in label)
        series = {label: [(cost, value.mean) for cost, value in curves[label]] for label in first}
        svg = plots.cost_plot(series, "p-searches", "tokens written per recommendation", "NDCG@10")
        note = " ".join(["Held-out users. The table has intervals, nodes and time.", *searches.ahead(summary)])
        found.append(Plot("NDCG@10 by what a search writes", note, svg))
    one_each = keys.filter(pl.col("mode") == "greedy")
    if one_each["policy"].n_unique() == keys["policy"].n_unique():
        keys = one_each
    ranks = {
        policy: keys.filter((pl.col("policy") == policy) & (pl.col("rank") >= 1))["rank"].to_numpy()
        for policy in (report_paths.BEFORE, report_paths.after(keys))
    }
    ranks = {policy: values for policy, values in ranks.items() if len(values)}
    if ranks:
        kind = "greedy paths" if keys is one_each else "paths"
        note = f"Share of {kind}; each bin is twice as wide as the one before."
        found.append(Plot("Rank of the target, before and after", note, plots.rank_plot(ranks, "p-ranks")))
    known = [(name, value.mean, name in ACCENTED) for name, value in (summary.true_intent or {}).items()]
    if known:
        names, numbers, marks = zip(*known, strict=True)
        svg = plots.bar_plot(names, numbers, marks, "p-intent", "% of stated intents")
        found.append(Plot("Stated intents that are true", "The toy world knows what each user really wanted.", svg))
    return found


def training_plots(metrics: list[Logged]) -> list[Plot]:
    """Validation NDCG over FLOPs, over steps for want of these, and reward over steps."""
    found = []
    stages = sorted(_stages(metrics), key=lambda stage: stage in ACCENTED)  # the last line has the accent
    spent = {
        stage + told: points
        for stage in stages
        for metric, told in ((MAIN_METRIC, ""), (f"{FUSED}{MAIN_METRIC}", " with evidence"))
        if (points := over_flops(metrics, stage, metric))
    }
    names = sorted({key for row in metrics for key in row if "ndcg@10" in key and ("val" in key or "eval" in key)})
    series = {
        stage if len(names) == 1 else f"{stage} · {key}": points
        for stage in stages
        for key in names
        if (points := _points(metrics, stage, [key]))
    }
    if spent:
        svg = plots.line_plot(spent, "p-flops", "NDCG@10", smooth=False, xlabel="10¹² FLOPs")
        note = "All FLOPs that led there, those of the stage that it goes on from too; validation apart."
        found.append(Plot("Validation NDCG@10 over FLOPs", note, svg))
    elif series:
        svg = plots.line_plot(series, "p-validation", "NDCG@10", smooth=False)
        found.append(Plot("Validation NDCG@10 over steps", "Checkpoints are chosen by this, never by the test.", svg))
    reward = {stage: points for stage in stages if (points := _points(metrics, stage, ["reward"]))}
    if reward:
        svg = plots.line_plot(reward, "p-reward", "mean reward", smooth=True)
        found.append(Plot("Reward over steps", "Each batch (faint) and its running mean.", svg))
    return found


def over_flops(metrics: list[Logged], stage: str, metric: str = MAIN_METRIC) -> tuple[list[float], list[float]] | None:
    """TFLOPs since the very start, and a metric of validation; `None` where one of them was not logged."""
    values, flops = (_points(metrics, stage, [key]) for key in (f"eval_{metric}", FLOPS))
    if values is None or flops is None:
        return None
    start = 0.0
    if stage_of(stage.partition("/")[0]).after_sft:
        # What a round of STaR goes on from is all that came before it, its sampling too.
        own = stage.rpartition("/")[0]
        earlier = [one for one in _stages(metrics) if own and one.startswith(f"{own}/")]
        before = [SFT.name, *earlier[: earlier.index(stage)]] if own else [SFT.name]
        start = sum(points[1][-1] for one in before if (points := _points(metrics, one, [FLOPS])))
    spent = np.interp(values[0], [0.0, *flops[0]], [0.0, *flops[1]])
    return ((start + spent) / 1e12).tolist(), values[1]


def guard_rail_plots(metrics: list[Logged]) -> list[Plot]:
    """Small plots of what tells whether the reinforcement learning is healthy."""
    stages = _stages(row for row in metrics if any(key.rsplit("/", 1)[-1] == "reward" for key in row))
    if not stages:
        return []
    found = []
    pairs = sorted({key for row in metrics for key in row if key.startswith(CORRELATION)})
    rails = [*GUARD_RAILS, *((key, key.removeprefix(CORRELATION).replace("~", " and "), PAIR_NOTE) for key in pairs)]
    for place, (key, title, note) in enumerate(rails):
        points = _points(metrics, stages[-1], [key, f"train/{key}"])
        if points and len(points[0]) > 1:
            found.append(Plot(title, note, plots.small_plot(*points, f"p-guard{place}")))
    return found


def slice_rows(summary: Summary) -> list[list[str]]:
    """One row for each stage, mode and slice: stage, mode, slice, users, NDCG@10 and HR@10 with intervals."""
    found = []
    for stage, modes in summary.slices.items():
        for mode, slices in modes.items():
            for name, part in slices.items():
                n = table.NONE if part.n is None else f"{part.n:,}"
                values = [table.format_value(part.metrics.get(metric), bounds=True) for metric in SLICE_METRICS]
                found.append([stage, mode, name.replace("=", ": ").replace("_", " "), n, *values])
    return found


def _headline(label: str, value: str, note: str = "", tone: str = "") -> dict[str, str]:
    return {"label": label, "value": value, "note": note, "tone": tone}


def _stages(metrics: Iterable[Logged]) -> list[str]:
    """Stages in the order in which they first come."""
    return list(dict.fromkeys(str(row.get("stage", "run")) for row in metrics))


def _points(metrics: list[Logged], stage: str, keys: list[str]) -> tuple[list[float], list[float]] | None:
    """Steps and values of the first key that has any; of a step logged twice (a resumed run) the last counts."""
    for key in keys:
        values = {}
        for row in metrics:
            step, value = finite(row.get("step")), finite(row.get(key))
            if str(row.get("stage", "run")) == stage and step is not None and value is not None:
                values[step] = value
        if values:
            steps = sorted(values)
            return steps, [values[step] for step in steps]
    return None


def main(arguments: list[str] | None = None) -> int:
    """Writes the report of each run folder given."""
    folders = sys.argv[1:] if arguments is None else arguments
    if not folders:
        print("usage: python -m anyo_rl.evaluation.report.page RUN_DIR...", file=sys.stderr)
        return 2
    for folder in folders:
        print(write_report(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
