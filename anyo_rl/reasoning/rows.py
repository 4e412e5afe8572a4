"""Examples of a task as a teacher reads them: prompts for its catalog and tokenizer, with TRL's column names."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.task import Task
from anyo_rl.reasoning.prompts import fit_history, render_prompt
from anyo_rl.teacher.tokens import Tokens

Row = dict[str, Any]


def make_prompt(task: Task, history: Sequence[str], catalog: Catalog, tokens: Tokens, hint: str | None = None) -> Any:
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
    """Examples as rows: example_id, user_id, prompt, history, target_id, cold_item, cold_user."""
    return [
        {
            "prompt": make_prompt(task, row["history"], catalog, tokens),
            **{name: row[name] for name in ("example_id", "user_id", "history", "target_id")},
            **{name: row[name] for name in ("cold_item", "cold_user")},
        }
        for row in examples.iter_rows(named=True)
    ]


def hinted_prompt(task: Task, row: Row, catalog: Catalog, tokens: Tokens) -> Any:
    """The prompt of an example's row with its target as a hint."""
    return make_prompt(task, row["history"], catalog, tokens, hint=row["target_id"])


def sample_texts(task: Task) -> list[str]:
    """What a tokenizer made for this task should know well: titles, prompts and rationales."""
    titles = task.interactions.items["title"].to_list()
    prompt = render_prompt(titles[:1], "text")
    reasonings = ["\n".join(steps) for of_example in task.rationales.values() for steps in of_example]
    return [*[f" {t}" for t in titles], *titles, *[prompt] * 10, *reasonings]
