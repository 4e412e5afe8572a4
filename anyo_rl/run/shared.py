"""Tables that one process of each machine makes, and that all of its processes map into memory."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
from accelerate import PartialState
from accelerate.utils import gather_object

from anyo_rl.run.files import Tables
from anyo_rl.run.settings import UsageError


def made_once(make: Callable[[], Tables]) -> Tables:
    """Tables whose memory the processes of a machine have in common: one of them makes them, all map them from a file.

    All processes call this together. The file is gone from its folder (`TMPDIR`) once all have it, and from the disk
    once they end. A process that runs alone keeps what it makes.

    Args:
        make: gives the tables by name.

    Raises:
        Exception: what `make` raises, where it was called; a `UsageError` that says the same on all other processes.
    """
    state = PartialState()
    if state.num_processes == 1:
        return make()
    folder, wrong = None, None
    if state.is_local_main_process:
        folder = tempfile.mkdtemp(prefix="anyo-rl-")
        try:
            for name, table in make().items():
                table.write_ipc(Path(folder, name), compression="uncompressed")
        except Exception as error:  # the others must hear of it: they wait
            wrong = error
    told = gather_object([(folder, None if wrong is None else str(wrong))])
    if wrong is None and not (elsewhere := [message for _, message in told if message is not None]):
        tables = mapped(Path(told[state.process_index - state.local_process_index][0]))
    state.wait_for_everyone()
    if folder is not None:
        shutil.rmtree(folder)
    if wrong is not None:
        raise wrong
    if elsewhere:
        raise UsageError(elsewhere[0])
    return tables


def mapped(folder: Path) -> Tables:
    """The tables of a folder of uncompressed Arrow files, by name; their numbers and texts stay in the page cache."""
    files = sorted(folder.iterdir())
    # Not `pl.read_ipc`, which copies.
    tables = {file.name: pa.ipc.open_file(pa.memory_map(str(file))).read_all() for file in files}
    return {name: pl.DataFrame(pl.from_arrow(table, rechunk=False)) for name, table in tables.items()}
