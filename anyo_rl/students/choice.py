"""Settings chosen by search on validation, never on test."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from tqdm import tqdm

from anyo_rl.data.sequences import HeldOut
from anyo_rl.metrics import ndcg, target_ranks
from anyo_rl.students.protocol import Scorer, rows_at_once

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Choice(Generic[Settings]):
    """What a search on validation chose.

    Attributes:
        settings: the best settings; of equal ones, the first that was tried.
        value: their mean NDCG@k.
        fitted: what was fitted with them.
        trials: all settings that were tried, in order, with their values.
    """

    settings: Settings
    value: float
    fitted: Scorer
    trials: list[tuple[Settings, float]]


def choose_on_validation(
    fit: Callable[[Settings], Scorer], grid: Sequence[Settings], validation: HeldOut, *, k: int = 10
) -> Choice[Settings]:
    """Fits with each of the settings and chooses those with the best NDCG@k on validation.

    Args:
        fit: gets settings, and gives what was fitted with them.
        grid: the settings to try.
        validation: never the test set.
        k: cut-off of the NDCG.

    Raises:
        ValueError: the grid is empty or there are no validation examples.
    """
    if not len(validation):
        raise ValueError("found no validation examples, expected one at least")
    if not grid:
        raise ValueError("found an empty grid, expected the settings to try, one at least")
    best: Choice[Settings] | None = None
    trials: list[tuple[Settings, float]] = []
    for settings in tqdm(grid, "settings", mininterval=5, leave=False):
        fitted = fit(settings)
        trials.append((settings, mean_ndcg(fitted, validation, k)))
        if best is None or trials[-1][1] > best.value:
            best = Choice(settings, trials[-1][1], fitted, trials)
    assert best is not None, "the grid is not empty"
    return best


def choose_in_turn(
    fit: Callable[[Settings], Scorer],
    start: Settings,
    alternatives: Mapping[str, Sequence[Any]],
    validation: HeldOut,
) -> Choice[Settings]:
    """Chooses one setting after the other on validation, each with the best so far of the others.

    Three settings of three values take seven fits where the grid takes 27; what only pays together is missed.

    Args:
        fit: gets settings, and gives what was fitted with them.
        start: the settings to begin with, a dataclass.
        alternatives: field to the values to try besides the one it has, in the order in which fields are chosen.
        validation: never the test set.

    Raises:
        ValueError: there are no validation examples.
    """
    best = choose_on_validation(fit, [start], validation)
    trials = list(best.trials)
    for name, values in alternatives.items():
        grid = [replace(best.settings, **{name: value}) for value in values]  # type: ignore[type-var]
        found = choose_on_validation(fit, grid, validation)
        trials += found.trials
        if found.value > best.value:
            best = found
    return replace(best, trials=trials)


def mean_ndcg(scorer: Scorer, examples: HeldOut, k: int = 10) -> float:
    """Mean NDCG@k over the whole catalog, less what each ranking leaves out."""
    total, rows = 0.0, rows_at_once(scorer.n_items)
    for start in range(0, len(examples), rows):
        part = examples[start : start + rows]
        total += float(ndcg(target_ranks(scorer.scores(part.histories), part.targets, part.excluded), k).sum())
    return total / len(examples)
