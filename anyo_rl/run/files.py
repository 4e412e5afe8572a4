"""Writing files so that each is there complete or not at all, whenever the program is killed."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import polars as pl


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
