"""Is what the steps say of the history in the history: the share of the names in them that its items bear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anyo_rl.reasoning.kinds.typed import read_typed
from anyo_rl.reasoning.mentions import Names, grounded_share

if TYPE_CHECKING:
    from anyo_rl.catalog.catalog import Catalog
    from anyo_rl.data.task import Task


class GroundedReward:
    """The share of the titles and attribute values in the steps that an item of the history bears: 0 … 1.

    A reasoning also speaks of what is wanted next, which need not be in the history: name the steps that speak of the
    history by how they begin. Each name counts once. One name that is surely right gets 1, so that this reward is for
    a place beside one from ranks.

    Recipes give it the names of the catalog (`fit`).

    Args:
        step_names: what the steps begin with that speak of the history, as `[recent]` for "recent: tea, mug"; all
            steps if none is named.
        floor: reward of a completion whose steps name nothing.

    Raises:
        ValueError: on a floor that is not finite, or step names that are no list.
    """

    def __init__(self, step_names: Sequence[str] = (), floor: float = 0.0) -> None:
        if isinstance(step_names, str):
            raise ValueError(f"step_names must be a list of names, found {step_names!r}")
        if not math.isfinite(floor):
            raise ValueError(f"floor must be a finite number, found {floor}")
        self.step_names = tuple(step_names)
        self.floor = floor
        self._names: Names | None = None
        self.__name__ = "grounded"

    def fit(self, task: Task, catalog: Catalog, seed: int = 0) -> None:
        """Takes the names of the catalog; recipes call this before training."""
        self.use(Names.of(task.interactions.items, task.args.rationale_attributes))

    def use(self, names: Names) -> None:
        """Takes the names that steps can hold."""
        self._names = names

    def __call__(self, steps: list[list[str]], history: list[list[str]], **kwargs: Any) -> list[float]:
        """One reward per completion.

        Args:
            steps: the steps of each.
            history: item ids before the target, oldest first.
            **kwargs: the other columns, not used.

        Raises:
            ValueError: the reward was not given the names of a catalog.
        """
        if self._names is None:
            raise ValueError("the reward 'grounded' knows no names yet: call fit(task, catalog), as recipes do")
        rewards = []
        for of_one, items in zip(steps, history, strict=True):
            share = grounded_share(self._names.said(self._about_history(of_one)), items)
            rewards.append(self.floor if math.isnan(share) else share)
        return rewards

    def _about_history(self, steps: Sequence[str]) -> list[str]:
        """The steps that count, without how they begin."""
        if not self.step_names:
            return list(steps)
        return [said for step in steps for said in read_typed([step], self.step_names).said.values()]
