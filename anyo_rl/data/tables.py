"""Reading text tables without a traceback from inside the reader: every failure is one `DataError`."""

import codecs
import glob
import gzip
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import polars as pl

from anyo_rl.data.schema import ITEM_ID, RATING, TIMESTAMP, USER_ID, DataError
from anyo_rl.run.files import scan_table

REQUIRED = (USER_ID, ITEM_ID, TIMESTAMP)
_SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar", "::": "'::'"}
# How tables write that there is nothing, in ids and numbers alike.
NULLS = ("", "nan", "NaN", "NAN", "null", "NULL", "None", "NA", "<NA>")
PARQUET_SUFFIXES = (".parquet", ".pq")
JSON_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class PlainTable:
    """How a plain log and its item file are laid out.

    Attributes:
        columns: our column names (`user_id`, `item_id`, `timestamp`, `rating`) to the log's.
        item_columns: our item columns (`item_id`, `title`) to the item file's.
        separator: between the fields of text, one character; `None` for a comma (a tab in .tsv).
        quoted: whether fields may stand in double quotes; `None` for yes, but not between tabs: there a quote is a
            character as any other, an inch or the start of a title.

    Raises:
        DataError: if the separator is not one character, or one that lines or quotes are made of.
    """

    columns: Mapping[str, str] | None = None
    item_columns: Mapping[str, str] | None = None
    separator: str | None = None
    quoted: bool | None = None

    def __post_init__(self) -> None:
        separator = self.separator
        if separator is not None and (len(separator.encode()) != 1 or separator in '"\r\n'):
            raise DataError(
                f"separator is {separator!r}: expected one ASCII character, as ';', that is no quote and no line "
                "break: rewrite the file with such a one, e.g. `sed 's/::/\\t/g'` (MovieLens's ratings.dat is read "
                "by its name)"
            )

    def scan(self, path: Path) -> pl.LazyFrame:
        """Scan a csv, tsv or parquet file lazily; text has every column as text.

        Raises:
            DataError: if the file is missing, empty or has another separator.
        """
        if not path.is_file():
            raise DataError(f"{path}: no such file: check the path")
        if suffix(path) in PARQUET_SUFFIXES:
            with reading(path):
                return scan_table(path)
        separator = self.separator or ("\t" if suffix(path) == ".tsv" else ",")
        return scan_text_table(path, separator, quoted=separator != "\t" if self.quoted is None else self.quoted)


@dataclass(frozen=True)
class Source:
    """A log as it was found, before cleaning.

    Attributes:
        events: lazy `user_id`, `item_id`, `timestamp` and perhaps `rating`, of any type.
        items: `item_id`, `title` and attributes, text as it is in the file.
        path: the log, for errors.
        items_path: the item file, for errors.
        notes: counts that the reader adds to the report.
        given: pre-made examples, or None.
    """

    events: pl.LazyFrame
    items: pl.DataFrame
    path: Path
    items_path: Path
    notes: dict[str, int] = field(default_factory=dict)
    given: pl.DataFrame | None = None


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn any reader's failure on `path` into one `DataError`."""
    try:
        yield
    except DataError:
        raise
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, EOFError, UnicodeError) as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        if "utf-8" in reason or "utf8" in reason:
            raise DataError(f"{path}: is not UTF-8 ({reason}): convert it, e.g. `iconv -f latin1 -t utf-8`") from None
        kind = suffix(path)
        expected = "a table with the same number of fields on each line; fix or remove the lines that differ"
        if kind in JSON_SUFFIXES:
            expected = "one JSON object on each line; fix or remove the lines that are none"
        elif kind in PARQUET_SUFFIXES:
            expected = "a whole parquet file; write it again, or give it the suffix of what it is"
        raise DataError(f"{path}: cannot be read ({reason}): expected {expected}") from None


def suffix(path: Path) -> str:
    """The suffix that tells the format: `.csv` of `log.csv.gz`."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def open_text(path: Path) -> bytes:
    """The whole of a small file, unzipped where it ends in .gz."""
    with reading(path):
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def first_line(path: Path) -> str:
    """The first line, for detection: undecodable bytes are replaced.

    Raises:
        DataError: if the file does not exist or is empty.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file: check the path")
    with reading(path), _opened(path) as file:
        line = file.readline(1_000_000)
    _check_start(path, line.strip())
    return line.decode("utf-8-sig", errors="replace").rstrip("\r\n")


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _check_start(path: Path, start: bytes) -> None:
    if not start:
        raise DataError(f"{path}: the file is empty: expected a table of interactions or items")
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{path}: is UTF-16, expected UTF-8: convert it, e.g. `iconv -f utf-16 -t utf-8`")


