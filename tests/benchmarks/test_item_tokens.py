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
    command = [sys.executable, "benchmarks/item_tokens.py", "--users", "4", "--train_steps", "1"]
    command += ["--hidden_size", "32", "--layers", "1", "--json", str(tmp_path / "found.json")]
    env = {**os.environ, "ANYO_RL_DATA": str(data_folder.resolve())}
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {row["name"]: row for row in json.loads((tmp_path / "found.json").read_text())["rows"]}
    assert all(list(row) == ["name", "ours", "peer", "ratio", "agree"] for row in rows.values())
    assert all(float(row["agree"]) < 1e-4 for row in rows.values())
    assert rows["tokens of an item"]["ours"] == pytest.approx(4 + 30 / 3459, abs=1e-2)  # three codes, <eos>; 30 have 4
    assert rows["tree nodes that need the model"]["ratio"] > 4
    assert "ours = semantic ids" in done.stdout
