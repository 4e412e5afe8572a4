"""Alignment tasks: what the added tokens of items mean, taught beside the choices of users.

An added token starts from a vector, and the choices of users alone move it. These tasks tie it to words as well: from
a title, or from attributes, to the item that goes by the token, and from the token to its words. They are rows like
any other, under the same prompts and losses, and know the items' table alone: no choice of a user is in them.

After the alignment tasks of LC-Rec (arXiv 2311.09049) and OneRec-Think (2510.11639). Those have further ones, such as
the category of the next item, and write each prompt in many ways; here each task has one prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.attributes import item_attributes
from anyo_rl.data.task import Task
from anyo_rl.reasoning.prompts import Line, Section, Shown, Words
from anyo_rl.reasoning.rows import Row, make_prompt
from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.tokens import Tokens

AlignmentTask = Literal["title", "attributes", "words"]
HEADERS = {"title": "Title:", "attributes": "Attributes:", "words": "Added token:"}
WORDS = Words("Say what the item is, then name it.", "Which item is it?", "Item:")
BUDGET_TOKENS = 4096  # nothing is cut here: `max_length` has the say


@dataclass(frozen=True)
class Alignment:
    """Which alignment tasks a stage mixes in, and how many rows of them.

    Attributes:
        tasks: `title` and `attributes` lead to the item; `words` leads from its token to title and attributes, as a
            reasoning before the item, so that it takes a teacher that reasons.
        share: of all rows of the stage that are theirs, in [0, 1).

    Raises:
        UsageError: a task is unknown or named twice, or the share is out of its range.
    """

    tasks: Sequence[str] = ()
    share: float = 0.2

    def __post_init__(self) -> None:
        unknown = sorted(set(self.tasks) - set(get_args(AlignmentTask)))
        if unknown or len(set(self.tasks)) < len(self.tasks):
            raise UsageError(
                f"alignment_tasks are {list(self.tasks)}: expected some of {list(get_args(AlignmentTask))}, each once"
            )
        if not 0 <= self.share < 1:
            raise UsageError(f"alignment_share is {self.share}: expected 0 or more and less than 1")

    def n_rows(self, n_others: int) -> int:
        """How many rows the tasks have beside so many others.

        >>> Alignment(["title"], 0.2).n_rows(400)
        100
        """
        return round(self.share / (1 - self.share) * n_others) if self.tasks else 0


class AlignmentRows(Sequence[Row]):
    """Rows of alignment tasks, each made when it is read.

    Args:
        task: has the items' table, and says how prompts look.
        catalog: has the tokens of items.
        tokens: the teacher's tokenizer.
        tasks: what is asked, each task as often; see `Alignment`.
        n_rows: how many; every item once before any comes again.
        seed: of their order.

    Raises:
        UsageError: items go by their titles, or no item has an attribute.
    """

    def __init__(
        self, task: Task, catalog: Catalog, tokens: Tokens, tasks: Sequence[str], n_rows: int, seed: int = 0
    ) -> None:
        if catalog.by_title:
            raise UsageError(
                "alignment_tasks teach what added tokens mean, and items go by their titles: set item_tokens to item "
                "or semantic_id, or leave alignment_tasks out"
            )
        self.task, self.catalog, self.tokens, self.tasks = task, catalog, tokens, tuple(tasks)
        rng = np.random.default_rng(seed)
        columns = []
        for number, name in enumerate(self.tasks):
            items = self._with_attributes if name == "attributes" else np.arange(len(catalog))
            n_of_task = len(range(number, n_rows, len(self.tasks)))
            turns = [rng.permutation(items) for _ in range(-(-n_of_task // len(items)))]
            drawn = np.concatenate([np.zeros(0, np.int64), *turns])[:n_of_task]
            columns.append(np.stack([np.full(n_of_task, number), drawn], axis=1))
        self.plan_R_2 = rng.permutation(np.concatenate(columns).astype(np.int32))

    @cached_property
    def attributes(self) -> dict[str, tuple[str, ...]]:
        """Those of each item that rationales speak of (`rationale_attributes`)."""
        return item_attributes(self.task.interactions.items, self.task.args.rationale_attributes)

    @property
    def _with_attributes(self) -> np.ndarray:
        found = [item for item, item_id in enumerate(self.catalog.item_ids) if self.attributes[item_id]]
        if not found:
            raise UsageError(
                "alignment_tasks has attributes, and no item has one: name columns of the item table in "
                "rationale_attributes, or leave the task out"
            )
        return np.array(found)

    @property
    def rationales(self) -> dict[str, list[tuple[str, ...]]]:
        """What stands before the item in each row: its words where these are asked, else nothing."""
        found = {}
        for number, item in self.plan_R_2.tolist():
            item_id = self.catalog.item_ids[item]
            words = (self.catalog.titles[item], ", ".join(self.attributes[item_id]))
            asked = self.tasks[number] == "words"
            found[self._name(number, item)] = [tuple(filter(None, words)) if asked else ()]
        return found

    def __len__(self) -> int:
        return len(self.plan_R_2)

    def __getitem__(self, place):
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number, item = map(int, self.plan_R_2[place])
        item_id, name = self.catalog.item_ids[item], self.tasks[number]
        lines: dict[str, Line] = {
            "title": self.catalog.titles[item],
            "attributes": ", ".join(self.attributes[item_id]) if name == "attributes" else "",
            "words": [Shown("", self.catalog.added_tokens(item))],
        }
        section = Section(HEADERS[name], name, [lines[name]], BUDGET_TOKENS)
        prompt = make_prompt(self.task, [], self.catalog, self.tokens, sections=[section], words=WORDS)
        return Row(self._name(number, item), "", [], item_id, prompt=prompt)

    def _name(self, number: int, item: int) -> str:
        return f"{self.tasks[number]}:{self.catalog.item_ids[item]}"
