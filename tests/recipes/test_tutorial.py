"""The tutorial as it stands: every command and snippet of the page, in its order, in one folder."""

import ast
import re
import shlex
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_tutorial_runs_as_it_stands(launcher, repo_root, tmp_path):
    pytest.importorskip("lightgbm", reason="needs the `evidence` extra")
    said = ""
    for language, text in BLOCK.findall((repo_root / "docs" / "tutorial.md").read_text(encoding="utf-8")):
        if language == "python":
            done = subprocess.run(
                [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr[-3000:]
            said = done.stdout
            continue
        for line in text.splitlines():
            _, _, recipe, *flags = shlex.split(line)
            launcher.finish(recipe.removeprefix("recipes/").removesuffix(".py"), *flags)
    assert len(ast.literal_eval(said)) == 5  # titles
