"""The documentation as a site: every page is in it, links hold, and a reader's browser asks no network."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.test_layout import ROOT

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def pages(nav) -> list[str]:
    """The files that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav
    return [page for part in parts for page in pages(part)]


def test_every_page_is_in_the_navigation_once():
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    named = pages(CONFIG["nav"])
    assert sorted(named) == sorted(there)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs", reason="needs the `docs` extra")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = re.compile(
        r"""<(?:script|img|iframe)[^>]*\ssrc="(?:https?:)?//|<link[^>]*rel="(?:stylesheet|preload)"[^>]*//"""
    )
    for page in Path(tmp_path).rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), page
    settings = (tmp_path / "reference" / "settings.html").read_text(encoding="utf-8")
    assert "<code>max_reasoning_tokens</code>" in settings
