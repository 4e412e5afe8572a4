"""RecBole, Amazon Reviews 2023, MiniOneRec and plain tables (MovieLens has a module of its own)."""

import ast
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from anyo_rl.data.movielens import film_title
from anyo_rl.data.schema import HISTORY, ITEM_ID, SPLIT, SPLITS, TARGET_ID, TIMESTAMP, TITLE, USER_ID, DataError
from anyo_rl.data.tables import (
    JSON_SUFFIXES,
    NULLS,
    PlainTable,
    Source,
    collect,
    column_names,
    pick_events,
    pick_items,
    scan_json_lines,
    scan_text_table,
    suffix,
)
from anyo_rl.data.times import read_time

# Long free text: nothing here reads it, and it would dominate the memory of an item table.
_DROPPED_ATTRIBUTES = ("description", "features", "details", "images", "videos", "reviews")
_TITLE_NAMES = (TITLE, "movie_title", "item_title", "name", "item_name")
_GENRE_NAMES = ("genres", "genre", "class")
_YEAR_NAMES = ("year", "release_year")
_AMAZON_ITEM_SCHEMA: dict[str, pl.DataType] = {
    "parent_asin": pl.String(),
    TITLE: pl.String(),
    "store": pl.String(),
    "main_category": pl.String(),
    "categories": pl.List(pl.String()),
}
_FRACTION = r"^-?\d*\.\d+([eE][+-]?\d+)?$|^-?\d+[eE]\+\d+$"
_GIVEN_COLUMNS = (USER_ID, "history_item_id", ITEM_ID)


def _scan_recbole(path: Path) -> pl.LazyFrame:
    """A RecBole atomic file, tab-separated; `name:type` headers lose their types."""
    table = scan_text_table(path, "\t", quoted=False)
    names = {name: name.split(":")[0] for name in column_names(table, path)}
    if not any(":" in name for name in names):
        raise DataError(
            f"{path}: found the header {list(names)[:10]}, expected RecBole's `name:type`, as in "
            "`user_id:token\titem_id:token\ttimestamp:float`: add the types, or rename the file to .tsv"
        )
    return table.rename(names)


def read_recbole(
    inter: Path, item: Path, columns: Mapping[str, str] | None = None, item_columns: Mapping[str, str] | None = None
) -> Source:
    """RecBole's `.inter` and `.item` (or another item file); a film's year joins its title, genres become a list."""
    return Source(
        pick_events(_scan_recbole(inter), inter, columns),
        read_items(item, PlainTable(item_columns=item_columns)),
        inter,
        item,
    )


def read_recbole_items(path: Path) -> pl.DataFrame:
    """RecBole's `.item`: id, title, `year` and `genres` (list) where there are any, other columns as text."""
    table = pick_items(collect(_scan_recbole(path), path), path, None, [ITEM_ID], _TITLE_NAMES)
    table = table.drop(_DROPPED_ATTRIBUTES, strict=False)
    table = table.rename({n: "genres" for n in _GENRE_NAMES if n in table.columns and "genres" not in table.columns})
    table = table.rename({n: "year" for n in _YEAR_NAMES if n in table.columns and "year" not in table.columns})
    if "genres" in table.columns:
        genres = pl.col("genres").fill_null("").str.split(" ").list.filter(pl.element() != "")
        table = table.with_columns(genres)
    if "year" in table.columns:
        rows = zip(table[TITLE].to_list(), table["year"].to_list(), strict=True)
        films = [film_title(title or "", year) for title, year in rows]
        table = table.with_columns(
            pl.Series(TITLE, [title for title, _ in films], dtype=pl.String),
            pl.Series("year", [year for _, year in films], dtype=pl.String),
        )
    return table


def read_amazon(ratings: Path, meta: Path, columns: Mapping[str, str] | None = None) -> Source:
    """Amazon Reviews 2023: `user_id,parent_asin,rating,timestamp` and `meta_*.jsonl` (either may be .gz)."""
    events = pick_events(scan_text_table(ratings, ","), ratings, columns, {ITEM_ID: "parent_asin"})
    table = collect(scan_json_lines(meta, _AMAZON_ITEM_SCHEMA), meta).rename({"store": "brand"})
    return Source(events, pick_items(table, meta, None, ["parent_asin"], [TITLE]), ratings, meta)


def read_plain(path: Path, items_path: Path | None, table: PlainTable) -> Source:
    """A csv, tsv or parquet log with named columns, and an item file (csv, tsv, parquet, jsonl or RecBole's .item)."""
    events = pick_events(table.scan(path), path, table.columns)
    if items_path is None:
        raise DataError(
            f"{path}: found no item file beside it, expected items.csv, items.tsv, items.parquet or items.jsonl with "
            "item_id and title: pass items_path="
        )
    return Source(events, read_items(items_path, table), path, items_path)


def read_items(path: Path, table: PlainTable) -> pl.DataFrame:
    """An item file: csv, tsv, parquet, jsonl or RecBole's .item; ids and titles under our names."""
    if path.suffix == ".item":
        return read_recbole_items(path)
    items = collect(scan_json_lines(path) if suffix(path) in JSON_SUFFIXES else table.scan(path), path)
    ids = [ITEM_ID, "parent_asin", "movieId", "asin", "iid"]
    return pick_items(items, path, table.item_columns, ids, _TITLE_NAMES).drop(_DROPPED_ATTRIBUTES, strict=False)


