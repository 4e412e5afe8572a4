"""The paired difference of two answers to the same examples, over the seeds that both have."""

import numpy as np
import polars as pl

from anyo_rl.metrics.intervals import Interval, paired_interval
from anyo_rl.metrics.ranking import per_user_metrics

SEED = "seed"


def paired_difference(a: pl.DataFrame, b: pl.DataFrame, seed: int) -> dict[str, Interval]:
    """Each metric of a less that of b, paired by example and, where answers have it, by the column `seed`.

    Args:
        a: columns `example_id`, `user_id`, `rank`, and `seed` where there are several.
        b: the same examples, and seeds where `a` has them.
        seed: of the bootstrap, which draws users with all of their rows.
    """
    keys = ["example_id", *([SEED] if SEED in a.columns else [])]
    both = a.join(b.select(*keys, "rank"), on=keys, suffix="_b", maintain_order="left")
    metrics_a, metrics_b = per_user_metrics(both["rank"]), per_user_metrics(both["rank_b"])
    values = {
        name: paired_interval(metrics_a[name], metrics_b[name], both["user_id"], seed=seed) for name in metrics_a
    }
    if SEED in a.columns:
        seeds = both[SEED].to_numpy()
        for name, value in values.items():
            each = metrics_a[name] - metrics_b[name]
            values[name] = with_seeds(value, [float(each[seeds == one].mean()) for one in np.unique(seeds)])
    return values


def with_seeds(value: Interval, by_seed: list[float]) -> Interval:
    """The same interval, with the mean of each seed."""
    return Interval(value.mean, value.low, value.high, value.n, tuple(by_seed))
