import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_a_request_by_itself_finds_what_a_block_finds(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/request_features.py", "--users", "20", "--json", tmp_path / "found.json"]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert all(row["agree"] > 0.99 for row in rows)
    assert 0 < rows[0]["peer"] <= rows[1]["peer"]
