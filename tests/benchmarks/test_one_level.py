import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_ranks_in_a_tree_of_one_level_are_those_of_a_product(repo_root, tmp_path):
    flags = ["--items", "5000", "--contexts", "3", "--width", "16", "--turns", "1", "--json", tmp_path / "found"]
    command = [sys.executable, "benchmarks/one_level.py", *flags]
    subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=300)
    rows = json.loads((tmp_path / "found").read_text())["rows"]
    assert [row["name"] for row in rows] == ["5,000 items, target at rank 100", "5,000 items, target anywhere"]
    assert all(float(row["agree"]) < 1e-4 and row["ratio"] > 0 for row in rows)
