"""Titles as an LLM reads and writes them: safe lines for its prompt, and which item a written title names."""

from collections.abc import Sequence
from functools import cached_property

import polars as pl

from anyo_rl.data.text import clean_text
from anyo_rl.reasoning.prompts import history_lines

_ALIKE = str.maketrans("‘’“”–—‹›", "''\"\"--<>")
_AROUND = " \t\"'`*_.,:;"


def fold(text: str) -> str:
    """A written title made comparable: cleaned, case and white space folded, typographic quotes and dashes plain.

    >>> fold("The  Cook’s\\tMug")
    "the cook's mug"
    """
    return " ".join(clean_text(text, max_chars=None).translate(_ALIKE).casefold().split())


class Titles:
    """The titles of all items: by id, and the other way round.

    Several items may have one title, or titles that are the same once folded: a title names all of them.

    Args:
        items: columns `item_id` and `title`.
    """

    def __init__(self, items: pl.DataFrame) -> None:
        self.item_ids: list[str] = items["item_id"].to_list()
        self.lines = dict(zip(self.item_ids, history_lines(items["title"].to_list()), strict=True))

    def of(self, item_ids: Sequence[str]) -> list[str]:
        """One clean line for each item."""
        return [self.lines[item_id] for item_id in item_ids]

    def find(self, written: str | None) -> tuple[str, ...]:
        """Ids of the items that a written title names, in the order of the table; none where no item has it.

        Quotes, asterisks and points around it are passed over where no title has them.
        """
        if written is None:
            return ()
        return self._by_title.get(fold(written)) or self._by_title.get(fold(written.strip(_AROUND)), ())

    @cached_property
    def _by_title(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for item_id, line in self.lines.items():
            key = fold(line)
            found[key] = (*found.get(key, ()), item_id)
        return found

    @cached_property
    def n_distinct(self) -> int:
        """How many titles differ once folded."""
        return len(self._by_title)
