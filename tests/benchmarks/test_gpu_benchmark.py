import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def run(repo_root, file, *flags):
    command = [sys.executable, "benchmarks/gpu.py", "--dry_run", "--json", str(file), *flags]
    return subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=900, check=False)


def test_sampling_and_ranking_are_set_against_the_plan(repo_root, tmp_path):
    done = run(repo_root, tmp_path / "found.json", "--parts", "sampling", "ranking")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["name"].split(",")[0] for row in rows] == [*["tiny: sampling"] * 2, *["tiny: ranking 2"] * 2]
    assert all(row["ours"] > 0 and row["peer"] >= 0 for row in rows)


@pytest.mark.on_request
def test_recipes_run_from_random_weights_and_their_logs_are_read(repo_root, tmp_path):
    done = run(repo_root, tmp_path / "found.json", "--parts", "sft", "grpo")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    names = [row["name"] for row in rows]
    assert all(row["ours"] >= 0 for row in rows)
    assert names[:3] == [
        *(f"tiny: SFT step, sdpa, {unit}" for unit in ("s", "GiB")),
        "tiny: evaluation of 4 users loading included, s",
    ]
    assert "tiny: GRPO step, ranking, s" in names


def test_the_script_is_valid(repo_root):
    subprocess.run(["bash", "-n", "benchmarks/gpu.sh"], cwd=repo_root, check=True)
