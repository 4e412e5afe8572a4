"""Whether a completion keeps to the format: enough steps, none of them padding, then the marker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anyo_rl.data.completion import MARKER, Prompt, completion_text, parse
from anyo_rl.reasoning.kinds.typed import read_typed


class FormatReward:
    """1.0 for a completion in the format, 0.0 for any other. There is no partial credit to collect.

    In the format means: the marker was written; there are `min_steps` to `max_steps` steps before it; no step is
    longer than `max_step_chars`; and no step says what an earlier one said (upper and lower case and spacing apart),
    since repeated lines are the cheapest way to fill a quota.

    Args:
        min_steps: fewest steps; 0 accepts an answer without reasoning.
        max_steps: most steps.
        max_step_chars: longest step, in characters.
        item: ask for an item after the marker as well. Leave it off where the text stops at the marker (the
            `likelihood` ranker reads the answer off), turn it on for `match` and `embedding`.
        step_names: names of typed steps, as `[Profile, Intention]` of `cot_rec`: each then begins one step, with
            something said behind its colon, they come in this order, and there are no other steps.

    Raises:
        ValueError: when no completion could pass.

    >>> FormatReward()(completions=["wants tea ->", "wants tea"], steps=[["wants tea"], ["wants tea"]])
    [1.0, 0.0]
    """

    def __init__(
        self,
        min_steps: int = 1,
        max_steps: int = 16,
        max_step_chars: int = 400,
        item: bool = False,
        step_names: Sequence[str] = (),
    ) -> None:
        if min_steps < 0 or max_steps < min_steps:
            raise ValueError(f"expected 0 <= min_steps <= max_steps, found {min_steps} and {max_steps}")
        if max_step_chars < 1:
            raise ValueError(f"max_step_chars must be 1 or more, found {max_step_chars}")
        if isinstance(step_names, str) or len(set(step_names)) < len(step_names):
            raise ValueError(f"step_names must be a list of different names, found {step_names!r}")
        if step_names and not min_steps <= len(step_names) <= max_steps:
            raise ValueError(
                f"step_names has {len(step_names)} names, expected min_steps to max_steps, {min_steps} to {max_steps}"
            )
        self.step_names = tuple(step_names)
        self.min_steps = min_steps
        self.max_steps = max_steps
        self.max_step_chars = max_step_chars
        self.item = item
        self.__name__ = "format"

    def __call__(self, completions: Sequence[Prompt], steps: list[list[str]], **kwargs: Any) -> list[float]:
        """One reward per completion.

        Args:
            completions: each as text, or as TRL's list of one message.
            steps: the steps of each.
            **kwargs: the other columns, not used.
        """
        return [
            float(self._ends_well(completion_text(completion)) and self._has_good_steps(of_one))
            for completion, of_one in zip(completions, steps, strict=True)
        ]

    def _ends_well(self, text: str) -> bool:
        return MARKER in text and (not self.item or parse(text).item is not None)

    def _has_good_steps(self, steps: list[str]) -> bool:
        said = [" ".join(step.split()).casefold() for step in steps]
        return (
            self.min_steps <= len(said) <= self.max_steps
            and len(set(said)) == len(said)
            and all(len(step) <= self.max_step_chars for step in steps)
            and (not self.step_names or read_typed(steps, self.step_names).in_form)
        )
