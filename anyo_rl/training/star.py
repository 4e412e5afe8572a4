"""STaR (Zelikman et al., 2022): which sampled paths a teacher is trained on next. Tables in, tables and counts out.

Departures from the paper: a path is kept for its gain and not for a right answer, since recommendation has many near
misses; several paths of an example may stay; and popular targets, on which paths succeed most often, can be held down.
Where a wrong reasoning reaches the target easily, steps on which an example's paths agree are more often right than
those that one path has (self-consistency, Wang et al. 2022, arXiv 2203.11171): `least_agreement` asks for that.
A hinted path (*rationalisation*) is ranked without its hint, so that the answer has to follow from the reasoning.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from anyo_rl.data.completion import MARKER
from anyo_rl.metrics.gains import ndcg
from anyo_rl.reasoning.rationales.filters import FilterArguments, names_target
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.seeds import request_seed

REASONS = ("unfinished", "leak", "below", "evidence", "alone", "duplicate", "over_example", "over_item")

GOOD = ("duplicate", "over_example", "over_item")  # good enough, and left out for another's sake


@dataclass(frozen=True)
class Kept:
    """What is left of sampled paths.

    Attributes:
        paths: the rows of the paths table that are kept.
        reached: ids of the examples with a path that is good enough, kept or not.
        counts: `sampled`, the paths left out by each of `REASONS` (the first that applies), `kept`, and the
            `examples` and `examples_kept`.
    """

    paths: pl.DataFrame
    reached: list[str]
    counts: dict[str, int]


@dataclass(frozen=True)
class Beyond:
    """A least gain that also asks for something beyond the evidence.

    Attributes:
        least_gain: NDCG of the target's rank, in [0, 1].
        least: what a path's gain has to be above that of the evidence, at least.
        gains: example id → NDCG of the target's rank by the evidence alone.
    """

    least_gain: float
    least: float
    gains: Mapping[str, float]


def keep_paths(
    paths: pl.DataFrame,
    *,
    least_gain: float | Beyond,
    most_per_example: int,
    most_per_item: int = 0,
    least_agreement: int = 1,
    hinted: bool = False,
    seed: int = 0,
) -> Kept:
    """Chooses the paths to train on.

    Left out is, in this order: a reasoning without a step or a marker (`unfinished`); of hinted paths one that names
    the target (`leak`); a gain below the threshold (`below`), or not far enough above what evidence gains by itself
    (`evidence`); steps that too few good paths of the example have (`alone`); the same steps as another path of the
    example (`duplicate`); what is not among the best of its example (`over_example`); what is not among the best of
    its target (`over_item`: each example's first path comes before any second one, examples in an order drawn by the
    seed).

    Args:
        paths: rows of the paths table.
        least_gain: NDCG of the target's rank, in [0, 1]; with evidence a `Beyond`.
        most_per_example: most paths of an example, those of the highest gain; equal ones by sample index.
        most_per_item: most paths of a target item; 0 for no limit.
        least_agreement: paths of an example, good enough, that have the same steps; at least 1.
        hinted: whether the target was shown while sampling.
        seed: of the order of examples under `most_per_item`.

    Raises:
        ValueError: a setting is out of its range.
    """
    beyond, least_gain = (least_gain, least_gain.least_gain) if isinstance(least_gain, Beyond) else (None, least_gain)
    if not 0 <= least_gain <= 1 or most_per_example < 1 or most_per_item < 0 or least_agreement < 1:
        raise UsageError(
            f"least_gain {least_gain}, most_per_example {most_per_example}, most_per_item {most_per_item}, "
            f"least_agreement {least_agreement}: expected 0 to 1, at least 1, at least 0, and at least 1"
        )
    finished = pl.col("completion").str.contains(MARKER, literal=True) & (pl.col("steps").list.len() > 0)
    frame = paths.with_columns(
        gain=pl.Series(ndcg(paths["rank"].to_numpy()), dtype=pl.Float64),
        leak=pl.Series(_is_leak(paths) if hinted else [False] * len(paths), dtype=pl.Boolean),
        text=pl.col("steps").list.join("\n"),
        turn=pl.Series([request_seed(seed, example_id) for example_id in paths["example_id"]], dtype=pl.UInt64),
    )
    reason = pl.when(~finished).then(pl.lit("unfinished")).when("leak").then(pl.lit("leak"))
    frame = frame.with_columns(reason=reason.when(pl.col("gain") < least_gain).then(pl.lit("below")))
    if beyond is not None:
        above = pl.col("gain") - pl.col("example_id").replace_strict(beyond.gains, return_dtype=pl.Float64)
        low = pl.col("reason").is_null() & (above < beyond.least)
        frame = frame.with_columns(reason=pl.when(low).then(pl.lit("evidence")).otherwise("reason"))
    good = pl.col("reason").is_null()
    alone = good & (good.sum().over("example_id", "text") < least_agreement)
    frame = frame.with_columns(reason=pl.when(alone).then(pl.lit("alone")).otherwise("reason"))
    frame = frame.sort("example_id", -pl.col("gain"), "sample_index")
    frame = _leave_out(frame, "duplicate", ["example_id", "text"], 1)
    frame = _leave_out(frame, "over_example", ["example_id"], most_per_example)
    if most_per_item:
        place = pl.col("reason").is_null().cum_sum().over("example_id")
        frame = frame.with_columns(place=place).sort("place", "turn", "example_id", maintain_order=True)
        frame = _leave_out(frame, "over_item", ["target_id"], most_per_item)
    kept = frame.filter(pl.col("reason").is_null()).sort("example_id", "sample_index").select(paths.columns)
    found = dict(frame["reason"].drop_nulls().value_counts().rows())
    counts = {"sampled": len(paths), **{name: found.get(name, 0) for name in REASONS}, "kept": len(kept)}
    counts |= {"examples": paths["example_id"].n_unique(), "examples_kept": kept["example_id"].n_unique()}
    reached = frame.filter(pl.col("reason").is_null() | pl.col("reason").is_in(GOOD))["example_id"].unique()
    return Kept(kept, sorted(reached), counts)


def diversity(paths: pl.DataFrame) -> float | None:
    """Share of an example's reasonings that differ from one another, on average over examples; `None` without any."""
    if paths.is_empty():
        return None
    shares = paths.group_by("example_id").agg(share=pl.col("steps").list.join("\n").n_unique() / pl.len())
    return float(shares["share"].mean())  # type: ignore[arg-type]


def reasonings(paths: pl.DataFrame) -> dict[str, list[tuple[str, ...]]]:
    """The steps of each path by example id, in the order of the table."""
    found: dict[str, list[tuple[str, ...]]] = {}
    for example_id, steps in paths.select("example_id", "steps").iter_rows():
        found.setdefault(example_id, []).append(tuple(steps))
    return found


def _leave_out(frame: pl.DataFrame, reason: str, by: list[str], most: int) -> pl.DataFrame:
    """Gives the reason to what is left of each group beyond its first `most` rows."""
    left = pl.col("reason").is_null()
    beyond = left & (left.cum_sum().over(by) > most)
    return frame.with_columns(reason=pl.when(beyond).then(pl.lit(reason)).otherwise("reason"))


def _is_leak(paths: pl.DataFrame) -> list[bool]:
    """Whether each path names its target, as it is counted for an LLM's rationales."""
    rows = paths.select("steps", "target_title", "history").iter_rows()
    return [names_target(steps, target, history or (), FilterArguments.leak_words) for steps, target, history in rows]
