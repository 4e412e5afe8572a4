"""Which items and attributes of the catalog a reasoning names.

Names are titles and attribute values (genres, brands, categories), compared word by word, whatever their case and
punctuation; of names that overlap the longest counts, so that "Alien 3" does not name "Alien". A value without a
letter is no name: a number alone does not say what it is about.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import polars as pl

from anyo_rl.data.attributes import item_attributes
from anyo_rl.data.schema import ITEM_ID, TITLE

MOST_WORDS = 6  # of an attribute value that is a name; a description is none
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Name:
    """A title or an attribute value.

    Attributes:
        text: as it is written.
        column: of the item table; `title` for titles.
        items: ids of the items that bear it.
    """

    text: str
    column: str
    items: frozenset[str]


@dataclass(frozen=True)
class Found:
    """Where a text has a name: from one character to another."""

    name: Name
    start: int
    end: int


@dataclass(frozen=True)
class Names:
    """All names of a catalog.

    Attributes:
        by_words: folded words → the name.
        values: of each item, by column, the attribute values that it has.
    """

    by_words: dict[tuple[str, ...], Name]
    values: dict[str, dict[str, tuple[str, ...]]]

    @classmethod
    def of(cls, items: pl.DataFrame, columns: Sequence[str] = ()) -> "Names":
        """Names of an item table: its titles, its own text columns, and other columns of attributes.

        Args:
            items: `item_id`, `title` and attributes.
            columns: as rationales name them (`decade`, `keywords`).

        Raises:
            DataError: there is no such column.
        """
        ids = items[ITEM_ID].to_list()
        own = [name for name, kind in items.schema.items() if kind in (pl.String(), pl.List(pl.String()))]
        columns = [name for name in dict.fromkeys([*own, *columns]) if name not in (ITEM_ID, TITLE)]
        named = [(TITLE, item, title) for item, title in zip(ids, items[TITLE].to_list(), strict=True)]
        values: dict[str, dict[str, tuple[str, ...]]] = {item: {} for item in ids}
        for column in columns:
            for item, texts in item_attributes(items, [column]).items():
                values[item][column] = texts
                named += [(column, item, text) for text in texts]
        bearers: dict[tuple[str, ...], tuple[str, str, set[str]]] = {}
        for column, item, text in named:
            words = _words(text)
            if any(map(str.isalpha, "".join(words))) and (column == TITLE or len(words) <= MOST_WORDS):
                bearers.setdefault(words, (text, column, set()))[2].add(item)
        found = {words: Name(text, column, frozenset(of)) for words, (text, column, of) in bearers.items()}
        return cls(found, values)

    @cached_property
    def _by_first(self) -> dict[str, list[tuple[tuple[str, ...], Name]]]:
        found: dict[str, list[tuple[tuple[str, ...], Name]]] = {}
        for words, name in sorted(self.by_words.items(), key=lambda one: -len(one[0])):
            found.setdefault(words[0], []).append((words, name))
        return found

    def in_column(self, column: str) -> list[Name]:
        """The names of a column, in order."""
        return [name for name in self.by_words.values() if name.column == column]

    def places(self, text: str) -> Iterator[Found]:
        """The names in a text and where they stand, from left to right."""
        words = [(match[0].casefold(), match.start(), match.end()) for match in _WORD.finditer(text)]
        at = 0
        while at < len(words):
            for of_name, name in self._by_first.get(words[at][0], ()):
                if tuple(word for word, _, _ in words[at : at + len(of_name)]) == of_name:
                    yield Found(name, words[at][1], words[at + len(of_name) - 1][2])
                    at += len(of_name)
                    break
            else:
                at += 1

    def said(self, steps: Iterable[str]) -> list[Name]:
        """The names in the steps of a reasoning, each once, in the order in which they come."""
        return list(dict.fromkeys(found.name for step in steps for found in self.places(step)))

    def replaced(self, steps: Iterable[str], old: Name, new: Name) -> list[str]:
        """The steps with another name wherever one stands."""
        changed = []
        for step in steps:
            parts, end = [], 0
            for found in self.places(step):
                if found.name == old:
                    parts += [step[end : found.start], new.text]
                    end = found.end
            changed.append("".join([*parts, step[end:]]))
        return changed

    def likest(self, item: str, among: Iterable[str]) -> str:
        """The item that shares most attribute values with another; of equal ones the first by id.

        Args:
            item: the other.
            among: ids, one or more.
        """
        own = {(column, value) for column, values in self.values[item].items() for value in values}

        def shared(other: str) -> int:
            return sum((column, value) in own for column, values in self.values[other].items() for value in values)

        return min(among, key=lambda other: (-shared(other), other))


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.casefold() for word in _WORD.findall(text))


def grounded_share(said: Sequence[Name], history: Iterable[str]) -> float:
    """The share of names that an item of the history bears; NaN where nothing is named.

    Args:
        said: names in a reasoning.
        history: item ids.
    """
    there = set(history)
    return sum(bool(name.items & there) for name in said) / len(said) if said else float("nan")
