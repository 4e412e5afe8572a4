"""Examples of a task as a teacher reads them: prompts for its catalog and tokenizer, with TRL's column names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, overload

import numpy as np
import polars as pl

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.completion import Prompt
from anyo_rl.data.schema import EXAMPLE_ID, HISTORY, TARGET_ID, Example
from anyo_rl.data.task import Task
from anyo_rl.reasoning.kinds.asking import Asking, shown
from anyo_rl.reasoning.prompts import OUR_WORDS, Section, Words, fit_history, fit_section, own_lines, render_prompt
from anyo_rl.teacher.tokens import Tokens


@dataclass(frozen=True)
class Row(Example):
    """An example with its prompt: a row of the datasets that TRL's trainers take.

    Attributes:
        prompt: what the teacher reads.
        hinted_prompt: the same with the target as a hint, where reasonings are sampled from it; they are ranked under
            the other one.
        listed: ids of the candidates that it is asked about, as they are numbered, or of the one item in question;
            `target_id` and `excluded` are then answers, and no items.
        learned: answers in the order that SFT teaches; the target alone where there are none.
    """

    prompt: Prompt = ""
    hinted_prompt: Prompt | None = None
    listed: Sequence[str] = ()
    learned: Sequence[str] = ()

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "Row":
        """A row from columns, as a trainer hands them on; other columns are passed over."""
        return cls(**{field.name: columns[field.name] for field in fields(cls) if field.name in columns})

    def columns(self) -> dict[str, Any]:
        """The row as columns, ready for JSON; without a hinted prompt that column is left out."""
        names = ("prompt", *(field.name for field in fields(Example)), *(("listed", "learned") if self.listed else ()))
        columns = {name: getattr(self, name) for name in names}
        return columns if self.hinted_prompt is None else columns | {"hinted_prompt": self.hinted_prompt}

    def named(self, answer: str) -> str:
        """The item that an answer stands for: a candidate's by its number; any other answer as it is."""
        is_number = answer.isdigit() and len(self.listed) > 1 and 0 < int(answer) <= len(self.listed)
        return self.listed[int(answer) - 1] if is_number else answer

    @property
    def sampled_prompt(self) -> Prompt:
        """What reasonings are sampled from."""
        return self.prompt if self.hinted_prompt is None else self.hinted_prompt

    @property
    def prompt_text(self) -> str:
        """The prompt as tables show it: of a chat the last message."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]


def make_prompt(
    task: Task,
    history: Sequence[str],
    catalog: Catalog,
    tokens: Tokens,
    hint: str | None = None,
    sections: Sequence[Section] = (),
    words: Words = OUR_WORDS,
) -> Prompt:
    """What the teacher reads for a history of item ids: the newest items that fit the budget.

    Args:
        task: says how prompts look, and how long they are.
        history: oldest first.
        catalog: has the titles and the tokens of items.
        tokens: counts their tokens.
        hint: id of the item that was chosen, where the teacher is to reason towards it.
        sections: what a kind of reasoning shows above the history, each under a budget of its own.
        words: ours, of the kind.
    """
    style, how = task.args.prompt_style, task.args.history_as

    def counts(lines: list[str]) -> list[int]:
        return [tokens.n_text_tokens(line) for line in lines]

    def counts_once(lines: list[str]) -> list[int]:
        return [tokens.n_text_tokens(line, remember=False) for line in lines]

    own = own_lines(sections, words)
    fitted = [fit_section(section, counts_once, tokens.safe_text, style, own) for section in sections]
    blocks = [block for block in fitted if block is not None]
    kept = fit_history([shown(catalog, item, how) for item in history], counts, task.args.history_tokens, style, own)
    return render_prompt(kept, style, None if hint is None else shown(catalog, hint, how), blocks, words)


@dataclass(frozen=True, eq=False)
class Rows(Sequence[Row]):
    """Examples with their prompts, each made when it is read: all of them take no more memory than their numbers.

    Attributes:
        task: has the examples.
        places: their row numbers in `task.examples`.
        catalog: has the titles.
        tokens: counts their tokens.
        with_hint: whether rows have a hinted prompt too.
        asking: the kind of reasoning that they ask for; steps, where there is none.
    """

    task: Task
    places: np.ndarray
    catalog: Catalog
    tokens: Tokens
    with_hint: bool = False
    asking: Asking | None = None

    def __post_init__(self) -> None:
        # Made before a loader forks its workers: polars may not compute in these, and they share what is there.
        shows = self.asking is not None and (self.asking.shows or self.asking.kind.words_of is not None)
        _ = self.task.table, self.task.past if self.task.args.mask_history or shows else None
        if shows and len(self):
            _ = self[0]  # with it all that is counted once

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.places)

    @overload
    def __getitem__(self, which: int) -> Row: ...

    @overload
    def __getitem__(self, which: slice) -> "Rows": ...

    def __getitem__(self, which: int | slice) -> "Row | Rows":
        """A row, or some of them."""
        if isinstance(which, slice):
            return self.at(self.places[which])
        (example,) = self.task.table.slice(int(self.places[which]), 1).to_pylist()
        return _make_row(self.task, example, self.catalog, self.tokens, self.with_hint, self.asking)

    @property
    def ids(self) -> pl.Series:
        """Their example ids, for which no prompt is made."""
        return self.task.examples[EXAMPLE_ID].gather(self.places)

    def at(self, places: np.ndarray) -> "Rows":
        """Other examples of the task."""
        return replace(self, places=places)

    def of(self, example_ids: Iterable[str], *, wanted: bool = True) -> "Rows":
        """The rows with these example ids, in order; or (not `wanted`) all others."""
        named = self.ids.is_in(pl.Series(list(example_ids), dtype=pl.String).implode())
        return self.at(self.places[(named if wanted else ~named).to_numpy()])

    def hinted(self) -> "Rows":
        """The same with hinted prompts."""
        return replace(self, with_hint=True)


def make_rows(
    task: Task, examples: pl.DataFrame, catalog: Catalog, tokens: Tokens, asking: Asking | None = None
) -> list[Row]:
    """A few examples with their prompts, in order, all at once."""
    names = [field.name for field in fields(Example) if field.name in examples.columns]
    rows = examples.select(names).iter_rows(named=True)
    return [_make_row(task, row, catalog, tokens, asking=asking) for row in rows]


def row_of(asking: Asking, example: Example, catalog: Catalog, tokens: Tokens) -> Row:
    """An example that need not be one of the task's, with its prompt; it says itself what rankings leave out.

    Args:
        asking: for an item.
        example: its history is all that the user had chosen; what is older than `max_history` is cut off.
        catalog: has the titles.
        tokens: counts their tokens.
    """
    asked, kind = asking.asked_anew(example, catalog), asking.kind
    sections = kind.show(asked) if asking.shows else ()
    words = kind.words if kind.words_of is None else kind.words_of(asked)
    columns = {field.name: getattr(example, field.name) for field in fields(Example)} | {HISTORY: list(asked.history)}
    return Row(prompt=make_prompt(asking.task, asked.history, catalog, tokens, None, sections, words), **columns)


def _make_row(
    task: Task,
    example: Mapping[str, Any],
    catalog: Catalog,
    tokens: Tokens,
    with_hint: bool = False,
    asking: Asking | None = None,
) -> Row:
    history, hint = example[HISTORY], example[TARGET_ID]
    question = None if asking is None else asking.question(example)
    sections: Sequence[Section] = () if asking is None else asking.sections(example, catalog, question)
    words = OUR_WORDS if asking is None else asking.words(example)
    row = Row(
        prompt=make_prompt(task, history, catalog, tokens, None, sections, words),
        hinted_prompt=make_prompt(task, history, catalog, tokens, hint, sections, words) if with_hint else None,
        excluded=task.excluded(example[EXAMPLE_ID]),
        **example,
    )
    if question is None or asking is None or asking.questions is None:
        return row
    answers = asking.questions.answer_ids
    return replace(
        row,
        target_id=question.target or answers[0],
        excluded=list(answers[len(question.listed) :]) if asking.kind.answer == "order" else [],
        listed=list(question.listed),
        learned=list(question.learned),
    )


def sample_texts(task: Task) -> list[str]:
    """What a tokenizer made for this task should know well: titles, prompts and rationales."""
    titles = task.interactions.items["title"].to_list()
    prompt = render_prompt(titles[:1], "text")
    reasonings = ["\n".join(steps) for of_example in task.rationales.values() for steps in of_example]
    return [*[f" {t}" for t in titles], *titles, *[prompt] * 10, *reasonings]
