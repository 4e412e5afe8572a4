"""Training sequences and counts: what baselines and students are fitted on."""

from collections.abc import Mapping

import polars as pl

from anyo_rl.data.splits import train_events
from anyo_rl.data.task import Task


def training_sequences(
    task: Task, index: Mapping[str, int]
) -> tuple[list[list[int]], tuple[list[list[int]], list[int]]]:
    """What baselines and students train on: each user's train events in order; and validation histories and targets.

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
    validation = task.split("validation", task.args.max_validation)
    histories = [[index[item] for item in history] for history in validation["history"].to_list()]
    targets = [index[item] for item in validation["target_id"].to_list()]
    return [[index[item] for item in items] for items in rows], (histories, targets)
