import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_nodes_stay_under_depth_over_p(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/engine_scale.py", "--items", "1000", "20000", "--contexts", "4"]
    command += ["--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=300)
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["name"].split(",")[0] for row in rows] == [*["1"] * 4, *["20"] * 4]
    assert all(row["agree"] is True and row["ours"] < row["peer"] for row in rows)
    assert "20,000 items, flat, nodes against depth / p" in done.stdout
