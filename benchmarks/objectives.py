"""GRPO and PPO with and without rewards for steps, at the same budget of sampled tokens: one table and one plot.

    python benchmarks/objectives.py runs/objectives --svg docs/objectives.svg

Reads finished runs, `FOLDER/ARM/seed-S` as `python -m anyo_rl.repeat` leaves them (docs/ppo.md has the commands). The
arm `outcome` is what the others are held against: after which share of its tokens an arm reached its last validation
NDCG@10, in the mean over seeds and seed by seed.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml
from scipy.stats import sem, t

from anyo_rl.evaluation.report.plots import line_plot, standalone
from anyo_rl.evaluation.summary import FILE, MAIN_METRIC, Summary

BASE = "outcome"
NDCG = "eval_ndcg@10"


class Curve(NamedTuple):
    """Validation NDCG@10 of one run, the tokens that were sampled before each, and NDCG@10 on test users by mode."""

    tokens: np.ndarray
    ndcg: np.ndarray
    test: dict[str, float]


def read_curve(run_dir: Path) -> Curve:
    """The curve of a finished run of one stage."""
    settings = yaml.safe_load((run_dir / "config.yaml").read_text())["GRPOConfig"]
    versions = json.loads((run_dir / "versions.json").read_text())
    per_step = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    per_step *= versions["num_processes"]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    sampled, last, tokens, ndcg = 0.0, 0, [], []
    for row in rows:
        if "completions/mean_length" in row:
            sampled += row["completions/mean_length"] * per_step * (row["step"] - last)
            last = row["step"]
        if NDCG in row:
            tokens.append(sampled)
            ndcg.append(row[NDCG])
    summary = Summary.from_json(json.loads((run_dir / FILE).read_text()))
    stage = next(name for name in summary.stages if name in ("grpo", "ppo"))
    test = {mode: summary.stages[stage][mode][MAIN_METRIC].mean for mode in ("greedy", "mixture")}
    return Curve(np.array(tokens), np.array(ndcg), test)


def reached(curve: Curve, goal: float, budget: float) -> float | None:
    """Share of a budget of tokens after which a curve is at a goal for the first time; `None` where it never is.

    >>> reached(Curve(np.array([0.0, 10.0, 20.0]), np.array([0.1, 0.3, 0.4]), {}), 0.3, 40.0)
    0.25
    """
    there = np.flatnonzero(curve.ndcg >= goal)
    return float(curve.tokens[there[0]] / budget) if len(there) else None


def mean_curve(curves: list[Curve]) -> Curve:
    """The mean over seeds, evaluation by evaluation."""
    return Curve(np.mean([c.tokens for c in curves], 0), np.mean([c.ndcg for c in curves], 0), {})


def share(value: float | None) -> str:
    return "never" if value is None else f"{value:.0%}"


def table(arms: dict[str, dict[int, Curve]]) -> str:
    """The table, an arm a row."""
    seeds = sorted(arms[BASE])
    base = mean_curve([arms[BASE][seed] for seed in seeds])
    lines = [
        f"| | tokens | last NDCG@10, seeds {' '.join(map(str, seeds))} | mean | best mean | {BASE}'s last after | "
        "by seed | test, greedy | test, mixture |",
        "|---|---:|---|---:|---:|---:|---|---:|---:|",
    ]
    for arm, runs in arms.items():
        runs = {seed: runs[seed] for seed in seeds if seed in runs}
        curves = list(runs.values())
        if not curves:
            continue
        mean = mean_curve(curves)
        by_seed = [share(reached(runs[s], arms[BASE][s].ndcg[-1], arms[BASE][s].tokens[-1])) for s in runs]
        cells = [
            arm,
            f"{mean.tokens[-1] / 1e6:.2f}M",
            ", ".join(f"{curve.ndcg[-1]:.3f}" for curve in curves),
            f"{mean.ndcg[-1]:.3f}",
            f"{mean.ndcg.max():.3f}",
            share(reached(mean, base.ndcg[-1], base.tokens[-1])),
            ", ".join(by_seed),
        ]
        for mode in ("greedy", "mixture"):
            values = [curve.test[mode] for curve in curves]
            spread = ""
            if len(values) > 1:
                low, high = t.interval(0.95, len(values) - 1, np.mean(values), sem(values))
                spread = f" [{low:.3f}, {high:.3f}]"
            cells.append(f"{np.mean(values):.3f}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--svg", type=Path, help="also draw the mean curves into this file")
    args = parser.parse_args()
    arms = {
        arm.name: {
            int(run.name.removeprefix("seed-")): read_curve(run)
            for run in sorted(arm.glob("seed-*"))
            if (run / FILE).exists()
        }
        for arm in sorted(args.folder.iterdir(), key=lambda arm: (arm.name != BASE, arm.name))
        if arm.is_dir()
    }
    arms = {arm: runs for arm, runs in arms.items() if runs}
    if BASE not in arms:
        raise SystemExit(f"no finished run in {args.folder / BASE}/seed-*, which the others are held against")
    print(table(arms))
    if args.svg:
        means = {arm: mean_curve(list(runs.values())) for arm, runs in arms.items()}
        series = {arm: ((mean.tokens / 1e6).tolist(), mean.ndcg.tolist()) for arm, mean in means.items()}
        args.svg.write_text(standalone(line_plot(series, "objectives", NDCG, False, "million sampled tokens")))


if __name__ == "__main__":
    main()
