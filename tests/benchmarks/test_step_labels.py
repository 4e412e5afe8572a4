import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.on_request
def test_the_benchmark_prints_a_table_and_writes_json(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/step_labels.py", "--examples", "3", "--paths", "2", "--train_steps", "30"]
    command += ["--continuations", "1", "2", "--reference", "2", "--max_new_tokens", "24"]
    command += ["--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    forced, one, two = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert (forced["name"], one["name"]) == ("forced answer", "Monte Carlo, k = 1")
    assert forced["tokens"] == 0 < one["tokens"] < two["tokens"]
    assert forced["contexts"] >= 3
    assert forced["nodes"] > 0
    # Of each state one reasoning or two; those that reach the marker are ranked.
    assert one["contexts"] <= forced["contexts"]
    assert two["contexts"] <= 2 * forced["contexts"]
    assert "3 examples, 6 paths" in done.stdout
