import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.on_request
def test_a_mapped_catalog_takes_less_than_a_built_one(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/open_catalog.py", "--items", "20000"]
    command += ["--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=300)
    rows = {row["name"]: row for row in json.loads((tmp_path / "found.json").read_text())["rows"]}
    assert all(row["agree"] for row in rows.values())
    assert rows["next process, s"]["ratio"] > 2
    assert rows["next process, MB"]["ratio"] > 1
    assert "20,000 titles of " in done.stdout
