"""How far a PRM's scores can be trusted: rank correlation, error, AUC and calibration on held-out users.

All numbers are over different states: what the paths of an example have in common counts once. *Within an example*
means among the states of one user and prompt, which is what advantages compare; *within a step* among those after the
same number of steps, so that a PRM which only tells how far a reasoning has come gets nothing.
"""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy.stats import rankdata, spearmanr

from anyo_rl.data.toy import parse_intent
from anyo_rl.evaluation.plots import line_plot, standalone
from anyo_rl.metrics.intervals import bootstrap_interval
from anyo_rl.task import Task
from anyo_rl.tokens import Tokens

N_BINS = 10
INTENT_LINES = ("next:", "grade:", "style:")


class State(NamedTuple):
    """A state between steps: its example, how many steps it has, and what it is worth and said to be worth.

    `first_value` and `first_score` are those before the first step of the same path. `true_intent` says whether the
    intent, stated with its last step for the first time, is true, and `true_line` whether that step is a true line of
    an intent; `None` where it states none, and where nobody knows.
    """

    example: str
    step: int
    value: float
    score: float
    first_value: float
    first_score: float
    true_intent: bool | None
    true_line: bool | None


def states(labels: pl.DataFrame, scores_B: Sequence[np.ndarray], tokens: Tokens, task: Task | None) -> list[State]:
    """The different states of labelled paths (`anyo_rl.values.prm.label_paths`), in their order."""
    found: dict[Hashable, State] = {}
    for path, scores in zip(labels.iter_rows(named=True), scores_B, strict=True):
        example, ids, values = path["example_id"], path["token_ids"], path["step_values"]
        intents, lines = _truths(path, len(values), task)
        for step, (end, value, score) in enumerate(zip([0, *tokens.step_ends(ids)], values, scores, strict=True)):
            key = (example, tuple(ids[:end]), value)
            if key not in found:
                truth = (intents[step], lines[step])
                found[key] = State(example, step, value, float(score), values[0], float(scores[0]), *truth)
    return list(found.values())


def _truths(path: dict[str, Any], n_states: int, task: Task | None) -> tuple[list[bool | None], list[bool | None]]:
    """`true_intent` and `true_line` of each state of a path of the toy world."""
    intents: list[bool | None] = [None] * n_states
    lines: list[bool | None] = [None] * n_states
    world = None if task is None else task.world
    if task is None or world is None:
        return intents, lines
    steps, asked = path["steps"], (path["user_id"], task.position(path["example_id"]))
    for step, is_true in enumerate(world.true_steps(steps, *asked), 1):
        if steps[step - 1].strip().lower().startswith(INTENT_LINES):
            lines[step] = is_true
    stated = next((step for step in range(1, n_states) if parse_intent(steps[:step]) is not None), None)
    if stated is not None:
        intents[stated] = world.is_true(steps[:stated], *asked)
    return intents, lines


