"""Examples from a log: leave-one-out, global time, held-out users, or pre-made; k-core; cold-item and cold-user masks.

Every event belongs to one part (train, validation, test); some events are targets. The history of a target is what the
same user did before it, in whichever part. Everything is vectorised: the frame is sorted by user and time, so a user
is a run of rows and a history a slice of them.
"""

import dataclasses
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from anyo_rl.data.schema import (
    COLD_ITEM,
    COLD_USER,
    EXAMPLE_ID,
    EXAMPLES_SCHEMA,
    HISTORY,
    ITEM_ID,
    SPLIT,
    SPLITS,
    TARGET_ID,
    TIMESTAMP,
    TRAIN,
    USER_ID,
    DataError,
    Interactions,
)
from anyo_rl.data.times import moment

Method = Literal["leave_one_out", "global_time", "users", "given"]
_TRAIN, _VALIDATION, _TEST = range(3)


def k_core(interactions: Interactions, k: int) -> Interactions:
    """Keep the users and items with at least `k` events each, repeated until nothing changes.

    The item table keeps the remaining items only. Pre-made examples are dropped: they belong to the whole log. The
    report gains `k_core_dropped_events`, `k_core_dropped_users`, `k_core_dropped_items` (of the item table) and
    `k_core_dropped_given` (pre-made examples).

    Raises:
        DataError: if nothing is left.
    """
    frame = interactions.frame
    items, users = pl.Enum(interactions.items[ITEM_ID]), pl.Enum(frame[USER_ID].unique())
    coded = frame.select(pl.col(USER_ID).cast(users), pl.col(ITEM_ID).cast(items)).with_row_index("row")
    while True:
        kept = coded.filter(pl.len().over(USER_ID) >= k).filter(pl.len().over(ITEM_ID) >= k)
        if len(kept) == len(coded):
            break
        coded = kept
    if coded.is_empty():
        raise DataError(f"{interactions.name}: nothing is left of {len(frame)} events in the {k}-core: lower k")
    frame = frame[coded["row"]]
    left = interactions.items.filter(pl.col(ITEM_ID).is_in(frame[ITEM_ID].unique().implode()))
    report = interactions.report | {
        "k_core_dropped_events": len(interactions.frame) - len(frame),
        "k_core_dropped_users": interactions.frame[USER_ID].n_unique() - frame[USER_ID].n_unique(),
        "k_core_dropped_items": len(interactions.items) - len(left),
        "k_core_dropped_given": 0 if interactions.given is None else len(interactions.given),
        "events": len(frame),
        "users": frame[USER_ID].n_unique(),
        "items": len(left),
    }
    return dataclasses.replace(interactions, frame=frame, items=left, report=report, given=None)


