import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def test_users_together_find_what_each_finds_alone(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/search.py", "--users", "6", "--n", "2", "--max_reasoning_tokens", "12"]
    command += ["--toy_users", "60", "--search", "mixture", "mcts", "--json", str(tmp_path / "found.json")]
    env = {**os.environ, "PYTHONPATH": str(repo_root)}
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["agree"] for row in rows] == [1.0, 1.0]