def scan_text_table(
    path: Path,
    separator: str,
    names: Sequence[str] | None = None,
    quoted: bool = True,
) -> pl.LazyFrame:
    """Scan a text table lazily, every column as text.

    Args:
        path: the file, perhaps .gz.
        separator: one character.
        names: column names where the file has no header.
        quoted: whether fields may stand in double quotes.

    Raises:
        DataError: if the file is missing or empty, or has another separator.
    """
    line = first_line(path)
    fields = line.split(separator)
    if len(fields) == 1 or (names is not None and len(fields) != len(names)):
        other = next(
            (f"; the line looks separated by {n}" for s, n in _SEPARATORS.items() if s != separator and s in line), ""
        )
        expected = f"{len(names)} fields" if names is not None else "a header with several fields"
        raise DataError(
            f"{path}: found {len(fields)} field(s) in the first line {line[:80]!r}, expected {expected} separated by "
            f"{_SEPARATORS.get(separator, repr(separator))}{other}: convert the file, or name its separator"
        )
    with reading(path):
        return pl.scan_csv(
            path,
            separator=separator,
            has_header=names is None,
            new_columns=list(names) if names is not None else None,
            infer_schema=False,
            quote_char='"' if quoted else None,
            glob=False,
        )


def scan_json_lines(path: Path, schema: Mapping[str, pl.DataType] | None = None) -> pl.LazyFrame:
    """Scan a file of one JSON object a line lazily, with or without a byte-order mark.

    Args:
        path: the file, perhaps .gz.
        schema: the columns to read and their types; None for all, as the whole file tells.

    Raises:
        DataError: if the file is empty, or is not UTF-8.
    """
    with reading(path):
        with _opened(path) as file:
            start = file.read(len(codecs.BOM_UTF8))
        _check_start(path, start)
        # This reader takes every path for a pattern, and no byte-order mark.
        marked = start == codecs.BOM_UTF8
        source = open_text(path).removeprefix(codecs.BOM_UTF8) if marked else glob.escape(str(path))
        return pl.scan_ndjson(source, schema=schema, infer_schema_length=None)


def read_latin1_lines(path: Path) -> tuple[list[str], bool]:
    """The lines of a small file in UTF-8 or else latin-1, and whether it was latin-1."""
    first_line(path)
    raw = open_text(path)
    try:
        text, latin1 = raw.decode("utf-8-sig"), False
    except UnicodeDecodeError:
        text, latin1 = raw.decode("latin-1"), True
    # splitlines would also split at the rarer line breaks of Unicode.
    return io.StringIO(text, newline=None).read().split("\n"), latin1


def column_names(events: pl.LazyFrame, path: Path) -> list[str]:
    """The column names of a lazy table."""
    with reading(path):
        return events.collect_schema().names()


def pick_events(
    table: pl.LazyFrame,
    path: Path,
    columns: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> pl.LazyFrame:
    """Rename to the project's column names and keep those only.

    Args:
        table: the log.
        path: for errors.
        columns: our name to the file's name, by the user: has to be there.
        defaults: the same, by the format.

    Raises:
        DataError: if a column is missing.
    """
    found = column_names(table, path)
    columns = dict(columns or {})
    unknown = sorted(set(columns) - {*REQUIRED, RATING})
    if unknown:
        raise DataError(f"columns names {unknown}: expected some of {[*REQUIRED, RATING]}")
    wanted = {name: (defaults or {}).get(name, name) for name in (*REQUIRED, RATING)} | columns
    missing = [wanted[name] for name in wanted if wanted[name] not in found and (name != RATING or name in columns)]
    if missing:
        mapping = ", ".join(f"{name!r}: ..." for name in wanted if wanted[name] in missing)
        raise DataError(
            f"{path}: found the columns {found[:20]}, expected {[wanted[name] for name in REQUIRED]}; missing "
            f"{missing}: rename them, or pass columns={{{mapping}}}"
        )
    return table.select(pl.col(source).alias(name) for name, source in wanted.items() if source in found)


def pick_items(
    table: pl.DataFrame,
    path: Path,
    columns: Mapping[str, str] | None,
    id_names: Sequence[str],
    title_names: Sequence[str],
) -> pl.DataFrame:
    """Put an item table's id and title under our names; other columns stay as they are.

    Raises:
        DataError: if there is no id or no title.
    """
    columns = dict(columns or {})

    def find(name: str, candidates: Sequence[str]) -> str:
        candidates = [columns[name]] if name in columns else candidates
        for candidate in candidates:
            if candidate in table.columns:
                return candidate
        raise DataError(
            f"{path}: found the columns {table.columns[:20]}, expected one of {list(candidates)} for {name!r}: rename "
            f"it, or pass item_columns={{{name!r}: ...}}"
        )

    item_id, title = find(ITEM_ID, id_names), find("title", title_names)
    rest = [name for name in table.columns if name not in (item_id, title, ITEM_ID, "title")]
    return table.select(pl.col(item_id).alias(ITEM_ID), pl.col(title).alias("title"), *rest)


def collect(table: pl.LazyFrame, path: Path) -> pl.DataFrame:
    """Read a lazy table in batches."""
    with reading(path):
        return table.collect(engine="streaming")


def only(paths: Sequence[Path], folder: Path, what: str, prefer: Callable[[Path], bool] = lambda _: False) -> Path:
    """The only one of `paths`, or the preferred one.

    Raises:
        DataError: if there are none or several.
    """
    chosen = [path for path in paths if prefer(path)] or list(paths)
    if len(chosen) == 1:
        return chosen[0]
    names = [path.name for path in chosen]
    raise DataError(
        f"{folder}: found {len(names)} files {names[:10]} that may be the {what}, expected one: name the file"
    )
