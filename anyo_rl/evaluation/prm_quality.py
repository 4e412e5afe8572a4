"""How far a PRM's scores can be trusted: rank correlation, error, AUC and calibration on held-out users.

All numbers are over different states: what the paths of an example have in common counts once. *Within an example*
means among the states of one user and prompt, which is what advantages compare; *within a step* among those after the
same number of steps, so that a PRM which only tells how far a reasoning has come gets nothing.

The values know the one target that a user chose, which no scorer without it can follow far. Where the data is the toy
world, scores are also measured against what states are truly worth (`anyo_rl.evaluation.true_value`), and so are the
values, and AUCs stand beside what the world's own posterior reaches.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy.stats import rankdata, spearmanr

from anyo_rl.data.task import Task
from anyo_rl.evaluation.report.plots import line_plot, standalone
from anyo_rl.evaluation.true_value import Truth, first_intent
from anyo_rl.metrics.intervals import Interval, bootstrap_interval, finite
from anyo_rl.teacher.tokens import Tokens

N_BINS = 10


class State(NamedTuple):
    """A state between steps: its example, how many steps it has, and what it is worth and said to be worth.

    `first_value` and `first_score` are those before the first step of the same path. `true_intent` says whether the
    intent, stated with its last step for the first time, is true, and `true_line` whether that step is a true line of
    an intent; `None` where it states none, and where nobody knows. `true_value` is what the state is worth to the toy
    world, and `intent_probability` how probable it holds the intent to be.
    """

    example: str
    step: int
    value: float
    score: float
    first_value: float
    first_score: float
    true_intent: bool | None
    true_line: bool | None
    true_value: float | None = None
    intent_probability: float | None = None


@dataclass(frozen=True)
class Within:
    """How scores and values of states go together within groups.

    Attributes:
        spearman: mean over groups whose values differ.
        mse: of values and scores less their group's means.
        variance: the `mse` of a PRM that has one score in each group.
    """

    spearman: Interval
    mse: float
    variance: float


@dataclass(frozen=True)
class Agreement:
    """How scores and values of states go together.

    Attributes:
        spearman: over all states; `None` where all values are alike.
        within_example: among the states of one example.
        within_step: among those after as many steps; `None` where no state is after a step.
    """

    spearman: float | None
    within_example: Within
    within_step: Within | None


@dataclass(frozen=True)
class AgainstTruth:
    """How scores, and values, go together with true values.

    Attributes:
        mse: of the scores.
        variance: of the true values.
        agreement: of the scores.
        of_values: of the values.
    """

    mse: float
    variance: float
    agreement: Agreement
    of_values: Agreement


@dataclass(frozen=True)
class Decile:
    """A tenth of the states by their scores: how many, their mean score and mean value."""

    n: int
    score: float
    value: float


@dataclass(frozen=True)
class Calibration:
    """Mean scores beside mean values.

    Attributes:
        deciles: from low scores to high ones.
        ece: mean distance of the two over states.
    """

    deciles: tuple[Decile, ...]
    ece: float


@dataclass(frozen=True)
class Quality:
    """All that is measured; a number that nobody could have is `None`.

    Attributes:
        n_examples: of the labelled paths.
        n_paths: how many there are.
        n_states: different states with a value.
        mse: of scores and values.
        variance: of the values.
        agreement: of scores and values.
        true_value: against what states are truly worth; `None` outside the toy world.
        auc_above_start: of the gain in score, for being worth more than before the first step.
        n_intents: states whose last step states the intent.
        true_intents: the share of these whose intent is true.
        auc_true_intent: of their scores.
        auc_true_intent_of_values: of their values.
        auc_true_intent_of_world: of how probable the world holds the intent to be.
        n_intent_lines: states whose last step is a line of an intent.
        auc_true_line: of their scores.
        auc_true_line_of_values: of their values.
        calibration: of all states.
    """

    n_examples: int
    n_paths: int
    n_states: int
    mse: float
    variance: float
    agreement: Agreement
    true_value: AgainstTruth | None
    auc_above_start: float | None
    n_intents: int
    true_intents: float | None
    auc_true_intent: float | None
    auc_true_intent_of_values: float | None
    auc_true_intent_of_world: float | None
    n_intent_lines: int
    auc_true_line: float | None
    auc_true_line_of_values: float | None
    calibration: Calibration

    def as_json(self) -> dict[str, object]:
        """The contents of `quality.json`."""
        return _fields(self)


def _fields(found: Any) -> dict[str, object]:
    """A dataclass by its fields; those of an agreement stand beside the numbers it belongs to."""
    named: dict[str, object] = {}
    for each in fields(found):
        value = getattr(found, each.name)
        named |= _fields(value) if each.name == "agreement" else {each.name: _plain(value)}
    return named


def _plain(value: object) -> object:
    if isinstance(value, Interval):
        return value.as_json()
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return _fields(value) if is_dataclass(value) else value


def states(
    labels: pl.DataFrame,
    scores_B: Sequence[np.ndarray],
    tokens: Tokens,
    task: Task | None,
    truth: Truth | None = None,
) -> list[State]:
    """The different states of labelled paths (`anyo_rl.values.prm.label_paths`) that have a value, in their order."""
    found: dict[Hashable, State] = {}
    for b, (path, scores) in enumerate(zip(labels.iter_rows(named=True), scores_B, strict=True)):
        example, ids, values = path["example_id"], path["token_ids"], path["step_values"]
        intents, lines = _truths(path["steps"], path["user_id"], example, len(values), task)
        for step, (end, value, score) in enumerate(zip([0, *tokens.step_ends(ids)], values, scores, strict=True)):
            key = (example, tuple(ids[:end]), value)
            if key not in found and not np.isnan(value):
                told: tuple[Any, ...] = (intents[step], lines[step])
                if truth is not None:
                    probability = truth.intents_B[b] if intents[step] is not None else None
                    told += (float(truth.values_B[b][step]), probability)
                found[key] = State(example, step, value, float(score), values[0], float(scores[0]), *told)
    return list(found.values())


def _truths(
    steps: list[str], user_id: str, example_id: str, n_states: int, task: Task | None
) -> tuple[list[bool | None], list[bool | None]]:
    """`true_intent` and `true_line` of each state of a path of a toy world."""
    intents: list[bool | None] = [None] * n_states
    lines: list[bool | None] = [None] * n_states
    world = None if task is None else task.world
    if task is None or world is None:
        return intents, lines
    asked = user_id, task.position(example_id)
    for step, is_true in enumerate(world.true_steps(steps, *asked), 1):
        if steps[step - 1].strip().lower().startswith(world.state_lines):
            lines[step] = is_true
    n_steps = first_intent(world, steps[: n_states - 1])
    if n_steps is not None:
        intents[n_steps] = world.is_true(steps[:n_steps], *asked)
    return intents, lines


def auc(scores_R: Sequence[float], positive_R: Sequence[bool]) -> float | None:
    """Share of pairs of a positive and a negative whose scores are in that order, ties half; `None` without pairs.

    >>> auc([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.875
    """
    positive = np.asarray(positive_R, dtype=bool)
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return None
    ranks = rankdata(scores_R)
    return float((ranks[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def rank_correlation(values_R: Any, scores_R: Any) -> float | None:
    """Spearman's; 0 where all scores are alike, `None` where all values are, which nobody can put in an order."""
    if len(set(values_R)) < 2:
        return None
    return 0.0 if len(set(scores_R)) < 2 else float(spearmanr(values_R, scores_R).statistic)


def within(found: Sequence[State], *, same_step: bool, seed: int) -> Within:
    """Means over groups of states of one example (and one number of steps)."""
    groups: dict[Hashable, list[State]] = {}
    for state in found:
        groups.setdefault((state.example, state.step if same_step else 0), []).append(state)
    columns = [(np.array([s.value for s in group]), np.array([s.score for s in group])) for group in groups.values()]
    each = [rank_correlation(values, scores) for values, scores in columns]
    values = np.concatenate([values - values.mean() for values, _ in columns])
    scores = np.concatenate([scores - scores.mean() for _, scores in columns])
    told = [one for one in each if one is not None]
    return Within(
        spearman=bootstrap_interval(told, seed=seed),
        mse=float(((values - scores) ** 2).mean()),
        variance=float((values**2).mean()),
    )


def agreement(found: Sequence[State], seed: int) -> Agreement:
    """How scores and values of states go together: overall, within an example, and within an example and step."""
    later = [s for s in found if s.step]
    return Agreement(
        spearman=rank_correlation([s.value for s in found], [s.score for s in found]),
        within_example=within(found, same_step=False, seed=seed),
        within_step=within(later, same_step=True, seed=seed) if later else None,
    )


def calibration(values_R: Sequence[float], scores_R: Sequence[float], n_bins: int = N_BINS) -> Calibration:
    """States by tenths of their scores: mean score, mean value; and the mean distance of the two over states (ECE)."""
    values, scores = np.asarray(values_R), np.asarray(scores_R)
    bins = [part for part in np.array_split(np.argsort(scores, kind="stable"), n_bins) if len(part)]
    rows = tuple(Decile(len(b), float(scores[b].mean()), float(values[b].mean())) for b in bins)
    ece = sum(row.n * abs(row.score - row.value) for row in rows) / len(values)
    return Calibration(rows, float(ece))


def quality(
    labels: pl.DataFrame,
    scores_B: Sequence[np.ndarray],
    tokens: Tokens,
    task: Task | None,
    *,
    truth: Truth | None = None,
    seed: int = 0,
) -> Quality:
    """All that is measured.

    Args:
        labels: labelled paths of held-out users.
        scores_B: the PRM's scores of each path, as many as it has values.
        tokens: the PRM's tokenizer and marker.
        task: the data; only the toy world knows intents.
        truth: what the toy world knows of these paths; `None` leaves it out.
        seed: of the interval's draws.
    """
    found = states(labels, scores_B, tokens, task, truth)
    values, scores = [s.value for s in found], [s.score for s in found]
    known = [s for s in found if s.step and not np.isnan(s.first_value)]
    stated = [s for s in found if s.true_intent is not None]
    lines = [s for s in found if s.true_line is not None]
    is_true = [bool(s.true_intent) for s in stated]
    is_true_line = [bool(s.true_line) for s in lines]
    of_world = None if truth is None else auc([s.intent_probability or 0.0 for s in stated], is_true)
    return Quality(
        n_examples=labels["example_id"].n_unique(),
        n_paths=len(labels),
        n_states=len(found),
        mse=float(np.mean(np.subtract(values, scores) ** 2)),
        variance=float(np.var(values)),
        agreement=agreement(found, seed),
        true_value=None if truth is None else _against_true_values(found, seed),
        auc_above_start=auc([s.score - s.first_score for s in known], [s.value > s.first_value for s in known]),
        n_intents=len(stated),
        true_intents=float(np.mean([s.true_intent for s in stated])) if stated else None,
        auc_true_intent=auc([s.score for s in stated], is_true),
        auc_true_intent_of_values=auc([s.value for s in stated], is_true),
        auc_true_intent_of_world=of_world,
        n_intent_lines=len(lines),
        auc_true_line=auc([s.score for s in lines], is_true_line),
        auc_true_line_of_values=auc([s.value for s in lines], is_true_line),
        calibration=calibration(values, scores),
    )


def _against_true_values(found: Sequence[State], seed: int) -> AgainstTruth:
    true = [float(s.true_value or 0.0) for s in found]
    known = [s._replace(value=value) for s, value in zip(found, true, strict=True)]
    return AgainstTruth(
        mse=float(np.mean([(s.value - s.score) ** 2 for s in known])),
        variance=float(np.var(true)),
        agreement=agreement(known, seed),
        of_values=agreement([s._replace(score=was.value) for s, was in zip(known, found, strict=True)], seed),
    )


def markdown(found: Quality) -> str:
    """`quality` as tables."""

    def line(name: str, number: float | None, note: str = "") -> str:
        return f"| {name} | {'-' if number is None else f'{number:.4f}'} | {note} |"

    def note_of(spearman: Interval) -> str:
        told = f"{spearman.n} groups"
        if spearman.low is None or spearman.high is None:
            return told
        return f"{told}, 95% [{spearman.low:.4f}, {spearman.high:.4f}]"

    def agreeing(part: Agreement, errors: tuple[float, float] | None, to: str = "") -> list[str]:
        lines = [line(f"Spearman{to}", part.spearman, f"{found.n_states} states")]
        if errors is not None:
            lines.append(line(f"MSE{to}", errors[0], f"variance of the values {errors[1]:.4f}"))
        for name, each in (("example", part.within_example), ("example and step", part.within_step)):
            if each is not None:
                mean = finite(each.spearman.mean)
                lines.append(line(f"Spearman{to} within an {name}", mean, note_of(each.spearman)))
                if not to:
                    lines.append(line(f"MSE within an {name}", each.mse, f"variance there {each.variance:.4f}"))
        return lines

    rows = agreeing(found.agreement, (found.mse, found.variance))
    true = found.true_value
    if true is not None:
        rows += agreeing(true.agreement, (true.mse, true.variance), " with the true value")
        rows += agreeing(true.of_values, None, " of the values with the true value")
    rows.append(line("AUC: worth more than before the first step", found.auc_above_start))
    if found.n_intents:
        note = f"{found.n_intents} stated, {found.true_intents:.0%} true"
        rows.append(line("AUC: the intent is true", found.auc_true_intent, note))
        rows.append(line("… by the values themselves", found.auc_true_intent_of_values))
        if found.auc_true_intent_of_world is not None:
            rows.append(line("… by the world, from the history", found.auc_true_intent_of_world))
    if found.n_intent_lines:
        rows.append(line("AUC: the line is true", found.auc_true_line, f"{found.n_intent_lines} lines"))
        rows.append(line("… by the values themselves", found.auc_true_line_of_values))
    rows.append(line("Expected calibration error", found.calibration.ece))
    head = f"{found.n_examples} validation examples, {found.n_paths} paths.\n"
    deciles = [
        f"| {place} | {row.n} | {row.score:.4f} | {row.value:.4f} |"
        for place, row in enumerate(found.calibration.deciles, 1)
    ]
    table = ["| | | |", "| --- | ---: | --- |", *rows]
    return "\n".join(
        [head, *table, "", "| decile | states | score | value |", "| ---: | ---: | ---: | ---: |", *deciles, ""]
    )


def calibration_svg(found: Quality) -> str:
    """Mean score and mean value by tenths of the scores, as a file of its own."""
    rows = found.calibration.deciles
    places = list(range(1, len(rows) + 1))
    series = {"score": (places, [row.score for row in rows]), "value": (places, [row.value for row in rows])}
    return standalone(line_plot(series, "calibration", "mean", smooth=False, xlabel="tenth of the scores"))
