"""`profile`: what a user is like in words, written once from the events that lie further back, and kept.

    What the user chose before:
    most: tea 12 of 30, oak 9, mug 5
    of late: mug 4 of 10, glass 3

The newest `window` events are left to the history. The profile covers what lies before them, as far as a multiple
of `every` events goes: a profile is written again when that many have been added, and stays as it is in between. Kept
profiles are a parquet table in the run folder, one row for each user and hash of what it was written from; only what
is not there is written, by templates of attributes here.
"""

import hashlib
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import polars as pl

from anyo_rl.data.schema import USER_ID
from anyo_rl.reasoning.kinds.kind import Asked, Kind
from anyo_rl.reasoning.prompts import Section
from anyo_rl.run.files import read_table, write_table
from anyo_rl.run.settings import Bounds, UsageError, check_bounds

HEADER, TAG = "What the user chose before:", "profile"
FILE = "profiles.parquet"
HASH, LINES, N_EVENTS, WRITER = "history_hash", "lines", "n_events", "writer"
SCHEMA = {
    USER_ID: pl.String(),
    HASH: pl.String(),
    N_EVENTS: pl.Int64(),
    LINES: pl.List(pl.String()),
    WRITER: pl.String(),
}
TEMPLATES = "attributes"
BOUNDS = {
    "tokens": Bounds(1, 10**6),
    "window": Bounds(1, 10**6),
    "every": Bounds(1, 10**6),
    "most": Bounds(1, 10**4),
}
logger = logging.getLogger(__name__)
Key = tuple[str, str]  # user, and hash of what a profile was written from


def profile(tokens: int = 64, window: int = 10, every: int = 10, most: int = 5, table: str | None = None) -> Kind:
    """Makes the kind.

    Args:
        tokens: budget of a profile's lines.
        window: newest events, which the history shows.
        every: events after which a profile is written again.
        most: attributes that a line of a template names.
        table: profiles that somebody else wrote, by their keys, in place of templates (docs/kinds.md).

    Raises:
        UsageError: a number is out of its range, or the table is none.
    """
    told = SimpleNamespace(tokens=tokens, window=window, every=every, most=most)
    check_bounds(told, BOUNDS, "kind_settings of profile: ")
    known: dict[Key, tuple[str, ...]] = {} if table is None else read_profiles(Path(table))

    def prepare(folder: Path, examples: Sequence[Asked]) -> None:
        if table is None:
            known.update(keep_profiles(folder / FILE, examples, told))
        else:
            check_profiles(table, known, [(one.user_id, told_events(one.past, window, every)) for one in examples])

    def show(asked: Asked) -> list[Section]:
        events = told_events(asked.past, window, every)
        lines = known.get(key_of(asked.user_id, events))
        if lines is None:
            lines = template(events, asked.sources.attributes, most, window) if table is None else ()
        return [Section(HEADER, TAG, lines, tokens)] if events else []

    return Kind("profile", show=show, prepare=prepare)


def told_events(past: Sequence[str], window: int, every: int) -> tuple[str, ...]:
    """The events that a profile is written from: all but the newest `window`, down to a multiple of `every`.

    >>> told_events("abcdefghij", 3, 2)
    ('a', 'b', 'c', 'd', 'e', 'f')
    """
    return tuple(past[: max(0, len(past) - window) // every * every])


def key_of(user_id: str, events: Sequence[str]) -> Key:
    """By what a profile is kept."""
    return user_id, hashlib.sha256("\0".join(events).encode()).hexdigest()[:16]


def template(
    events: Sequence[str], attributes: Mapping[str, tuple[str, ...]], most: int, recent: int
) -> tuple[str, ...]:
    """A profile of attributes: how often the commonest come, and of the last `recent` events once more.

    Values are counted once for an event; of equal ones the latest comes first.

    >>> template("aab", {"a": ("tea", "oak"), "b": ("tea",)}, most=2, recent=1)
    ('most: tea 3 of 3, oak 2', 'of late: tea 1 of 1')
    """
    lines = []
    for name, some in (("most", events), ("of late", events[-recent:])):
        counts = Counter(value for item in reversed(some) for value in attributes[item])
        if told := [f"{value} {count}" for value, count in counts.most_common(most)]:
            lines.append(f"{name}: {', '.join([f'{told[0]} of {len(some)}', *told[1:]])}")
    return tuple(lines)


def kept_profiles(file: Path) -> pl.DataFrame:
    """The table as it is; without rows where there is none yet."""
    return read_table(file) if file.is_file() else pl.DataFrame(schema=SCHEMA)


def read_profiles(file: Path) -> dict[Key, tuple[str, ...]]:
    """Profiles by their keys.

    Raises:
        UsageError: there is no such table, or it is damaged.
    """
    if not file.is_file():
        raise UsageError(f"found no profiles at {file}: expected a parquet table with {', '.join(SCHEMA)}")
    rows = read_table(file, [USER_ID, HASH, LINES]).iter_rows()
    return {(user, told): tuple(lines or ()) for user, told, lines in rows}


def check_profiles(
    table: str, known: Mapping[Key, tuple[str, ...]], wanted: Sequence[tuple[str, tuple[str, ...]]]
) -> None:
    """Says how many examples go without a profile.

    Raises:
        UsageError: all do: the table is of other data, or was written with another `window` or `every`.
    """
    needed = [key_of(user, events) for user, events in wanted if events]
    missing = sum(key not in known for key in needed)
    if needed and missing == len(needed):
        raise UsageError(
            f"{table} has no profile of any example: expected one of the same data, written with the same window and "
            "every"
        )
    if missing:
        logger.warning("%s has no profile for %d of %d examples", table, missing, len(needed))


def keep_profiles(file: Path, examples: Sequence[Asked], settings: SimpleNamespace) -> dict[Key, tuple[str, ...]]:
    """Writes the profiles that are not there yet by templates, beside those that are; gives all.

    Args:
        file: the table.
        examples: whose users are to have one.
        settings: of the kind: `window`, `every`, `most`.

    Raises:
        UsageError: the table is damaged.
    """
    kept = kept_profiles(file)
    there = set(kept.select(USER_ID, HASH).iter_rows())
    written: dict[Key, tuple[str, str, int, list[str], str]] = {}
    for asked in examples:
        events = told_events(asked.past, settings.window, settings.every)
        key = key_of(asked.user_id, events)
        if events and key not in there and key not in written:
            lines = template(events, asked.sources.attributes, settings.most, settings.window)
            written[key] = (*key, len(events), list(lines), TEMPLATES)
    if written:
        kept = pl.concat([kept, pl.DataFrame(list(written.values()), schema=SCHEMA, orient="row")])
        # Several processes may share a folder; all write the same.
        write_table(kept, file, partial=file.with_name(f".{FILE}.{os.getpid()}.partial"))
    return read_profiles(file) if len(kept) else {}
