"""A log file for each process of a run: on the console only the main one speaks."""

import logging
import sys
from pathlib import Path
from types import TracebackType

import datasets
from transformers.utils import logging as transformers_logging

LOGS = "logs"
NAME = "anyo-rl: log of this process"


def log_to_file(run_dir: Path, rank: int) -> None:
    """Writes what this process logs, and the error that stops it, to `logs/rank-N.log` in the run folder.

    From information upwards, whatever the console shows, which shows what it did before. A run that goes on appends.

    Args:
        run_dir: the run folder.
        rank: number of the process, over all machines.
    """
    root = logging.getLogger()
    if not root.handlers:
        logging.basicConfig(level=root.level)
    for old in [handler for handler in root.handlers if handler.name == NAME]:
        root.removeHandler(old)
        transformers_logging.remove_handler(old)
        old.close()
    (run_dir / LOGS).mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(run_dir / LOGS / f"rank-{rank}.log", encoding="utf-8")
    file.set_name(NAME)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for handler in root.handlers:
        handler.setLevel(max(handler.level, root.level))
    root.setLevel(min(root.level, logging.INFO))
    root.addHandler(file)
    transformers_logging.add_handler(file)  # its messages do not reach the root
    shown_by = sys.excepthook

    def write_error(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        found = (kind, error, trace)
        file.handle(logging.LogRecord(__name__, logging.CRITICAL, __file__, 0, "stopped by an error", None, found))
        shown_by(kind, error, trace)

    sys.excepthook = write_error  # to the file alone: the console has it anyway


def hide_progress_bars() -> None:
    """Hides the bars of datasets and transformers: a line for each file that is read would bury what is learned."""
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
