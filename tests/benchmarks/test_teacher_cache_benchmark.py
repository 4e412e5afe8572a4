import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.on_request


def test_the_benchmark_prints_a_table_and_writes_json(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/teacher_cache.py", "--rows", "900", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [(stage["stage"].split()[0], stage["rows"]) for stage in found["stages"]] == [
        ("write", 900),
        ("open", 900),
        ("read", 900),
    ]
    assert found["megabytes"] == pytest.approx(900 * (100 * 8 + 2 * 1024) / 1e6, rel=0.02)
    assert done.stdout.splitlines()[-1].startswith("on disk: 2.6 MB")
