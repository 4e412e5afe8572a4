"""Cleaning: every defect of a log has one defined outcome, counted in the report.

Report keys, each a number of events unless said otherwise:

| key | what happened |
|---|---|
| `events_read`, `events` | rows in the file, and those kept |
| `users`, `items` | users and items kept (items: all of the item file) |
| `null_key` | dropped: user, item or timestamp empty, NaN, or written as NA, None or null |
| `unknown_item` | dropped: the item is not in the item file |
| `duplicate_events` | dropped: the same user, item and exact time again (the first is kept) |
| `unsorted_events` | moved: stood after a later event of the same user |
| `milliseconds` | 1 if the unit of the timestamps is finer than a second: they are converted, and lose nothing |
| `single_event_users` | users with one event: kept (they count for popularity), but give no example with a history |
| `null_item_id`, `duplicate_items` | rows of the item file dropped (the first of a duplicate is kept) |
| `list_titles` | items with a list or an object in place of a title: its texts are joined by commas |
| `empty_titles` | items without a title: the id stands in |
| `cleaned_titles` | items whose title changed: markup, line breaks, control characters, the marker |
| `truncated_titles` | items whose title was cut to `max_title_chars` |
| `colliding_titles` | items with a title that an earlier item has; kept, since identity is by id |
| `given_rows`, `given_dropped` | pre-made examples kept, and dropped (empty key, or unknown target) |
| `given_history_dropped` | entries of their histories dropped (unknown item) |
| `latin1_files`, `timestamps_from_row_order` | from the reader: files read as latin-1, rows without a timestamp |
"""

import ast
import functools
import json
from contextlib import suppress
from typing import Any

import polars as pl

from anyo_rl.data.schema import (
    FRACTION,
    HISTORY,
    ITEM_ID,
    RATING,
    TARGET_ID,
    TIMESTAMP,
    TITLE,
    USER_ID,
    DataError,
    Interactions,
)
from anyo_rl.data.tables import NULLS, Source, collect, column_names, reading
from anyo_rl.data.text import MAX_TITLE_CHARS, clean_text, truncate_text
from anyo_rl.data.times import moment, read_time, to_seconds

_LARGEST_EXACT_FLOAT = 2**53
_ID_HINT = "text or a whole number, without tabs or line breaks"
_REPORT_KEYS = (
    "events_read",
    "events",
    "users",
    "items",
    "null_key",
    "unknown_item",
    "duplicate_events",
    "unsorted_events",
    "milliseconds",
    "single_event_users",
    "null_item_id",
    "duplicate_items",
    "list_titles",
    "empty_titles",
    "cleaned_titles",
    "truncated_titles",
    "colliding_titles",
    "given_rows",
    "given_dropped",
    "given_history_dropped",
    "latin1_files",
    "timestamps_from_row_order",
)


def clean_source(source: Source, name: str, max_title_chars: int = MAX_TITLE_CHARS) -> Interactions:
    """Turn a log as found into a validated one; the module's docstring says what happens to each defect.

    Raises:
        DataError: for an empty log, a number that cannot be parsed, an id that is a fraction, timestamps of mixed
            units, or a log none of whose events is usable.
    """
    report = dict.fromkeys(_REPORT_KEYS, 0) | source.notes
    items = _clean_items(source, max_title_chars, report)
    frame = _clean_events(source, items, report)
    given = None if source.given is None else _clean_given(source, items, report)
    report["users"], report["items"] = frame[USER_ID].n_unique(), len(items)
    report["events"] = len(frame)
    return Interactions(frame, items, report, name, given)


def _id(name: str, dtype: pl.DataType) -> tuple[pl.Expr, pl.Expr]:
    """The id as text (null for an empty one), and whether it cannot be one: 1.5, 1e20, or several lines."""
    column = pl.col(name)
    bad = pl.lit(False)
    if dtype.is_float():  # a data frame with a missing id turns the others into floats
        bad = column.is_not_nan() & ((column != column.floor()) | (column.abs() > _LARGEST_EXACT_FLOAT))
        column = column.cast(pl.Int64, strict=False)
    column = column.cast(pl.String).str.strip_chars()
    # A quote that is not closed swallows what follows, up to the next one.
    bad = bad.fill_null(False) | column.str.contains(r"[\t\r\n]").fill_null(False)
    return pl.when(column.is_in(NULLS)).then(None).otherwise(column).alias(name), bad


def _number(name: str, dtype: pl.DataType) -> tuple[pl.Expr, pl.Expr]:
    """The parsed number (null for NaN), and whether it could not be parsed."""
    column = pl.col(name)
    missing = column.is_null()
    if dtype == pl.String:
        column = column.str.strip_chars()
        missing = column.is_null() | column.is_in(NULLS)
    number = column.cast(pl.Float64, strict=False)
    bad = (number.is_null() | number.is_infinite()) & missing.not_()
    return pl.when(missing | number.is_nan()).then(None).otherwise(number).alias(name), bad.fill_null(True)


