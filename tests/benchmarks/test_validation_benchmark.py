import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.on_request
def test_a_validation_gives_what_exact_ranks_give(repo_root, tmp_path):
    command = [
        sys.executable,
        "benchmarks/validation.py",
        "--users",
        "8",
        "--peers",
        "8",
        "--json",
        tmp_path / "found",
    ]
    subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads((tmp_path / "found").read_text())
    assert [row["agree"] for row in found["rows"]] == [True, True]
    assert all("0 cut short" in note for note in found["notes"][1:])