def read_minionerec(
    paths: Mapping[str, Path], inter: Path | None, item: Path | None, columns: Mapping[str, str] | None = None
) -> Source:
    """MiniOneRec's csv files with pre-made histories.

    Events come from a RecBole `.inter` beside them; else from the rows: each row's target at its timestamp, and the
    history of a user's earliest row at the timestamp of that row (the files do not say when it happened). Where
    there is no timestamp, the row's number in train, validation, test order stands for it. Items come from a
    `.item` file, else from the titles in the csv files. An id written as a float is the whole number that it is.

    Args:
        paths: split name to csv file.
        inter: RecBole events, or None.
        item: RecBole items, or None.
        columns: our names to the `.inter` file's.
    """
    notes = {}
    frames = []
    for split in SPLITS:
        if split in paths:
            table = collect(scan_text_table(paths[split], ","), paths[split])
            if missing := [name for name in _GIVEN_COLUMNS if name not in table.columns]:
                raise DataError(
                    f"{paths[split]}: found the columns {table.columns}, expected MiniOneRec's; missing {missing}"
                )
            frames.append(table.with_columns(pl.lit(split).alias(SPLIT)))
    path = next(iter(paths.values()))
    rows = pl.concat(frames, how="diagonal")
    if TIMESTAMP not in rows.columns:
        notes["timestamps_from_row_order"] = len(rows)
        rows = rows.with_columns(pl.int_range(pl.len()).cast(pl.String).alias(TIMESTAMP))
    rows = rows.with_columns(_parse_list("history_item_id").alias(HISTORY), _whole(pl.col(USER_ID, ITEM_ID)))
    fractions = rows.filter(
        pl.concat_list(HISTORY, ITEM_ID).list.eval(pl.element().str.contains(_FRACTION)).list.any()
    )
    if len(fractions):
        shown = fractions.select("history_item_id", ITEM_ID).row(0)
        raise DataError(
            f"{path}: found a fraction among the ids {shown[0]!r}, {shown[1]!r} ({len(fractions)} of {len(rows)} "
            "rows), expected text or whole numbers: convert history_item_id and item_id, or remove the rows"
        )
    items = read_items(item, PlainTable()) if item else _items_from_rows(rows, path)
    given = rows.select(USER_ID, HISTORY, pl.col(ITEM_ID).alias(TARGET_ID), TIMESTAMP, SPLIT)
    if inter:
        return Source(pick_events(_scan_recbole(inter), inter, columns), items, inter, item or path, notes, given)
    time = read_time(TIMESTAMP, rows.schema[TIMESTAMP])
    by_time = rows.sort(time.whole, time.part, nulls_last=True, maintain_order=True)
    firsts = by_time.unique(USER_ID, keep="first", maintain_order=True).select(USER_ID, pl.col(HISTORY), TIMESTAMP)
    firsts = firsts.explode(HISTORY).drop_nulls(HISTORY).rename({HISTORY: ITEM_ID}).select(USER_ID, ITEM_ID, TIMESTAMP)
    events = pl.concat([firsts, rows.select(USER_ID, ITEM_ID, TIMESTAMP)])
    return Source(events.lazy(), items, path, item or path, notes, given)


def _parse_list(column: str) -> pl.Expr:
    """`[1, 2]`, `[1.0, 2.0]`, `['a', 'b']` or numpy's `[1 2]`, of ids, into a list of str; what is missing goes."""
    element = _whole(pl.element().str.strip_chars("'\"").str.strip_chars())
    ids = pl.col(column).fill_null("").str.extract_all(r"""'[^']*'|"[^"]*"|[^\s,'"\[\]]+""")
    return ids.list.eval(element.filter(element.is_in(NULLS).not_()))


def _whole(ids: pl.Expr) -> pl.Expr:
    """Ids of which floats that are whole numbers are written as these: `1.0`, as a data frame with gaps has it."""
    return ids.str.replace(r"^(-?\d+)\.0*$", "$1")


def _items_from_rows(rows: pl.DataFrame, path: Path) -> pl.DataFrame:
    """The items that targets and histories name, with title and `sid` (semantic id) where the file has them."""
    if "item_title" not in rows.columns:
        raise DataError(f"{path}: found no column 'item_title' and no .item file beside it: add one of them")
    sids = [pl.col("item_sid").alias("sid")] if "item_sid" in rows.columns else []
    items = rows.select(ITEM_ID, pl.col("item_title").alias(TITLE), *sids).unique(ITEM_ID, maintain_order=True)
    known = set(items[ITEM_ID].to_list())
    found: dict[str, tuple[str, str | None]] = {}
    if "history_item_title" in rows.columns:
        history_sids = rows["history_item_sid"] if "history_item_sid" in rows.columns else [None] * len(rows)
        for ids, titles, sid in zip(rows[HISTORY].to_list(), rows["history_item_title"], history_sids, strict=True):
            if known.issuperset(ids):
                continue
            titles, sid = _literal(titles, len(ids)), _literal(sid, len(ids))
            for one_id, one_title, one_sid in zip(ids, titles, sid, strict=True):
                if one_id not in known:
                    found.setdefault(one_id, (one_title or "", one_sid))
    extra: dict[str, list[str] | list[str | None]] = {
        ITEM_ID: list(found),
        TITLE: [title for title, _ in found.values()],
    }
    if sids:
        extra["sid"] = [sid for _, sid in found.values()]
    return pl.concat([items, pl.DataFrame(extra, schema=items.schema)])


def _literal(text: str | None, length: int) -> list[str | None]:
    try:
        values = ast.literal_eval(text or "")
    except (SyntaxError, ValueError):
        return [None] * length
    return [str(value) for value in values] if isinstance(values, list) and len(values) == length else [None] * length
