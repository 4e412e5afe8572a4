import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.on_request
def test_the_share_is_read_from_the_recipe_s_own_log(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/grpo_step.py", "--config", "tests/recipes/configs/grpo.yaml"]
    command += ["--steps", "3", "--json", str(tmp_path / "found.json")]
    subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads((tmp_path / "found.json").read_text())
    (row,) = found["rows"]
    assert row["name"] == "ranking of a step, s, mean of 2"  # the first step is left out
    assert 0 < row["ours"] < row["peer"]
    assert row["agree"] is True
    assert "tree nodes for each completion" in found["notes"][0]
