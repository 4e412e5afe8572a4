"""What users had chosen before an example, in full: the prompt shows the newest part of it alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from anyo_rl.data.schema import EXAMPLE_ID, HISTORY, ITEM_ID, TARGET_ID, USER_ID, Interactions, split_example_id


@dataclass(frozen=True)
class Past:
    """All events of each user, to look up what came before an example.

    Attributes:
        items: item ids, user by user, oldest first.
        start: user id → place of the user's first one.
    """

    items: pl.Series
    start: dict[str, int]

    @classmethod
    def of_log(cls, interactions: Interactions) -> "Past":
        """The events of a log."""
        frame = interactions.frame.select(USER_ID, ITEM_ID).with_row_index("row")
        first = frame.group_by(USER_ID, maintain_order=True).first()
        return cls(frame[ITEM_ID], dict(first.select(USER_ID, "row").iter_rows()))

    def before(self, example_id: str) -> list[str]:
        """The items of all events before the example's target, oldest first."""
        user, position = split_example_id(example_id)
        start = self.start[user]
        return self.items[start : start + position].to_list()


@dataclass(frozen=True)
class GivenPast:
    """What pre-made examples tell of their users, row by row in the published order.

    A row tells its history; the rows before it tell theirs, and their targets.

    Attributes:
        rows: the pre-made examples, all of them.
    """

    rows: pl.DataFrame

    @cached_property
    def _of_user(self) -> dict[str, list[tuple[list[str], str]]]:
        found: dict[str, list[tuple[list[str], str]]] = {}
        for user, history, target in self.rows.select(USER_ID, HISTORY, TARGET_ID).iter_rows():
            found.setdefault(user, []).append((history, target))
        return found

    def before(self, example_id: str) -> list[str]:
        """The items known to come before the example's target, each once, in the order of their first telling."""
        user, position = split_example_id(example_id)
        *earlier, (history, _) = self._of_user[user][: position + 1]
        told = [item for past, target in earlier for item in (*past, target)]
        return list(dict.fromkeys([*told, *history]))


def past_of(interactions: Interactions, split: str) -> Past | GivenPast:
    """The past of users: from the log, or with split `given` from the pre-made examples."""
    if split == "given":
        assert interactions.given is not None, "examples were made of them"
        return GivenPast(interactions.given)
    return Past.of_log(interactions)


def repeats(examples: pl.DataFrame, interactions: Interactions, past: Past | GivenPast) -> np.ndarray:
    """Which examples have a target that the user had chosen before: (E,) bool.

    Args:
        examples: the examples frame.
        interactions: the log that they are of.
        past: of the same log.
    """
    if isinstance(past, GivenPast):
        pairs: Sequence[tuple[str, str]] = examples.select(EXAMPLE_ID, TARGET_ID).rows()
        return np.array([target in past.before(example) for example, target in pairs], dtype=bool)
    first = interactions.frame.select(pl.struct(USER_ID, ITEM_ID).is_first_distinct()).to_series().to_numpy()
    position = examples[EXAMPLE_ID].str.extract(r":(\d+)$").cast(pl.Int64).to_numpy()
    starts = np.array([past.start[user] for user in examples[USER_ID].to_list()], dtype=np.int64)
    return ~first[starts + position]
