import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.on_request
def test_a_tiny_teacher_is_within_the_band(repo_root, tmp_path, data_folder):
    if not (data_folder / "office").is_dir():
        pytest.skip("no office/ in ANYO_RL_DATA")
    command = [sys.executable, "benchmarks/half_precision.py", "--json", str(tmp_path / "found.json")]
    env = {**os.environ, "ANYO_RL_DATA": str(data_folder.resolve())}
    subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=300, env=env)
    found = json.loads((tmp_path / "found.json").read_text())
    (row,) = found["rows"]
    assert 0 < row["ours"] < row["peer"]
    assert row["agree"] is True
    assert found["notes"][0].startswith("2 contexts, 3459 items; log-probabilities are off by")
