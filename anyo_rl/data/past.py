"""What users had chosen before an example, in full: the prompt shows the newest part of it alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from anyo_rl.data.schema import EXAMPLE_ID, HISTORY, ITEM_ID, TARGET_ID, USER_ID, Interactions, split_example_id


@dataclass(frozen=True)
class Past:
    """All events of each user, to look up what came before an example.

    Attributes:
        items: item ids, user by user, oldest first.
        users: the users, sorted.
        starts: (U,) place of each user's first item.
    """

    items: pl.Series
    users: pl.Series
    starts: np.ndarray

    @classmethod
    def of_log(cls, interactions: Interactions) -> "Past":
        """The events of a log."""
        users, starts = _first_rows(interactions.frame)
        return cls(interactions.frame[ITEM_ID], users, starts)

    def start(self, users: pl.Series) -> np.ndarray:
        """The places of users' first items."""
        return self.starts[self.users.search_sorted(users).to_numpy()]

    def before(self, example_id: str) -> list[str]:
        """The items of all events before the example's target, oldest first."""
        user, position = split_example_id(example_id)
        return self.items.slice(int(self.starts[self.users.search_sorted(user)]), position).to_list()


@dataclass(frozen=True)
class GivenPast:
    """What pre-made examples tell of their users, row by row in the published order.

    A row tells its history; the rows before it tell theirs, and their targets.

    Attributes:
        rows: the pre-made examples, all of them.
        order: their row numbers, user by user.
        users: the users, sorted.
        starts: (U,) place of each user's first row in the order.
    """

    rows: pl.DataFrame
    order: np.ndarray
    users: pl.Series
    starts: np.ndarray

    @classmethod
    def of_rows(cls, rows: pl.DataFrame) -> "GivenPast":
        """The pre-made examples in their published order."""
        of_user = rows.select(USER_ID).with_row_index("number").sort(USER_ID, maintain_order=True)
        return cls(rows.select(HISTORY, TARGET_ID), of_user["number"].to_numpy(), *_first_rows(of_user))

    def before(self, example_id: str) -> list[str]:
        """The items known to come before the example's target, each once, in the order of their first telling."""
        user, position = split_example_id(example_id)
        start = int(self.starts[self.users.search_sorted(user)])
        *earlier, (history, _) = [self.rows.row(int(number)) for number in self.order[start : start + position + 1]]
        told = [item for past, target in earlier for item in (*past, target)]
        return list(dict.fromkeys([*told, *history]))


def _first_rows(frame: pl.DataFrame) -> tuple[pl.Series, np.ndarray]:
    """The users of a frame, sorted, and the first row of each."""
    first = frame.select(USER_ID).with_row_index("row").group_by(USER_ID).agg(pl.col("row").min()).sort(USER_ID)
    return first[USER_ID], first["row"].to_numpy()


def past_of(interactions: Interactions, split: str) -> Past | GivenPast:
    """The past of users: from the log, or with split `given` from the pre-made examples."""
    if split == "given":
        assert interactions.given is not None, "examples were made of them"
        return GivenPast.of_rows(interactions.given)
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
    return ~first[past.start(examples[USER_ID]) + position]
