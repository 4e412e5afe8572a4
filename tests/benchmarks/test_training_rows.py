import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.on_request]  # six processes, a minute and more


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_rows_that_are_made_are_those_that_were_kept_and_take_less(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/training_rows.py", "--rows", "300", "9000", "--kinds", "grpo"]
    command += ["--json", str(tmp_path / "found.json")]
    subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=600)
    rows = {row["name"]: row for row in json.loads((tmp_path / "found.json").read_text())["rows"]}
    assert [row["agree"] for name, row in rows.items() if name.endswith("private, maker")] == [True, True]
    assert rows["grpo, 1,000,000 rows, 8 processes together"]["ratio"] > 2
