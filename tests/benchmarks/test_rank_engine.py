import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.on_request
def test_the_benchmark_prints_a_table_and_writes_json(repo_root, tmp_path, data_folder):
    if not (data_folder / "office").is_dir():
        pytest.skip("no office/ in ANYO_RL_DATA")
    command = [sys.executable, "benchmarks/rank_engine.py", "--contexts", "3", "--peer_items", "12"]
    command += ["--train_steps", "1", "--json", str(tmp_path / "found.json")]
    env = {**os.environ, "ANYO_RL_DATA": str(data_folder.resolve())}
    subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=600, env=env)
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 2 * 2 + 2  # teachers, engines, peers, units; and paths read anew
    for row in rows:
        assert row["ratio"] == pytest.approx(row["peer"] / row["ours"], rel=0.05)
        assert row["agree"] is True
        if row["name"].endswith("tokens per context"):
            assert row["ratio"] > 10


def test_candidates_are_scored_in_one_search(repo_root, tmp_path, data_folder):
    if not (data_folder / "office").is_dir():
        pytest.skip("no office/ in ANYO_RL_DATA")
    command = [sys.executable, "benchmarks/candidates.py", "--contexts", "4", "--candidates", "20"]
    command += ["--peer_contexts", "1", "--train_steps", "1", "--json", str(tmp_path / "found.json")]
    env = {**os.environ, "ANYO_RL_DATA": str(data_folder.resolve())}
    subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=600, env=env)
    assert [row["agree"] for row in json.loads((tmp_path / "found.json").read_text())["rows"]] == [True, True]
