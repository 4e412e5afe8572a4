"""Writing files so that each is there complete or not at all, whenever the program is killed."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import polars as pl
import yaml

from anyo_rl.run.settings import UsageError

Tables = Mapping[str, pl.DataFrame]  # by name
MADE_AGAIN = "remove it, and the same command makes it again"


def write_whole(file: Path, text: str) -> None:
    """Writes a file complete or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)


@contextmanager
def whole_file(file: Path) -> Iterator[BinaryIO]:
    """Opens a file to be written complete or not at all, also where the machine goes down or several write it."""
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("wb") as opened:
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file)
        sync(file.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_first(file: Path, text: str) -> None:
    """Writes a file complete or not at all, unless it is there: of several processes the first one has its way."""
    partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}.partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    try:
        os.link(partial, file)  # a rename would replace what another process has just put there
    except FileExistsError:
        pass
    finally:
        partial.unlink()


def write_table(
    frame: pl.DataFrame, file: Path, metadata: dict[str, str] | None = None, partial: Path | None = None
) -> None:
    """Writes a parquet file complete or not at all, also where the machine goes down.

    Args:
        frame: what to write.
        file: where to.
        metadata: the file's own notes.
        partial: where it is written first, in the same folder; by default its name with `.partial` for `.parquet`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = partial or file.with_suffix(".partial")
    frame.write_parquet(partial, metadata=metadata)
    sync(partial)
    partial.replace(file)
    sync(file.parent)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def readable(file: Path, fix: str = MADE_AGAIN) -> Iterator[None]:
    """Reading a file of ours inside: where it is damaged, one line names it and says what to do.

    Args:
        file: what is read.
        fix: what to do about it.

    Raises:
        UsageError: it holds something else than what we wrote.
    """
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError, pl.exceptions.PolarsError) as error:
        found = str(error).partition("\n")[0][:200]
        raise UsageError(f"{file} is damaged ({type(error).__name__}: {found}): {fix}") from error


def read_json(file: Path, fix: str = MADE_AGAIN) -> Any:
    """What a JSON file of ours holds, a mapping or a list.

    Raises:
        UsageError: see `readable`.
    """
    with readable(file, fix):
        found = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(found, dict | list):
            raise TypeError(f"found {found!r}, expected a mapping or a list")
    return found


def read_table(file: Path, columns: Sequence[str] | None = None, fix: str = MADE_AGAIN) -> pl.DataFrame:
    """What a parquet file of ours holds, or some columns of it.

    Raises:
        UsageError: see `readable`.
    """
    with readable(file, fix):
        table = scan_table(file)
        return (table if columns is None else table.select(columns)).collect()


def scan_table(file: Path) -> pl.LazyFrame:
    """Scans one parquet file lazily, whatever its name: polars takes brackets and stars in it for a pattern."""
    return pl.scan_parquet(file, glob=False)