def make_examples(
    interactions: Interactions,
    method: Method = "leave_one_out",
    ratios: tuple[float, float, float] = (8, 1, 1),
    min_history: int = 1,
    max_history: int = 50,
    train_targets: Literal["all", "last"] | int = "all",
    seed: int = 0,
) -> pl.DataFrame:
    """Make the examples of a log.

    - `leave_one_out`: a user's last event is the test target, the one before it the validation target, earlier ones
      are train targets. Time leaks between users: one user's train target may be later than another's test target.
    - `global_time`: events are cut at two moments, by `ratios` of their number; events at a cut's very moment go to
      the earlier part. No train target is later than a validation target, nor that later than a test target.
    - `users`: whole users are train, validation or test, at random by `seed`. Train users give all their targets, the
      others only their last event.
    - `given`: the pre-made examples, their histories exactly as they are (`min_history` and `max_history` do not
      apply), in the published order.

    A user with too few events for a target gives none. 20 million events fit with `train_targets="last"` or a small
    number; with "all", each event carries its history (16 bytes an entry).

    Args:
        interactions: the log.
        method: see above.
        ratios: train, validation, test: parts of the events (`global_time`) or of the users (`users`).
        min_history: a target needs this many earlier events of its user; 0 allows targets without history.
        max_history: at most this many newest events in a history.
        train_targets: "all", "last", or at most this many latest train targets of each user. The cold masks look at
            all train events, whatever is chosen here.
        seed: for `users`.

    Returns:
        The examples frame: `example_id` (`user:position`, 0-based among the user's events; for `given` among the
        user's rows), `user_id`, `history` (oldest first), `target_id`, `timestamp` (of the target, seconds), `split`,
        `cold_item` (the target has no train event) and `cold_user` (the user has no train event); sorted by user and
        position, except `given`.

    Raises:
        DataError: if the log gives no example, or has no pre-made ones for `given`.
        ValueError: for an argument out of its range.
    """
    keep = (
        {"all": None, "last": 1}.get(train_targets, train_targets) if isinstance(train_targets, str) else train_targets
    )
    if isinstance(keep, str) or (keep is not None and keep < 1):
        raise ValueError(f"train_targets is {train_targets!r}: expected 'all', 'last' or a number of at least 1")
    if min_history < 0 or max_history < 1:
        raise ValueError(f"min_history is {min_history}, max_history {max_history}: expected at least 0 and 1")
    if len(ratios) != 3 or min(ratios) < 0 or ratios[0] <= 0:
        raise ValueError(f"ratios are {ratios}: expected three numbers, none negative, the first above 0")
    if method == "given":
        return _given_examples(interactions, keep)
    frame = interactions.frame
    starts, lengths = _user_runs(frame)
    users = np.repeat(np.arange(len(starts)), lengths)
    position = np.arange(len(frame)) - starts[users]
    part = _parts(frame, starts, lengths, method, ratios, seed)
    target = position >= min_history
    if method == "users":
        target &= (part == _TRAIN) | (position == lengths[users] - 1)
    in_train = part == _TRAIN
    if keep is not None:
        # How many train targets of the same user come after this row.
        counts = np.cumsum(target & in_train)
        later = counts[(starts + lengths - 1)[users]] - counts
        target &= ~in_train | (later < keep)
    rows = np.flatnonzero(target)
    if not len(rows):
        raise DataError(
            f"{interactions.name}: no user has an event with {min_history} earlier ones ({len(frame)} events of "
            f"{len(starts)} users): lower min_history, or check that user ids repeat"
        )
    train_items = frame[ITEM_ID].filter(pl.Series(in_train)).unique()
    seen_user = np.bincount(users, weights=in_train, minlength=len(starts)) > 0
    examples = frame[rows].select(USER_ID, pl.col(ITEM_ID).alias(TARGET_ID), TIMESTAMP)
    return examples.with_columns(
        pl.concat_str(USER_ID, pl.Series(position[rows]), separator=":").alias(EXAMPLE_ID),
        _histories(frame[ITEM_ID], rows, starts[users[rows]], max_history),
        pl.Series(SPLIT, np.array(SPLITS)[part[rows]]),
        pl.col(TARGET_ID).is_in(train_items.implode()).not_().alias(COLD_ITEM),
        pl.Series(COLD_USER, ~seen_user[users[rows]]),
    ).select(list(EXAMPLES_SCHEMA))


def train_events(
    interactions: Interactions, method: Method, ratios: tuple[float, float, float] = (8, 1, 1), seed: int = 0
) -> np.ndarray:
    """Which events of the log are train events, by the rules of `make_examples`: (E,) bool, in the frame's order.

    Events too early to be a train target are among them. Pre-made examples (`given`) have no events behind them.

    Raises:
        ValueError: for an unknown method, or `given`.
    """
    frame = interactions.frame
    return _parts(frame, *_user_runs(frame), method, ratios, seed) == _TRAIN


def _parts(
    frame: pl.DataFrame,
    starts: np.ndarray,
    lengths: np.ndarray,
    method: Method,
    ratios: tuple[float, float, float],
    seed: int,
) -> np.ndarray:
    """The part of each event: _TRAIN, _VALIDATION or _TEST."""
    users = np.repeat(np.arange(len(starts)), lengths)
    if method == "leave_one_out":
        left = (starts + lengths)[users] - np.arange(len(frame)) - 1
        return np.select([left == 0, left == 1], [_TEST, _VALIDATION], _TRAIN)
    if method == "global_time":
        return _time_parts(frame, ratios)
    if method == "users":
        return _user_parts(len(starts), ratios, seed)[users]
    raise ValueError(f"method is {method!r}: expected 'leave_one_out', 'global_time' or 'users' (or 'given' examples)")


