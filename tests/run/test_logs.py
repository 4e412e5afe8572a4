"""Log files of processes: each in its own, the console as it was."""

import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys
from pathlib import Path
from transformers.utils import logging as of_transformers
from anyo_rl.run.logs import log_to_file

rank = int(sys.argv[2])
logging.basicConfig(level=logging.ERROR if rank else logging.INFO, format="%(message)s")
log_to_file(Path(sys.argv[1]), rank)
logging.getLogger("anyo_rl.x").info("said in passing")
of_transformers.get_logger("transformers.trainer").warning("a warning of theirs")
raise KeyError("the lost key")
"""


def run(folder, rank):
    command = [sys.executable, "-c", PROGRAM, str(folder), str(rank)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    return done.stderr, (folder / "logs" / f"rank-{rank}.log").read_text()


@pytest.mark.slow
def test_each_process_has_a_file_and_the_console_shows_what_it_did(tmp_path):
    for rank in (0, 3):
        console, file = run(tmp_path, rank)
        assert ("said in passing" in console) == (rank == 0)
        assert console.count("KeyError: 'the lost key'") == 1
        assert "INFO anyo_rl.x: said in passing" in file
        assert "WARNING transformers.trainer: a warning of theirs" in file
        assert "CRITICAL anyo_rl.run.logs: stopped by an error" in file
        assert "KeyError: 'the lost key'" in file
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {"rank-0.log", "rank-3.log"}


@pytest.mark.slow
def test_a_run_that_goes_on_appends(tmp_path):
    run(tmp_path, 0)
    _, file = run(tmp_path, 0)
    assert file.count("said in passing") == 2
