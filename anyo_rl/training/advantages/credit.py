"""GRPO's advantages by a run's settings: what the tokens of a reasoning are credited with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from anyo_rl.run.settings import UsageError
from anyo_rl.training.advantages.batch import Batch
from anyo_rl.training.advantages.outcome import none, outcome
from anyo_rl.training.advantages.process import ProcessReduction, process
from anyo_rl.training.advantages.progress import progress
from anyo_rl.values.source import StepSource

Advantages = Literal["outcome", "progress", "process", "none"]
ADVANTAGES: dict[Advantages, Callable[..., torch.Tensor]] = {
    "outcome": outcome,
    "progress": progress,
    "process": process,
    "none": none,
}

WITHOUT_SOURCE: tuple[Advantages, ...] = ("outcome", "none")


@dataclass(frozen=True)
class Credit:
    """What a step is credited with.

    Attributes:
        advantages: `outcome` (the path's reward, alike for all steps), `progress` (the same, less what was gained
            before the step), `process` (what this step and those after it gained) or `none`, under which the item
            loss alone trains: the control of what reinforcement adds.
        source: what the states between steps are worth, where the outcome is not all.
        reduction: for `process`.

    Raises:
        ValueError: an unknown name, or no source where one is needed.
    """

    advantages: Advantages = "outcome"
    source: StepSource | None = None
    reduction: ProcessReduction = "mean"

    def __post_init__(self) -> None:
        for name, kind in (("advantages", Advantages), ("reduction", ProcessReduction)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(get_args(kind))}")
        if (self.advantages in WITHOUT_SOURCE) != (self.source is None):
            raise UsageError(
                f"advantages is {self.advantages!r} {'without' if self.source is None else 'with'} a source of step "
                f"values: {' and '.join(WITHOUT_SOURCE)} take none, and the others need one"
            )

    @property
    def critic(self) -> None:
        """GRPO has none: its baseline is the group."""
        return None

    def token_advantages(self, batch: Batch) -> torch.Tensor:
        """(B,) or (B, T) advantages of this process's completions; the marker belongs to the last step."""
        settings = {"reduction": self.reduction} if self.advantages == "process" else {}
        return ADVANTAGES[self.advantages](batch, **settings)
