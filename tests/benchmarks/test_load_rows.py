import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_the_benchmark_prints_a_table_and_writes_json(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/load_rows.py", "--rows", "4000", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"] == 4000
    load, split = found["stages"]
    assert (load["stage"], load["rows"]) == ("load and clean", 4000)
    assert split["rows"] == 3 * 40  # a train, a validation and a test example of each of 40 users
    assert all(0 < stage["peak_gb"] < 4 for stage in found["stages"])
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["stage", "rows", "seconds", "peak", "GB"]
    assert [line.split()[-3] for line in lines] == ["4,000", "120"]
