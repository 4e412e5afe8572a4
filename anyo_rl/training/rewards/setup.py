"""What rewards need before training starts: settings they make sense under, columns from the training split, a fit.

A reward says so by attributes, none of which it needs to have:

- `columns`: columns to be made for it. `propensity` comes from here, what the engine makes from
  `anyo_rl.training.rewards.probes`;
- `weighs_groups`: whether it multiplies by a factor that is the same for all completions of a prompt;
- `fit(task, catalog, seed)`: called once, on every process, before training.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from datasets import Dataset

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.sequences import train_sequences
from anyo_rl.data.task import Task
from anyo_rl.reasoning.rows import Row
from anyo_rl.students.popularity import fit_popularity, propensities
from anyo_rl.training.lazy import lazy_dataset
from anyo_rl.training.rewards.check import RewardError, inner_reward, wanted_columns

PROPENSITY = "propensity"


class Scaling(Protocol):
    """The two of TRL's settings that say how rewards become advantages."""

    scale_rewards: Any
    multi_objective_aggregation: str


def check_rewards(reward_funcs: Sequence[Callable[..., Any]], settings: Scaling) -> None:
    """Refuses rewards that do nothing under the settings.

    Raises:
        ValueError: a factor that is constant within a group would be divided out again.
    """
    by_group = (
        "scale_rewards: group"
        if settings.scale_rewards in ("group", True)
        else "multi_objective_aggregation: normalize_then_sum"
        if settings.multi_objective_aggregation == "normalize_then_sum"
        else None
    )
    for reward in reward_funcs:
        if by_group and getattr(inner_reward(reward), "weighs_groups", False):
            raise ValueError(
                f"reward {getattr(reward, '__name__', reward)!r} weighs each prompt (propensity_power), and with "
                f"{by_group} rewards are divided by the spread of their group, where that weight cancels: set "
                f"scale_rewards to batch or none (and sum_then_normalize), or propensity_power to 0"
            )


def prepare_rewards(
    reward_funcs: Sequence[Callable[..., Any]], rows: Sequence[Row], task: Task, catalog: Catalog, seed: int
) -> Dataset:
    """Fits the rewards that want it, and gives the training examples with the columns that rewards ask for.

    Each row is made when it is drawn (`anyo_rl.training.lazy`).

    Args:
        reward_funcs: the rewards, as they were loaded.
        rows: training examples.
        task: the data.
        catalog: the catalog.
        seed: of fits.

    Raises:
        RewardError: a fit exits.
    """
    for reward in reward_funcs:
        fit = getattr(inner_reward(reward), "fit", None)
        if fit is not None:
            try:
                fit(task, catalog, seed)
            except SystemExit as error:
                name = getattr(reward, "__name__", reward)
                raise RewardError(
                    f"reward {name!r} called sys.exit({error.code!r}) in its fit: let it raise"
                ) from error
    if PROPENSITY not in wanted_columns(reward_funcs):
        return prompts_dataset(rows)
    counts_N = fit_popularity(train_sequences(task, catalog.index), len(catalog)).counts
    of_item = dict(zip(catalog.item_ids, propensities(counts_N).tolist(), strict=True))
    return lazy_dataset(_Prompts(rows, of_item))


def prompts_dataset(rows: Sequence[Row]) -> Dataset:
    """Training examples as TRL's trainers that sample have them: `prompt` and the columns of a row."""
    return lazy_dataset(_Prompts(rows))


@dataclass(frozen=True)
class _Prompts:
    """Examples as columns, with the propensity of the target where a reward asks for it."""

    rows: Sequence[Row]
    propensity: Mapping[str, float] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Mapping[str, object]:
        row = self.rows[number]
        more = {} if self.propensity is None else {PROPENSITY: self.propensity[row.target_id]}
        return row.columns() | more
