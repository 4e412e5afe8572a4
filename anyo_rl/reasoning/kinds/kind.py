"""The contract of a kind of reasoning; docs/kinds.md has it in words, with a kind of one's own.

A kind is a value: a name, the type of its answer, and a few pure functions. Everything that trains, samples, ranks or
keeps reasonings works with all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from anyo_rl.data.text import clean_text
from anyo_rl.evidence.companions import Companions
from anyo_rl.reasoning.kinds.candidates import Liked, Listed, answers_of
from anyo_rl.reasoning.prompts import OUR_WORDS, Section, Shown, Words

Answer = Literal["item", "order", "yes_no", "items"]
Steps = tuple[str, ...]


@dataclass(frozen=True)
class Sources:
    """What is known of the items, and what other users chose: shared by all examples.

    Attributes:
        attributes: of each item (`--rationale_attributes`), as the item table spells them.
        companions: which items are chosen by the same users.
    """

    attributes: Mapping[str, tuple[str, ...]]
    companions: Companions


@dataclass(frozen=True)
class Asked:
    """What a kind may look at to make the prompt of one example. The target is nowhere in it.

    Attributes:
        example_id: its name.
        user_id: the user.
        history: item ids, oldest first, as far back as prompts show them (`--max_history`).
        past: all that the user had chosen before, oldest first.
        excluded: what rankings leave out; with masking, all of the past.
        training: whether the example is trained on: nothing that is counted may then have its user in it.
        shown: an item as prompts show it: its title, its added tokens, or both (`--history_as`).
        sources: of the run.
        listed: ids of the candidates as they are numbered, or of the one item in question; of kinds that answer with
            an order or yes and no.
        scores: the candidates' scores, where the kind tells them.
    """

    example_id: str
    user_id: str
    history: Sequence[str]
    past: Sequence[str]
    excluded: Sequence[str]
    training: bool
    shown: Callable[[str], Shown]
    sources: Sources
    listed: Sequence[str] = ()
    scores: Sequence[float] = ()


@dataclass(frozen=True)
class Hindsight:
    """What a prompt never shows, and who writes a rationale for SFT knows.

    Attributes:
        target_id: the item chosen next.
        steps: the rationale that the data have of it: the toy world's, of its attributes, or a strong LLM's.
        intent: what was wanted, where the data are a toy world that knows it.
    """

    target_id: str
    steps: Steps
    intent: str | None = None


def nothing(asked: Asked) -> Sequence[Section]:
    """No section: the history is all that prompts show."""
    return ()


def as_given(asked: Asked, hindsight: Hindsight) -> Steps:
    """The rationale as the data have it."""
    return hindsight.steps


@dataclass(frozen=True)
class Kind:
    """A kind of reasoning.

    Attributes:
        name: as runs call it, with its settings where these matter.
        answer: what stands behind the marker.
        show: what prompts show above the history.
        words: ours in prompts.
        words_of: the same where they differ by example; `None` where they do not.
        thoughts: added tokens that these words hold, whose vectors teachers learn.
        write: a rationale for SFT, one for each that the data have, and of those examples alone.
        step_names: what its steps begin with, as `Profile` in `Profile: likes tea`, in order; none if they are free.
        prepare: called once, before prompts are made, with a folder of the run and the examples: keeps what is made
            once. `None` where there is nothing to keep.
        listed: candidates that it is asked about, of kinds that answer with an order or yes and no.
        liked: what is liked, of kinds that answer yes and no.
    """

    name: str
    answer: Answer = "item"
    show: Callable[[Asked], Sequence[Section]] = nothing
    words: Words = OUR_WORDS
    words_of: Callable[[Asked], Words] | None = None
    thoughts: tuple[str, ...] = ()
    write: Callable[[Asked, Hindsight], Steps] = as_given
    step_names: tuple[str, ...] = ()
    prepare: Callable[[Path, Sequence[Asked]], None] | None = None
    listed: Listed | None = None
    liked: Liked | None = None

    @property
    def choices(self) -> pl.DataFrame | None:
        """All answers, in the columns of an item table, of kinds that answer about candidates."""
        return None if self.listed is None else answers_of(self.liked is not None, self.listed)

    def sample_texts(self) -> list[str]:
        """What of ours a tokenizer made from scratch should know well."""
        if self.choices is None:
            return []
        answers = self.choices["title"].to_list()
        return [" > ".join(answers), *(f" {answer}" for answer in answers), self.words.footer] * 10


def clean_steps(steps: Sequence[str]) -> Steps:
    """Steps that were made of data: each on one line and without a marker; what cleans to nothing is left out."""
    return tuple(filter(None, (clean_text(step, max_chars=None) for step in steps)))
