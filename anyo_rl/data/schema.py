"""The column names of the data tables, the cleaned log, and the one error that bad data raises."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

# Interactions, and items (an items table may have more columns: attributes, str or list[str]).
USER_ID = "user_id"
ITEM_ID = "item_id"
TIMESTAMP = "timestamp"
FRACTION = "fraction"
RATING = "rating"
TITLE = "title"

# Examples.
EXAMPLE_ID = "example_id"
HISTORY = "history"
TARGET_ID = "target_id"
SPLIT = "split"
COLD_ITEM = "cold_item"
COLD_USER = "cold_user"

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)

EXAMPLES_SCHEMA: dict[str, pl.DataType] = {
    EXAMPLE_ID: pl.String(),
    USER_ID: pl.String(),
    HISTORY: pl.List(pl.String()),
    TARGET_ID: pl.String(),
    TIMESTAMP: pl.Int64(),
    SPLIT: pl.String(),
    COLD_ITEM: pl.Boolean(),
    COLD_USER: pl.Boolean(),
}


@dataclass(frozen=True)
class Example:
    """A user's history up to a moment, and the item chosen next: one row of the examples table.

    Attributes:
        example_id: its name, `user_id:position` where examples come from a log.
        user_id: the user.
        history: ids of the items that the user chose before, oldest first, as far back as a teacher is shown.
        target_id: the item chosen next; empty where it is not known, as when somebody asks what to choose.
        cold_item: whether no training event has the target.
        cold_user: whether the user has no training event.
        excluded: ids of the items that rankings leave out: with masking, all that the user had chosen before.
    """

    example_id: str
    user_id: str
    history: list[str]
    target_id: str
    cold_item: bool = False
    cold_user: bool = False
    excluded: Sequence[str] = ()


class DataError(ValueError):
    """Data that cannot be used: says what was found, what was expected, and how to fix it."""


@dataclass(frozen=True)
class Interactions:
    """A cleaned interaction log.

    Attributes:
        frame: `user_id` str, `item_id` str, `timestamp` Int64 (whole seconds) and, where the log has them, `fraction`
            Float64 (what the time has above its whole seconds, 0 to 1) and `rating` Float32; sorted by user, then
            exact time, then the order in the file.
        items: `item_id` str (unique), `title` str (clean, not empty), and attribute columns (str or list[str]).
        report: what cleaning found; the keys are described in `anyo_rl.data.clean`.
        name: the data set's name.
        given: pre-made examples (`user_id`, `history`, `target_id`, `timestamp`, perhaps `fraction`, `split`) where
            the source has them, for `make_examples(method="given")`; else None.
    """

    frame: pl.DataFrame
    items: pl.DataFrame
    report: dict[str, int]
    name: str
    given: pl.DataFrame | None = None


def split_example_id(example_id: str) -> tuple[str, int]:
    """The user of an example, and how many of the user's events (with pre-made examples: rows) came before it.

    >>> split_example_id("u:7:12")
    ('u:7', 12)
    """
    user, _, position = example_id.rpartition(":")
    return user, int(position)