def _user_runs(frame: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """First row and number of rows of each user."""
    changes = frame.select((pl.col(USER_ID) != pl.col(USER_ID).shift(1)).fill_null(True))[USER_ID]
    starts = changes.arg_true().to_numpy().astype(np.int64)
    return starts, np.diff(np.append(starts, len(frame)))


def _histories(items: pl.Series, rows: np.ndarray, starts: np.ndarray, max_history: int) -> pl.Series:
    """For each row, the items of at most `max_history` rows before it, not before its start."""
    first = np.maximum(starts, rows - max_history)
    lengths = rows - first
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    index = np.repeat((first - offsets[:-1]), lengths)
    index += np.arange(offsets[-1])
    values = items.gather(pl.Series(index, dtype=pl.UInt32)).to_arrow(compat_level=pl.CompatLevel.newest())
    lists = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), values)
    return pl.Series(HISTORY, pl.from_arrow(lists), dtype=pl.List(pl.String))


def _time_parts(frame: pl.DataFrame, ratios: tuple[float, float, float]) -> np.ndarray:
    exact = moment(frame)
    times = frame.select(exact[0] if len(exact) == 1 else pl.struct(exact).rank("dense")).to_series().to_numpy()
    ordered = np.sort(times)
    shares = np.cumsum(ratios)[:2] / sum(ratios)
    # The last event of each part; a tie with it belongs to the same part.
    last = np.maximum(np.ceil(shares * len(ordered) - 1e-9).astype(np.int64), 1) - 1
    return np.searchsorted(ordered[last], times, side="left").astype(np.int8)


def _user_parts(n_users: int, ratios: tuple[float, float, float], seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(n_users)
    n_held = [max(round(n_users * ratio / sum(ratios)), 1) if ratio else 0 for ratio in ratios[1:]]
    if sum(n_held) >= n_users:
        raise DataError(f"found {n_users} users, expected more than {sum(n_held)} to hold some out: use leave_one_out")
    part = np.full(n_users, _TRAIN, dtype=np.int8)
    part[order[: n_held[0]]] = _VALIDATION
    part[order[n_held[0] : sum(n_held)]] = _TEST
    return part


def _given_examples(interactions: Interactions, keep: int | None) -> pl.DataFrame:
    given = interactions.given
    if dropped := interactions.report.get("k_core_dropped_given"):
        raise DataError(
            f"{interactions.name}: k_core dropped its {dropped} pre-made examples, which belong to the whole log: "
            "leave k_core out, or use method leave_one_out or global_time"
        )
    if given is None:
        raise DataError(
            f"{interactions.name}: has no pre-made examples, expected train.csv, valid.csv and test.csv with "
            "histories: use method leave_one_out or global_time"
        )
    train = given.filter(pl.col(SPLIT) == TRAIN)
    seen_items = pl.concat([train[TARGET_ID], train[HISTORY].explode().drop_nulls()]).unique()
    position = pl.int_range(pl.len()).over(USER_ID)
    given = given.with_columns(
        pl.concat_str(USER_ID, position, separator=":").alias(EXAMPLE_ID),
        pl.col(TARGET_ID).is_in(seen_items.implode()).not_().alias(COLD_ITEM),
        pl.col(USER_ID).is_in(train[USER_ID].unique().implode()).not_().alias(COLD_USER),
    )
    if keep is not None:
        row = "row"
        newest_first = given.with_row_index(row).sort(*moment(given), row, descending=True)
        later = pl.int_range(pl.len()).over(USER_ID, SPLIT)
        given = given[newest_first.filter((pl.col(SPLIT) != TRAIN) | (later < keep))[row].sort()]
    return given.select(list(EXAMPLES_SCHEMA))
