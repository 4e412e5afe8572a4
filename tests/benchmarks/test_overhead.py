import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.on_request
def test_both_trainers_do_the_same_work(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/overhead.py", "--turns", "1", "--steps", "2", "--hidden_size", "32"]
    command += ["--layers", "2", "--completion_length", "8", "--batch_size", "16", "--json", str(tmp_path / "found")]
    subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=300)
    rows = json.loads((tmp_path / "found").read_text())["rows"]
    assert [row["name"].rsplit(", ", 1)[1] for row in rows] == ["wall s", "wall s", "processor s", "processor s"]
    assert all(row["agree"] is True for row in rows)  # all losses: the toolkit changes nothing in TRL's own part
    for without, whole in (rows[:2], rows[2:]):
        assert 0 < without["ours"] < whole["ours"]
        assert without["peer"] == whole["peer"] > 0
