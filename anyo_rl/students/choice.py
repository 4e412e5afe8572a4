"""Settings chosen by a grid search on validation, never on test."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from anyo_rl.metrics import ndcg, target_ranks
from anyo_rl.students.protocol import Histories, Scorer


@dataclass(frozen=True)
class Choice:
    """What a grid search on validation chose.

    Attributes:
        settings: The best settings; of equal ones, the first that was tried.
        value: Their mean NDCG@10.
        trials: All settings that were tried, in order, with their values.
    """

    settings: dict[str, Any]
    value: float
    trials: list[tuple[dict[str, Any], float]]


def choose_on_validation(
    fit: Callable[..., Scorer],
    grid: Mapping[str, Sequence[Any]],
    validation: tuple[Histories, Sequence[int]],
    *,
    k: int = 10,
    mask_history: bool = False,
    batch_size: int = 512,
) -> Choice:
    """Fit every combination in the grid and choose the one with the best NDCG@k on validation.

    Args:
        fit: Called with one combination as keyword arguments, and gives what was fitted with it.
        grid: The values to try of each setting.
        validation: Histories and targets. Never the test set.
        k: Cut-off of the NDCG.
        mask_history: Whether items of the history leave the ranking, as in the evaluation that follows.
        batch_size: Histories scored at once: bounds memory.

    Raises:
        ValueError: If the grid has no combination or there are no validation histories.
    """
    histories, targets = validation
    if not histories or len(histories) != len(targets):
        raise ValueError(
            f"found {len(histories)} histories and {len(targets)} targets, expected as many and at least one"
        )
    trials: list[tuple[dict[str, Any], float]] = []
    n_trials = math.prod(len(values) for values in grid.values())
    combinations = tqdm(itertools.product(*grid.values()), "settings", n_trials, mininterval=5, leave=False)
    for values in combinations:
        settings = dict(zip(grid, values, strict=True))
        scorer = fit(**settings)
        total = 0.0
        for start in range(0, len(histories), batch_size):
            batch = histories[start : start + batch_size]
            ranks = target_ranks(
                scorer.scores(batch), targets[start : start + batch_size], batch if mask_history else None
            )
            total += float(ndcg(ranks, k).sum())
        trials.append((settings, total / len(histories)))
    if not trials:
        raise ValueError("found a grid with no combination, expected one value or more for each setting")
    best, value = max(trials, key=lambda trial: trial[1])
    return Choice(best, value, trials)
