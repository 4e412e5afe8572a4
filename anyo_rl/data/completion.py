"""The `<reasoning> -> <item>` format: the one place that renders, parses and splits completions.

A completion is what the teacher writes: steps, one a line, then the marker, then an item's title. The first marker
ends the reasoning. People always see the marker as `->`; which token stands for it is the business of
`anyo_rl.teacher.tokens`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MARKER = "->"

Prompt = str | list[dict[str, str]]  # plain text, or chat messages


@dataclass(frozen=True)
class Completion:
    """A parsed completion.

    Attributes:
        steps: non-empty lines of the reasoning, stripped, in order.
        item: the text after the first marker up to the end of its line; `None` when there is none (no marker, or a
            completion that stops at the marker so that the engine reads the answer off).
        marked: whether the marker was written. Without it the text is unfinished reasoning, and has no item.
    """

    steps: tuple[str, ...]
    item: str | None
    marked: bool


def completion_text(completion: Prompt) -> str:
    """The text of a completion as TRL hands it to rewards: text, or a list of messages where the prompt is chat."""
    return completion if isinstance(completion, str) else "".join(message["content"] for message in completion)


def split_steps(reasoning: str) -> tuple[str, ...]:
    """Splits a reasoning into its steps: one for each non-empty line, stripped.

    >>> split_steps("likes tea\\n\\n  wants a mug ")
    ('likes tea', 'wants a mug')
    """
    return tuple(step for line in reasoning.splitlines() if (step := line.strip()))


def parse(text: str) -> Completion:
    """Parses what a teacher wrote. Never raises: text that is not a completion has `item=None`.

    >>> parse("likes tea\\nwants a mug -> mug oak 2")
    Completion(steps=('likes tea', 'wants a mug'), item='mug oak 2', marked=True)
    >>> parse("likes tea")
    Completion(steps=('likes tea',), item=None, marked=False)
    """
    reasoning, marker, answer = text.partition(MARKER)
    lines = answer.strip().splitlines()
    return Completion(split_steps(reasoning), lines[0].strip() if lines else None, bool(marker))


def render(steps: Iterable[str], item: str | None = None) -> str:
    """Renders steps and an item as text; the inverse of `parse` for steps and items that hold no marker.

    Raises:
        ValueError: a step or the item holds the marker or a line break, which would be read back as something else.

    >>> render(["likes tea", "wants a mug"], "mug oak 2")
    'likes tea\\nwants a mug -> mug oak 2'
    """
    steps = list(steps)
    for part in [*steps, *([] if item is None else [item])]:
        if MARKER in part or part.splitlines() not in ([], [part]):
            raise ValueError(
                f"{part!r} holds the marker {MARKER!r} or a line break; one step or item is one line of text"
            )
    return f"{chr(10).join(steps)} {MARKER} {item or ''}".strip()