def _parse(table: pl.LazyFrame, source: Source, ids: tuple[str, ...]) -> pl.DataFrame:
    """Ids, time (`timestamp` and `fraction`, see `read_time`) and perhaps the rating; other columns as they are."""
    with reading(source.path):
        schema = table.collect_schema()
    for name in (*ids, TIMESTAMP, RATING):
        if name in schema and not (_is_text_like(schema[name]) or schema[name] == pl.Binary):
            raise DataError(
                f"{source.path}: the column for {name} is {schema[name]}, expected text or numbers: convert the column"
            )
    parsed = {name: _id(name, schema[name]) for name in ids}
    if RATING in schema:
        parsed[RATING] = _number(RATING, schema[RATING])
    time = read_time(TIMESTAMP, schema[TIMESTAMP])
    wrong = {name: bad for name, (_, bad) in parsed.items()} | {TIMESTAMP: time.bad}
    rest = [name for name in schema.names() if name not in wrong]
    frame = collect(
        table.select(
            *(value for value, _ in parsed.values()),
            time.whole,
            time.part,
            *(bad.alias(f"bad {name}") for name, bad in wrong.items()),
            *rest,
        ),
        source.path,
    )
    for name, bad in wrong.items():
        if n_bad := int(frame[f"bad {name}"].sum()):
            value = collect(table.filter(bad).select(name).head(1), source.path).item()
            hint = _ID_HINT if name in ids else "a number"
            hint = "seconds or milliseconds since 1970" if name == TIMESTAMP else hint
            raise DataError(
                f"{source.path}: found {value!r} as {name} ({n_bad} of {len(frame)} rows), expected {hint}: convert "
                "the column, or remove the rows"
            )
    return frame.drop(f"bad {name}" for name in wrong)


def _clean_events(source: Source, items: pl.DataFrame, report: dict[str, int]) -> pl.DataFrame:
    events = source.events
    rated = RATING in column_names(events, source.path)
    frame = _parse(events, source, (USER_ID, ITEM_ID))
    report["events_read"] = len(frame)
    if frame.is_empty():
        raise DataError(f"{source.path}: found no events, expected at least one row below the header: check the file")
    if rated:
        frame = frame.with_columns(pl.col(RATING).cast(pl.Float32))
    kept = frame.drop_nulls([USER_ID, ITEM_ID, TIMESTAMP])
    report["null_key"] = len(frame) - len(kept)
    if kept.is_empty():
        raise DataError(
            f"{source.path}: found no event with user, item and timestamp ({len(frame)} rows): check the columns"
        )
    # Integers in place of text from here: 20 million rows sort and compare in seconds.
    users = kept[USER_ID].unique().sort()
    examples = kept[ITEM_ID].head(3).to_list()
    frame = kept.drop(FRACTION).with_columns(
        pl.col(USER_ID).cast(pl.Enum(users)),
        pl.col(ITEM_ID).cast(pl.Enum(items[ITEM_ID]), strict=False),
        *to_seconds(kept.select(TIMESTAMP, FRACTION), source.path, report),
    )
    time = moment(frame)
    kept = frame.drop_nulls(ITEM_ID)
    report["unknown_item"] = len(frame) - len(kept)
    if kept.is_empty():
        raise DataError(
            f"{source.path}: none of its items is in the item file: found ids like {examples}, expected ids like "
            f"{items[ITEM_ID].head(3).to_list()}: check that both files name items the same way"
        )
    row = "row"
    frame = kept.with_row_index(row).sort(USER_ID, *time, row)
    same_user = pl.col(USER_ID) == pl.col(USER_ID).shift(1)
    report["unsorted_events"] = int(frame.select((same_user & (pl.col(row) < pl.col(row).shift(1))).sum()).item())
    # A duplicate stands in a run of the same user and time; only those runs need comparing.
    same_moment = pl.all_horizontal(same_user, *(pl.col(name) == pl.col(name).shift(1) for name in time))
    tied = (same_moment | same_moment.shift(-1)).fill_null(False)
    ties = frame.filter(tied)
    repeats = ties.filter(pl.struct(pl.col(USER_ID, ITEM_ID).to_physical(), *time).is_first_distinct().not_())[row]
    if len(repeats):
        frame = frame.filter(pl.col(row).is_in(repeats.implode()).not_())
    report["duplicate_events"] = len(repeats)
    report["single_event_users"] = int((frame[USER_ID].value_counts()["count"] == 1).sum())
    return frame.select(pl.col(USER_ID, ITEM_ID).cast(pl.String), *time, *([RATING] if rated else []))


