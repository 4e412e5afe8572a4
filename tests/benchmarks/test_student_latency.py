import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.on_request]


def test_every_way_to_serve_is_timed(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/student_latency.py", "--items", "50", "--length", "5", "--requests", "5"]
    command += ["--json", str(tmp_path / "found.json")]
    subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=300)
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert {"SASRec, torch.export, p50 ms", "GRU4Rec, torch.export, p95 ms"} <= {row["name"] for row in rows}
    assert all(row["ours"] > 0 and row["peer"] > 0 for row in rows)
