"""Training sequences and held-out examples by item index: what baselines and students are fitted on and chosen by."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from anyo_rl.data.schema import EXAMPLE_ID, TARGET_ID, TRAIN, USER_ID, VALIDATION
from anyo_rl.data.splits import train_events
from anyo_rl.data.task import Task


@dataclass(frozen=True)
class HeldOut:
    """Examples to rank for, as item indices.

    Attributes:
        histories: what each user had chosen before, oldest first.
        targets: the item chosen next.
        excluded: the items that each ranking leaves out; none without masking.
    """

    histories: list[list[int]]
    targets: list[int]
    excluded: list[list[int]]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def __getitem__(self, part: slice) -> "HeldOut":
        """Some of them."""
        return HeldOut(self.histories[part], self.targets[part], self.excluded[part])


def held_out(task: Task, examples: pl.DataFrame, index: Mapping[str, int]) -> HeldOut:
    """Examples of a task by item index.

    Baselines and students read the whole past of a user, also where a teacher is shown its newest part: opponents are
    not to know less. Of pre-made examples (`given`) they read the history as it was published.

    Args:
        task: the data.
        examples: rows of its examples frame.
        index: item id to position in the catalog (`Catalog.index`).
    """
    ids, shown = examples["example_id"].to_list(), examples["history"].to_list()
    pasts = shown if task.args.split == "given" else map(task.past.before, ids)
    return HeldOut(
        [[index[item] for item in past] for past in pasts],
        [index[item] for item in examples["target_id"].to_list()],
        [[index[item] for item in task.excluded(example)] for example in ids],
    )


def training_sequences(task: Task, index: Mapping[str, int]) -> tuple[list[list[int]], HeldOut]:
    """What baselines and students train on (`train_sequences`), and the validation examples.

    All of these count: `max_validation` saves the time of teachers.

    Args:
        task: the data.
        index: item id to position in the catalog (`Catalog.index`).
    """
    return train_sequences(task, index), held_out(task, task.split(VALIDATION), index)


def train_sequences(task: Task, index: Mapping[str, int]) -> list[list[int]]:
    """Each user's train events in order.

    All train events count, those too early to be a train target too. Pre-made examples (`given`) have no log behind
    them: there it is the history of a user's last train example and its target.

    Args:
        task: the data.
        index: item id to position in the catalog (`Catalog.index`).
    """
    return list(sequences_by_user(task, index).values())


def sequences_by_user(task: Task, index: Mapping[str, int]) -> dict[str, list[int]]:
    """The same, by the id of the user.

    Args:
        task: the data.
        index: item id to position in the catalog (`Catalog.index`).
    """
    args = task.args
    if args.split == "given":
        last = task.split("train").group_by("user_id", maintain_order=True).last()
        rows = [
            (user, [*history, target]) for user, history, target in last[["user_id", "history", "target_id"]].rows()
        ]
    else:
        mask = train_events(task.interactions, args.split, task.ratios, args.split_seed)
        events = task.interactions.frame.filter(pl.Series(mask)).group_by("user_id", maintain_order=True)
        rows = events.agg("item_id").rows()
    return {user: [index[item] for item in items] for user, items in rows}


def training_positions(task: Task, index: Mapping[str, int], last: int | None = None) -> pl.DataFrame:
    """Where the targets of training examples stand in the training sequences of their users.

    Of pre-made examples (`given`), whose sequence is the history and target of the last one, those are counted from
    its end; examples whose target does not stand there (older than the sequence, or published in another order) are
    left out, and so are targets without history.

    Args:
        task: the data.
        index: item id to position in the catalog (`Catalog.index`).
        last: at most so many of each user, the latest; all if `None`.

    Returns:
        A row for each, by user and position: `example_id`; `place`, its row in `task.examples`; `user`, Int32, the
        number of its user in `sequences_by_user`; `position`, Int32, of its target in that sequence, 1 or more.
    """
    sequences = sequences_by_user(task, index)
    lengths = pl.DataFrame(
        {USER_ID: list(sequences), "length": [len(sequence) for sequence in sequences.values()]},
        schema={USER_ID: pl.String, "length": pl.Int64},
    ).with_row_index("user")
    places = task.places(TRAIN)
    rows = task.examples[places].select(EXAMPLE_ID, USER_ID, TARGET_ID).with_columns(pl.Series("place", places))
    rows = rows.join(lengths, on=USER_ID, how="left", maintain_order="left")
    if task.args.split == "given":
        later = pl.len().over(USER_ID) - 1 - pl.int_range(pl.len()).over(USER_ID)
        rows = rows.with_columns((pl.col("length") - 1 - later.cast(pl.Int64)).alias("position"))
    else:
        rows = rows.with_columns(pl.col(EXAMPLE_ID).str.extract(r":(\d+)$").cast(pl.Int64).alias("position"))
    rows = rows.filter(pl.col("position").is_between(1, pl.col("length") - 1))
    items = np.fromiter((item for sequence in sequences.values() for item in sequence), dtype=np.int64)
    starts = np.cumsum(lengths["length"].to_numpy()) - lengths["length"].to_numpy()
    there = items[starts[rows["user"].to_numpy()] + rows["position"].to_numpy()]
    targets = np.array([index[item] for item in rows[TARGET_ID].to_list()], dtype=np.int64)
    rows = rows.filter(pl.Series(there == targets))
    rows = rows.select(EXAMPLE_ID, "place", pl.col("user", "position").cast(pl.Int32)).sort("user", "position")
    return rows if last is None else rows.group_by("user", maintain_order=True).tail(last)