def _clean_items(source: Source, max_chars: int, report: dict[str, int]) -> pl.DataFrame:
    raw, path = source.items, source.items_path
    nested = raw.schema[TITLE].is_nested()
    for name in (ITEM_ID,) if nested else (ITEM_ID, TITLE):
        if not _is_text_like(raw.schema[name]):
            raise DataError(f"{path}: the column for {name} is {raw.schema[name]}, expected text: convert the column")
    item_id, bad = _id(ITEM_ID, raw.schema[ITEM_ID])
    # A column first: polars with several threads cannot filter a large table by a literal.
    if len(wrong := raw.select(ITEM_ID, bad.alias("bad")).filter("bad")):
        raise DataError(
            f"{path}: found {wrong[ITEM_ID][0]!r} as {ITEM_ID} ({len(wrong)} of {len(raw)} rows), expected "
            f"{_ID_HINT}: convert the column, or remove the rows"
        )
    title = pl.col(TITLE) if nested else pl.col(TITLE).cast(pl.String)
    items = raw.with_columns(item_id, title)
    kept = items.drop_nulls(ITEM_ID)
    report["null_item_id"] = len(items) - len(kept)
    items = kept.unique(ITEM_ID, keep="first", maintain_order=True)
    report["duplicate_items"] = len(kept) - len(items)
    if items.is_empty():
        raise DataError(f"{path}: found no items in the item file, expected at least one with an id")
    joined = [_joined(title) for title in items[TITLE].to_list()]
    report["list_titles"] = sum(is_list for _, is_list in joined)
    folded = [title.strip() for title, _ in joined]
    full = [clean_text(title, max_chars=None) for title in folded]
    titles = [truncate_text(title, max_chars) for title in full]
    report["cleaned_titles"] = sum(old != new for old, new in zip(folded, full, strict=True))
    report["truncated_titles"] = sum(old != new for old, new in zip(full, titles, strict=True))
    empty = [not title or title.lower() == "nan" for title in titles]
    report["empty_titles"] = sum(empty)
    # An id may carry control characters too.
    named = zip(titles, empty, items[ITEM_ID].to_list(), strict=True)
    titles = [(clean_text(item_id, max_chars) or "?") if bare else title for title, bare, item_id in named]
    report["colliding_titles"] = len(titles) - len(set(titles))
    attributes = [_clean_attribute(items[name]) for name in items.columns if name not in (ITEM_ID, TITLE)]
    columns = [items[ITEM_ID], pl.Series(TITLE, titles, dtype=pl.String)]
    return pl.DataFrame(columns + [attribute for attribute in attributes if attribute is not None])


def _joined(title: Any) -> tuple[str, bool]:
    """A title as text, and whether it was a list or an object, as such or written as JSON or Python writes it."""
    value = title
    if isinstance(title, str) and title.strip()[:1] in ("[", "{"):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = json.loads(title)
        if value is title:
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
                value = ast.literal_eval(title.strip())
    if isinstance(value, list | dict):
        return ", ".join(_texts(value)), True
    return title or "", False


def _texts(value: Any) -> list[str]:
    """The texts and numbers in nested lists and objects, in their order."""
    if isinstance(value, list | dict):
        return [text for entry in (value.values() if isinstance(value, dict) else value) for text in _texts(entry)]
    return [str(value)] if isinstance(value, str | int | float) else []


def _clean_attribute(values: pl.Series) -> pl.Series | None:
    """Text and lists of text, sanitised as titles are; numbers and dates become text; all else is left out."""
    clean = functools.cache(clean_text)  # a brand or a genre stands on many items
    if isinstance(values.dtype, pl.List) and values.dtype.inner == pl.String:
        lists = [[text for text in map(clean, filter(None, row or [])) if text] for row in values.to_list()]
        return pl.Series(values.name, lists, dtype=pl.List(pl.String))
    if not _is_text_like(values.dtype):
        return None
    texts = [clean(text) or None if text is not None else None for text in values.cast(pl.String).to_list()]
    return pl.Series(values.name, texts, dtype=pl.String)


def _is_text_like(dtype: pl.DataType) -> bool:
    """Whether a value is one plain text: text, numbers, truth values, dates (or a column without values)."""
    return (
        dtype in (pl.String, pl.Categorical, pl.Enum, pl.Boolean, pl.Date, pl.Datetime, pl.Null) or dtype.is_numeric()
    )


def _clean_given(source: Source, items: pl.DataFrame, report: dict[str, int]) -> pl.DataFrame:
    assert source.given is not None
    raw = source.given
    given = _parse(raw.lazy(), source, (USER_ID, TARGET_ID))
    known = pl.col(TARGET_ID).is_in(items[ITEM_ID].implode())
    given = given.drop_nulls([USER_ID, TARGET_ID, TIMESTAMP]).filter(known)
    if given.is_empty():
        raise DataError(f"{source.path}: no pre-made example has a target in the item file: check that ids agree")
    report["given_rows"], report["given_dropped"] = len(given), len(raw) - len(given)
    before = int(given[HISTORY].list.len().sum())
    element = pl.element()
    given = given.drop(FRACTION).with_columns(
        pl.col(HISTORY).list.eval(element.filter(element.is_in(items[ITEM_ID].implode()))),
        *to_seconds(given.select(TIMESTAMP, FRACTION), source.path, dict(report)),
    )
    report["given_history_dropped"] = before - int(given[HISTORY].list.len().sum())
    return given
