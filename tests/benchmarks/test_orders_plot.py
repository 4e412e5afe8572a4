import subprocess
import sys


def test_the_picture_in_the_docs_is_that_of_the_tables(repo_root, tmp_path):
    command = [sys.executable, "benchmarks/orders_plot.py", "--svg", str(tmp_path / "orders.svg")]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    drawn, kept = (tmp_path / "orders.svg").read_text(), (repo_root / "docs" / "orders.svg").read_text()
    named = [name for name in ("grpo", "item_only", "sft_more", "direct", "oracle") if f">{name}<" in drawn]
    assert len(named) == 5
    assert drawn == kept
