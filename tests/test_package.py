"""The wheel: built without a network, it has every file that the code reads, and works outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

PACKAGES = ("anyo_rl", "reward", "recipes")
LEFT_OUT = {"__pycache__", ".pyc"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """A folder with the unpacked wheel. It is built from a copy: setuptools leaves files beside what it builds."""
    pytest.importorskip("setuptools", reason="the wheel is built with the setuptools that is there")
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(repo_root / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(repo_root / name, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", folder, folder / "source"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def outside(installed: Path, cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in an empty folder with the unpacked wheel first on its path."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_packages(installed: Path, repo_root: Path):
    expected = {
        path.relative_to(repo_root).as_posix()
        for name in PACKAGES
        for path in (repo_root / name).rglob("*")
        if path.is_file() and not {path.suffix, path.parent.name} & LEFT_OUT
    }
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert expected - found == set(), "add them to package-data in pyproject.toml"
    assert {"anyo_rl/py.typed", "reward/py.typed"} <= found


@pytest.mark.slow
def test_commands_work_outside_the_checkout(installed: Path, tmp_path: Path):
    done = outside(installed, tmp_path, "-m", "anyo_rl.plan", "--model", "8B", "--gpus", "8")
    assert done.returncode == 0, done.stderr
    assert "8.19B parameters" in done.stdout
    done = outside(installed, tmp_path, "-c", "import anyo_rl, reward; print(anyo_rl.__file__, reward.__file__)")
    assert done.stdout.split() == [str(installed / name / "__init__.py") for name in ("anyo_rl", "reward")]


@pytest.mark.slow
def test_an_installed_recipe_lies_beside_its_configs(installed: Path, tmp_path: Path):
    find = "from importlib.util import find_spec; print(find_spec('recipes.baselines').origin)"
    done = outside(installed, tmp_path, "-c", find)
    assert done.stdout.strip() == str(installed / "recipes" / "baselines.py")
    assert (installed / "recipes" / "configs" / "toy" / "grpo_teacher.yaml").is_file()


def test_a_missing_config_is_answered_with_where_the_others_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from anyo_rl.stages.begin import parse

    (tmp_path / "recipes" / "configs").mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "recipes" / "baselines.py"), "--config", "none.yaml"])
    with pytest.raises(SystemExit, match=r"no config file at none\.yaml; the shipped") as error:
        parse(())
    assert str(error.value).endswith(str(tmp_path / "recipes" / "configs"))


def test_the_citation_names_this_version(repo_root: Path):
    import tomllib

    cited = yaml.safe_load((repo_root / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])


def test_forms_for_issues_are_what_github_reads(repo_root: Path):
    forms = sorted((repo_root / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 4
    for form in forms:
        content = yaml.safe_load(form.read_text(encoding="utf-8"))
        assert form.name == "config.yml" or {"name", "description", "body"} <= set(content), form.name
