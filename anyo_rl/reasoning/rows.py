"""Examples of a task as a teacher reads them: prompts for its catalog and tokenizer, with TRL's column names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import polars as pl

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.completion import Prompt
from anyo_rl.data.schema import Example
from anyo_rl.data.task import Task
from anyo_rl.reasoning.prompts import fit_history, render_prompt
from anyo_rl.teacher.tokens import Tokens


@dataclass(frozen=True)
class Row(Example):
    """An example with its prompt: a row of the datasets that TRL's trainers take.

    Attributes:
        prompt: what the teacher reads.
        hinted_prompt: the same with the target as a hint, where reasonings are sampled from it; they are ranked under
            the other one.
    """

    prompt: Prompt = ""
    hinted_prompt: Prompt | None = None

    @classmethod
    def of(cls, columns: Mapping[str, Any]) -> "Row":
        """A row from columns, as a trainer hands them on; other columns are passed over."""
        return cls(**{field.name: columns[field.name] for field in fields(cls) if field.name in columns})

    def columns(self) -> dict[str, Any]:
        """The row as columns, ready for JSON; without a hinted prompt that column is left out."""
        columns = {name: getattr(self, name) for name in ("prompt", *(field.name for field in fields(Example)))}
        return columns if self.hinted_prompt is None else columns | {"hinted_prompt": self.hinted_prompt}

    @property
    def sampled_prompt(self) -> Prompt:
        """What reasonings are sampled from."""
        return self.prompt if self.hinted_prompt is None else self.hinted_prompt

    @property
    def prompt_text(self) -> str:
        """The prompt as tables show it: of a chat the last message."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]


def make_prompt(
    task: Task, history: Sequence[str], catalog: Catalog, tokens: Tokens, hint: str | None = None
) -> Prompt:
    """What the teacher reads for a history of item ids: the newest titles that fit the budget.

    Args:
        task: says how prompts look, and how long they are.
        history: oldest first.
        catalog: has the titles.
        tokens: counts their tokens.
        hint: id of the item that was chosen, where the teacher is to reason towards it.
    """
    titles = [catalog.titles[catalog.index[item]] for item in history]
    kept = fit_history(titles, lambda lines: [tokens.n_text_tokens(line) for line in lines], task.args.history_tokens)
    return render_prompt(kept, task.args.prompt_style, None if hint is None else catalog.titles[catalog.index[hint]])


def make_rows(task: Task, examples: pl.DataFrame, catalog: Catalog, tokens: Tokens) -> list[Row]:
    """Examples with their prompts, in order."""
    names = [field.name for field in fields(Example) if field.name in examples.columns]
    return [
        Row(
            prompt=make_prompt(task, row["history"], catalog, tokens),
            excluded=task.excluded(row["example_id"]),
            **row,
        )
        for row in examples.select(names).iter_rows(named=True)
    ]


def hinted_prompt(task: Task, row: Row, catalog: Catalog, tokens: Tokens) -> Prompt:
    """The prompt of an example with its target as a hint."""
    return make_prompt(task, row.history, catalog, tokens, hint=row.target_id)


def sample_texts(task: Task) -> list[str]:
    """What a tokenizer made for this task should know well: titles, prompts and rationales."""
    titles = task.interactions.items["title"].to_list()
    prompt = render_prompt(titles[:1], "text")
    reasonings = ["\n".join(steps) for of_example in task.rationales.values() for steps in of_example]
    return [*[f" {t}" for t in titles], *titles, *[prompt] * 10, *reasonings]
