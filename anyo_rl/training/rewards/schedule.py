"""Weights of rewards that change while training, in a line over optimiser steps.

TRL keeps one weight for each reward and reads it whenever completions are scored: a schedule sets it before each step.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback


@dataclass(frozen=True)
class Schedule:
    """A weight from `start` to `end` over `steps` optimiser steps, and `end` from then on.

    >>> [Schedule(0.0, 1.0, 4).at(step) for step in (0, 1, 4, 9)]
    [0.0, 0.25, 1.0, 1.0]
    """

    start: float
    end: float
    steps: int

    def at(self, step: int) -> float:
        """The weight after so many optimiser steps."""
        share = min(step / self.steps, 1.0)
        return (1 - share) * self.start + share * self.end


def parse_schedules(
    schedules: Mapping[str, Mapping[str, Any]] | None, reward_funcs: Sequence[str]
) -> dict[int, Schedule]:
    """Schedules by the position of their reward.

    Args:
        schedules: the reward's name as in `reward_funcs`, to `{from: …, to: …, steps: …}`.
        reward_funcs: names of the rewards.

    Raises:
        ValueError: a reward that is not used, or a schedule that is none.

    >>> parse_schedules({"format": {"from": 1.0, "to": 0.1, "steps": 50}}, ["ndcg", "format"])
    {1: Schedule(start=1.0, end=0.1, steps=50)}
    """
    found = {}
    for name, schedule in (schedules or {}).items():
        if name not in reward_funcs:
            raise ValueError(
                f"reward_schedules has {name!r}, which is not among reward_funcs: {', '.join(reward_funcs)}"
            )
        if not isinstance(schedule, Mapping) or set(schedule) != {"from", "to", "steps"}:
            raise ValueError(
                f"reward_schedules of {name!r} is {schedule!r}, expected {{from: 0.0, to: 1.0, steps: 100}}"
            )
        start, end, steps = schedule["from"], schedule["to"], schedule["steps"]
        numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in (start, end))
        if not numbers or not isinstance(steps, int) or steps < 1:
            raise ValueError(
                f"reward_schedules of {name!r} is {schedule!r}, expected two numbers, and a whole number of steps of "
                f"1 or more"
            )
        found[list(reward_funcs).index(name)] = Schedule(float(start), float(end), steps)
    return found


class RewardSchedules(TrainerCallback):
    """Sets the weights of a GRPO trainer before each optimiser step, and logs them as `rewards/<name>/weight`.

    Args:
        trainer: the trainer, whose `reward_weights` are set in place.
        schedules: by the position of their reward; the other weights stay.
    """

    def __init__(self, trainer: Any, schedules: Mapping[int, Schedule]) -> None:
        self.trainer = trainer
        self.schedules = schedules

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets the weights of this step; a run that goes on has the step of its checkpoint."""
        for position, schedule in self.schedules.items():
            weight = schedule.at(state.global_step)
            self.trainer.reward_weights[position] = weight
            name = self.trainer.reward_func_names[position]
            self.trainer._metrics["train"][f"rewards/{name}/weight"].append(weight)
