"""Training sequences and held-out examples by item index: what baselines and students are fitted on and chosen by."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from anyo_rl.data.schema import VALIDATION
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
    args = task.args
    if args.split == "given":
        last = task.split("train").group_by("user_id", maintain_order=True).last()
        rows = [[*history, target] for history, target in last.select("history", "target_id").iter_rows()]
    else:
        mask = train_events(task.interactions, args.split, task.ratios, args.split_seed)
        events = task.interactions.frame.filter(pl.Series(mask)).group_by("user_id", maintain_order=True)
        rows = events.agg("item_id")["item_id"].to_list()
    return [[index[item] for item in items] for items in rows]