def auc(scores_N: Sequence[float], positive_N: Sequence[bool]) -> float | None:
    """Share of pairs of a positive and a negative whose scores are in that order, ties half; `None` without pairs.

    >>> auc([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.875
    """
    positive = np.asarray(positive_N, dtype=bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return None
    ranks = rankdata(scores_N)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def rank_correlation(values_N: Any, scores_N: Any) -> float | None:
    """Spearman's; 0 where all scores are alike, `None` where all values are, which nobody can put in an order."""
    if len(set(values_N)) < 2:
        return None
    return 0.0 if len(set(scores_N)) < 2 else float(spearmanr(values_N, scores_N).statistic)


def within(found: Sequence[State], *, same_step: bool, seed: int) -> dict[str, Any]:
    """Means over groups of states of one example (and one number of steps).

    Returns:
        `spearman` with its interval, over groups whose values differ; `mse` of values and scores less their group's
        means, and `variance`, which is the `mse` of a PRM that has one score in each group.
    """
    groups: dict[Hashable, list[State]] = {}
    for state in found:
        groups.setdefault((state.example, state.step if same_step else 0), []).append(state)
    columns = [(np.array([s.value for s in group]), np.array([s.score for s in group])) for group in groups.values()]
    each = [rank_correlation(values, scores) for values, scores in columns]
    values = np.concatenate([values - values.mean() for values, _ in columns])
    scores = np.concatenate([scores - scores.mean() for _, scores in columns])
    told = [one for one in each if one is not None]
    return {
        "spearman": bootstrap_interval(told, seed=seed).as_dict(),
        "mse": float(((values - scores) ** 2).mean()),
        "variance": float((values**2).mean()),
    }


def calibration(values_N: Sequence[float], scores_N: Sequence[float], n_bins: int = N_BINS) -> dict[str, Any]:
    """States by tenths of their scores: mean score, mean value; and the mean distance of the two over states (ECE)."""
    values, scores = np.asarray(values_N), np.asarray(scores_N)
    bins = [part for part in np.array_split(np.argsort(scores, kind="stable"), n_bins) if len(part)]
    rows = [{"n": len(b), "score": float(scores[b].mean()), "value": float(values[b].mean())} for b in bins]
    ece = sum(row["n"] * abs(row["score"] - row["value"]) for row in rows) / len(values)
    return {"deciles": rows, "ece": float(ece)}


def quality(
    labels: pl.DataFrame, scores_B: Sequence[np.ndarray], tokens: Tokens, task: Task | None, *, seed: int = 0
) -> dict[str, Any]:
    """All that is measured, ready for JSON; numbers that nobody could have are `None`.

    Args:
        labels: labelled paths of held-out users.
        scores_B: the PRM's scores of each path, as many as it has values.
        tokens: the PRM's tokenizer and marker.
        task: the data; only the toy world knows intents.
        seed: of the interval's draws.
    """
    found = states(labels, scores_B, tokens, task)
    values, scores = [s.value for s in found], [s.score for s in found]
    later = [s for s in found if s.step]
    stated = [s for s in found if s.true_intent is not None]
    lines = [s for s in found if s.true_line is not None]
    return {
        "n_examples": labels["example_id"].n_unique(),
        "n_paths": len(labels),
        "n_states": len(found),
        "spearman": rank_correlation(values, scores),
        "mse": float(np.mean(np.subtract(values, scores) ** 2)),
        "variance": float(np.var(values)),
        "within_example": within(found, same_step=False, seed=seed),
        "within_step": within(later, same_step=True, seed=seed) if later else None,
        "auc_above_start": auc([s.score - s.first_score for s in later], [s.value > s.first_value for s in later]),
        "n_intents": len(stated),
        "true_intents": float(np.mean([s.true_intent for s in stated])) if stated else None,
        "auc_true_intent": auc([s.score for s in stated], [bool(s.true_intent) for s in stated]),
        "auc_true_intent_of_values": auc([s.value for s in stated], [bool(s.true_intent) for s in stated]),
        "n_intent_lines": len(lines),
        "auc_true_line": auc([s.score for s in lines], [bool(s.true_line) for s in lines]),
        "auc_true_line_of_values": auc([s.value for s in lines], [bool(s.true_line) for s in lines]),
        "calibration": calibration(values, scores),
    }


def markdown(found: dict[str, Any]) -> str:
    """`quality` as tables."""

    def line(name: str, number: float | None, note: str = "") -> str:
        return f"| {name} | {'-' if number is None else f'{number:.4f}'} | {note} |"

    def interval(part: dict[str, Any]) -> str:
        bounds = part["low"], part["high"]
        return f"{part['n']} groups" + ("" if None in bounds else f", 95% [{bounds[0]:.4f}, {bounds[1]:.4f}]")

    rows = [
        line("Spearman", found["spearman"], f"{found['n_states']} states"),
        line("MSE", found["mse"], f"variance of the values {found['variance']:.4f}"),
    ]
    for name, key in (("example", "within_example"), ("example and step", "within_step")):
        part = found[key]
        if part is not None:
            rows.append(line(f"Spearman within an {name}", part["spearman"]["mean"], interval(part["spearman"])))
            rows.append(line(f"MSE within an {name}", part["mse"], f"variance there {part['variance']:.4f}"))
    rows.append(line("AUC: worth more than before the first step", found["auc_above_start"]))
    if found["n_intents"]:
        note = f"{found['n_intents']} stated, {found['true_intents']:.0%} true"
        known = found["auc_true_intent_of_values"]
        rows.append(line("AUC: the intent is true", found["auc_true_intent"], note))
        rows.append(line("… by the values themselves", known))
    if found["n_intent_lines"]:
        rows.append(line("AUC: the line is true", found["auc_true_line"], f"{found['n_intent_lines']} lines"))
        rows.append(line("… by the values themselves", found["auc_true_line_of_values"]))
    rows.append(line("Expected calibration error", found["calibration"]["ece"]))
    head = f"{found['n_examples']} validation examples, {found['n_paths']} paths.\n"
    deciles = [
        f"| {place} | {row['n']} | {row['score']:.4f} | {row['value']:.4f} |"
        for place, row in enumerate(found["calibration"]["deciles"], 1)
    ]
    table = ["| | | |", "| --- | ---: | --- |", *rows]
    return "\n".join(
        [head, *table, "", "| decile | states | score | value |", "| ---: | ---: | ---: | ---: |", *deciles, ""]
    )


def calibration_svg(found: dict[str, Any]) -> str:
    """Mean score and mean value by tenths of the scores, as a file of its own."""
    rows = found["calibration"]["deciles"]
    places = list(range(1, len(rows) + 1))
    series = {key: (places, [row[key] for row in rows]) for key in ("score", "value")}
    return standalone(line_plot(series, "calibration", "mean", smooth=False, xlabel="tenth of the scores"))
