"""Rationales without an LLM: short steps from item attributes, recent tastes first, then what is wanted now.

They are post hoc: the last step names attributes of the target, so a teacher trained on them learns to guess what is
wanted before it names an item. They teach a format and a decomposition, and leave the rest to reinforcement.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import polars as pl

from anyo_rl.data.schema import DataError

_WORD = re.compile(r"[a-z]{3,}")
_STOP_WORDS = {"and", "for", "the", "with", "pack", "per", "size", "box", "count", "inch", "inches", "each", "set"}


def item_attributes(items: pl.DataFrame, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Attribute values of each item, in the order of the columns.

    Besides the columns of the item table there are two derived ones: `decade` (of `year`: "1990s") and `keywords`
    (up to two of a title's most telling words: rare, but shared by at least five items).

    Args:
        items: the item table.
        columns: attribute columns, `decade` or `keywords`.

    Raises:
        DataError: a column is not there.
    """
    values: dict[str, list[str]] = {item_id: [] for item_id in items["item_id"].to_list()}
    for column in columns:
        for item_id, value in zip(values, _column(items, column), strict=True):
            values[item_id] += [" ".join(text.split()) for text in value if text and text.strip()]
    return {item_id: tuple(dict.fromkeys(texts)) for item_id, texts in values.items()}


def _column(items: pl.DataFrame, column: str) -> list[list[str]]:
    if column == "keywords":
        return _keywords(items["title"].to_list())
    source = "year" if column == "decade" else column
    if source not in items.columns:
        raise DataError(
            f"rationale attribute {column!r} needs item column {source!r}; the item table has {items.columns}, and "
            f"'keywords' can always be derived"
        )
    rows = items[source].to_list()
    if column == "decade":
        return [[f"{year[:3]}0s"] if year and re.fullmatch(r"\d{4}", year) else [] for year in rows]
    return [[] if row is None else [row] if isinstance(row, str) else list(row) for row in rows]


def _keywords(titles: Sequence[str], fewest_items: int = 5, per_item: int = 2) -> list[list[str]]:
    words = [list(dict.fromkeys(w for w in _WORD.findall(t.lower()) if w not in _STOP_WORDS)) for t in titles]
    counts = Counter(word for title in words for word in title)
    shared = [[w for w in title if counts[w] >= fewest_items] for title in words]
    return [sorted(title, key=lambda w: (counts[w], w))[:per_item] for title in shared]


def attribute_steps(
    attributes: Mapping[str, tuple[str, ...]], history: Sequence[str], target: str, recent: int = 5, most: int = 3
) -> tuple[str, ...]:
    """Steps for a history and the item chosen next: `recent: …` (commonest values of late), `wants: …` (the target's).

    Args:
        attributes: of each item, from `item_attributes`.
        history: item ids, oldest first.
        target: id of the item chosen next.
        recent: how many of the newest items the first step looks at.
        most: most values a step names.

    >>> attribute_steps({"a": ("tea",), "b": ("tea", "mug")}, ["a", "b"], "b")
    ('recent: tea, mug', 'wants: tea, mug')
    """
    counts = Counter(value for item in reversed(history[-recent:]) for value in attributes[item])
    tastes = [value for value, _ in counts.most_common(most)]
    wanted = attributes[target][:most]
    return (f"recent: {', '.join(tastes) or 'nothing'}", f"wants: {', '.join(wanted) or 'anything'}")
