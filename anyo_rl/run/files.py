"""Writing files so that each is there complete or not at all, whenever the program is killed."""

import os
from pathlib import Path

import polars as pl


def write_whole(file: Path, text: str) -> None:
    """Writes a file complete or not at all."""
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)


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
