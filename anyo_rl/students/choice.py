"""Settings chosen by a grid search on validation, never on test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tqdm import tqdm

from anyo_rl.data.sequences import HeldOut
from anyo_rl.metrics import ndcg, target_ranks
from anyo_rl.students.protocol import Scorer

Settings = TypeVar("Settings")


@dataclass(frozen=True)
class Choice(Generic[Settings]):
    """What a grid search on validation chose.

    Attributes:
        settings: the best settings; of equal ones, the first that was tried.
        value: their mean NDCG@k.
        trials: all settings that were tried, in order, with their values.
    """

    settings: Settings
    value: float
    trials: list[tuple[Settings, float]]


def choose_on_validation(
    fit: Callable[[Settings], Scorer],
    grid: Sequence[Settings],
    validation: HeldOut,
    *,
    k: int = 10,
    batch_size: int = 512,
) -> Choice[Settings]:
    """Fits with each of the settings and chooses those with the best NDCG@k on validation.

    Args:
        fit: gets settings, and gives what was fitted with them.
        grid: the settings to try.
        validation: never the test set.
        k: cut-off of the NDCG.
        batch_size: histories scored at once: bounds memory.

    Raises:
        ValueError: the grid is empty or there are no validation histories.
    """
    if not len(validation):
        raise ValueError("found no validation examples, expected one at least")
    if not grid:
        raise ValueError("found an empty grid, expected the settings to try, one at least")
    trials: list[tuple[Settings, float]] = []
    for settings in tqdm(grid, "settings", mininterval=5, leave=False):
        scorer = fit(settings)
        total = 0.0
        for start in range(0, len(validation), batch_size):
            part = validation[start : start + batch_size]
            ranks = target_ranks(scorer.scores(part.histories), part.targets, part.excluded)
            total += float(ndcg(ranks, k).sum())
        trials.append((settings, total / len(validation)))
    best, value = max(trials, key=lambda trial: trial[1])
    return Choice(best, value, trials)
