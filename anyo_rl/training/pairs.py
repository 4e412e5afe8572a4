"""Preference pairs from a paths table: of each example's paths the best against the worst.

A pair is two reasonings of one example, written by one policy, up to the marker: the answer is read off by the engine,
so it is the reasoning alone that is better or worse. A path that never reached the marker has the gain 0 of a
completion that does not parse. It may be the rejected one, since not to come to an end is what is wrong with it, and
never the chosen one: that would teach the teacher not to answer.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import polars as pl

from anyo_rl.metrics.gains import log_gain, mrr, ndcg
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.paths import KEY

PairGain = Literal["ndcg", "mrr", "log"]
GROUP = ("example_id", "policy")
RANKER = "likelihood"
PAIRS_SCHEMA = pl.Schema(
    {
        "example_id": pl.String(),
        "policy": pl.String(),
        "prompt": pl.String(),
        "target_id": pl.String(),
        "chosen": pl.String(),
        "rejected": pl.String(),
        "chosen_ids": pl.List(pl.Int64()),  # up to the marker
        "rejected_ids": pl.List(pl.Int64()),
        "chosen_gain": pl.Float64(),
        "rejected_gain": pl.Float64(),
    }
)


@dataclass(frozen=True)
class Pairs:
    """Preference pairs, and why there are no more.

    Attributes:
        frame: a row for each pair, with the columns of `PAIRS_SCHEMA`, by example and policy.
        left_out: reason to the number of groups (the paths of one example by one policy) without a pair, for the first
            reason that applies: `one_path`; `no_marker`, no path reached it; `small_gap`; `same_completion`, the best
            and the worst are one text; `target_cap`, the target has its share of pairs.
    """

    frame: pl.DataFrame
    left_out: dict[str, int]


def preference_pairs(
    paths: pl.DataFrame,
    marker_id: int,
    *,
    least_gap: float,
    gain: PairGain = "ndcg",
    n_items: int | None = None,
    max_per_target: int | None = None,
) -> Pairs:
    """The best path of each group against its worst, where there is enough between them.

    Equal gains go by the sample index: the first path is taken as the best, and of the worst the first that is another
    text than the best. The order of the table's rows does not matter.

    Args:
        paths: a paths table, several paths of each example, with ranks by the `likelihood` ranker.
        marker_id: token id of the marker (`Tokens.marker_id`).
        least_gap: least difference of the two gains, above 0.
        gain: what a rank is worth: `ndcg`, `mrr`, or `log`, which still tells bad ranks apart.
        n_items: size of the catalog, for `log`.
        max_per_target: most pairs that have one item as their target, those with the largest gaps; `None` for all.
            Without it the reasonings that lead to popular items are most of what is learned.

    Raises:
        ValueError: a setting is out of its range; the paths are not told apart by their keys, were not ranked, or by
            another ranker.
    """
    if not least_gap > 0:
        raise UsageError(f"least_gap is {least_gap}, expected above 0: paths of one gain are no preference")
    if max_per_target is not None and max_per_target < 1:
        raise UsageError(f"max_per_target is {max_per_target}, expected 1 or more, or None for no cap")
    if gain not in get_args(PairGain):
        raise UsageError(f"gain is {gain!r}, expected one of {', '.join(get_args(PairGain))}")
    _check(paths)
    paths = paths.select(
        *("example_id", "policy", "sample_index", "prompt", "target_id", "completion"),
        ids=_up_to(marker_id),
        gain=_gains(paths, marker_id, gain, n_items),
        marked=pl.col("token_ids").list.contains(marker_id).fill_null(False),
    ).sort(*GROUP, "sample_index")

    left_out = dict.fromkeys(("one_path", "no_marker", "small_gap", "same_completion", "target_cap"), 0)
    found = []
    for _, group in paths.group_by(GROUP, maintain_order=True):
        pair = _pair(group, least_gap)
        if isinstance(pair, str):
            left_out[pair] += 1
        else:
            found.append(pair)
    frame = pl.DataFrame(found, schema=PAIRS_SCHEMA, orient="row")
    if max_per_target is not None:
        by_gap = frame.sort(pl.col("rejected_gain") - pl.col("chosen_gain"), *GROUP)
        kept = by_gap.filter(pl.int_range(pl.len()).over("target_id") < max_per_target).sort(GROUP)
        left_out["target_cap"] = len(frame) - len(kept)
        frame = kept
    return Pairs(frame, left_out)


def _check(paths: pl.DataFrame) -> None:
    others = sorted(set(paths["ranker"].drop_nulls()) - {RANKER})
    if others:
        raise UsageError(
            f"the paths were ranked by {', '.join(others)}, expected {RANKER}: where the item is written it is part "
            f"of what is good or bad about a path, and pairs hold reasonings alone"
        )
    twice = int(paths.select(KEY).is_duplicated().sum())
    if twice:
        raise UsageError(
            f"{twice} of {len(paths)} paths share {', '.join(KEY)} with another, expected one each: leave out paths "
            f"that came twice, or name policies apart"
        )


def _gains(paths: pl.DataFrame, marker_id: int, gain: PairGain, n_items: int | None) -> pl.Series:
    """The gain of each path, 0 where it does not parse.

    Raises:
        ValueError: a path that parses has no rank, or `log` lacks the catalog's size.
    """
    marked = paths["token_ids"].list.contains(marker_id).fill_null(False)
    n_unranked = int((marked & paths["rank"].is_null()).sum())
    if n_unranked:
        raise UsageError(
            f"{n_unranked} of {len(paths)} paths have no rank, expected one for each: rank the paths first"
        )
    ranks = paths["rank"].cast(pl.Float64).fill_null(1.0).to_numpy()
    if gain == "log":
        if n_items is None:
            raise UsageError("the gain log needs n_items, the size of the catalog")
        gains = log_gain(ranks, n_items)
    else:
        gains = {"ndcg": ndcg, "mrr": mrr}[gain](ranks)
    return pl.Series("gain", np.where(marked.to_numpy(), gains, 0.0), dtype=pl.Float64)


def _up_to(marker_id: int) -> pl.Expr:
    """Token ids as far as the first marker, the marker included: what the ranker read."""
    ids = pl.col("token_ids")
    place = ids.list.eval(pl.element() == marker_id).list.arg_max()
    return pl.when(ids.list.contains(marker_id)).then(ids.list.head(place + 1)).otherwise(ids)


def _pair(group: pl.DataFrame, least_gap: float) -> dict[str, object] | str:
    """The pair of a group whose rows go by the sample index, or why there is none."""
    rows = group.to_dicts()
    marked = [row for row in rows if row["marked"]]
    if len(rows) < 2:
        return "one_path"
    if not marked:
        return "no_marker"
    best = max(marked, key=lambda row: row["gain"])  # of equal ones the first
    if best["gain"] - min(row["gain"] for row in rows) < least_gap:
        return "small_gap"
    # A text that came twice may have two ranks, by float noise: it is no preference over itself.
    others = (row for row in rows if row["ids"] != best["ids"])
    worst = min(others, key=lambda row: row["gain"], default=None)
    if worst is None or best["gain"] - worst["gain"] < least_gap:
        return "same_completion"
    return {
        **{name: best[name] for name in ("example_id", "policy", "prompt", "target_id")},
        "chosen": best["completion"],
        "chosen_ids": best["ids"],
        "chosen_gain": best["gain"],
        "rejected": worst["completion"],
        "rejected_ids": worst["ids"],
        "rejected_gain": worst["gain"],
    }
