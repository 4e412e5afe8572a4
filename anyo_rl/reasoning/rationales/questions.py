"""What an LLM is asked: a prompt for each example, examples and candidates drawn by seed."""

import random
from dataclasses import dataclass, fields

import numpy as np
import polars as pl

from anyo_rl.data.schema import DataError, Example
from anyo_rl.reasoning.rationales.filters import Shown
from anyo_rl.reasoning.rationales.prompts import RationalePrompt
from anyo_rl.reasoning.rationales.titles import Titles, fold


@dataclass(frozen=True)
class Question:
    """What is asked about one example.

    Attributes:
        example: the example.
        split: of the example.
        history: clean titles, oldest first.
        shown: what answers are judged by.
        prompt: messages or text.
    """

    example: Example
    split: str
    history: tuple[str, ...]
    shown: Shown
    prompt: str | list[dict[str, str]]


def draw_examples(examples: pl.DataFrame, n: int | None, seed: int) -> pl.DataFrame:
    """Examples in an order drawn by seed, the first n of it: more of them are those of before and others.

    Where a budget ends the job, what was asked is a fair draw as well.

    Raises:
        DataError: n is less than 1.
    """
    if n is not None and n < 1:
        raise DataError(f"max_examples is {n}: expected 1 or more, or leave it out for all {len(examples)}")
    return examples[np.random.default_rng(seed).permutation(len(examples))[:n]]


def make_questions(
    examples: pl.DataFrame, titles: Titles, prompt: RationalePrompt, *, n_candidates: int = 0, seed: int = 0
) -> list[Question]:
    """The questions about examples, in their order.

    Args:
        examples: the examples.
        titles: of the catalog.
        prompt: the prompt with its placeholders.
        n_candidates: how many titles a blind prompt lists, the target among them; 0: no list.
        seed: candidates are drawn by it and the example's id: they are the same whichever examples are asked about.

    Raises:
        DataError: there are not as many candidates, or the prompt has no place for them.
    """
    if n_candidates and (prompt.kind != "blind" or n_candidates < 2):
        raise DataError(
            f"n_candidates is {n_candidates} for kind {prompt.kind}: expected 0, or for kind blind 2 or more"
        )
    questions = []
    names = [field.name for field in fields(Example) if field.name in examples.columns]
    for row in examples.iter_rows(named=True):
        example = Example(**{name: row[name] for name in names})
        history, target = titles.of(example.history), titles.lines[example.target_id]
        candidates = _candidates(example, titles, n_candidates, seed) if n_candidates else []
        filled = prompt.render(history, target, candidates)
        text = filled if isinstance(filled, str) else "\n".join(message["content"] for message in filled)
        others = (*history, *(title for title in candidates if title != target))
        shown = Shown(example.target_id, target, others, text)
        questions.append(Question(example, row["split"], tuple(history), shown, filled))
    return questions


def _candidates(example: Example, titles: Titles, n: int, seed: int) -> list[str]:
    """The target's title among others that differ from it, from one another and from the history's; shuffled."""
    target = titles.lines[example.target_id]
    taken = {fold(title) for title in [target, *titles.of(example.history)]}
    if titles.n_distinct - len(taken) < n - 1:
        raise DataError(
            f"n_candidates is {n}, and example {example.example_id!r} leaves {titles.n_distinct - len(taken)} of "
            f"{titles.n_distinct} titles to draw the others from: lower it"
        )
    rng = random.Random(f"{seed} {example.example_id}")
    drawn = [target]
    while len(drawn) < n:
        title = titles.lines[rng.choice(titles.item_ids)]
        if fold(title) not in taken:
            taken.add(fold(title))
            drawn.append(title)
    rng.shuffle(drawn)
    return drawn
