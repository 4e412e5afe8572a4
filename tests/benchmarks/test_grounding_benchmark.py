import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_the_benchmark_agrees_with_cdist_and_writes_json(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/grounding.py", "--rows", "64", "--items", "3000", "--dim", "32"]
    command += ["--peers", "cdist", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [set(row) for row in found] == [{"name", "ours", "peer", "ratio", "agree"}] * 4
    assert [row["agree"] for row in found] == [None, None, True, True]
    assert "64 rows, 3,000 items of 32" in done.stdout
