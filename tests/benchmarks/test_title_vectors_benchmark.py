import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.on_request
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_benchmark_agrees_and_writes_json(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/title_vectors.py", "--rows", "8", "--items", "3000", "--dim", "16"]
    command += ["--json", str(tmp_path / "found.json")]
    subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=300)
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["agree"] for row in rows] == [True] * 8
