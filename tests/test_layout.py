"""The layout that the code promises: who may import whom, how long a file may be, and what is never committed."""

import ast
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("anyo_rl", "reward", "recipes")
CODE = sorted(path for name in (*PACKAGES, "benchmarks") for path in (ROOT / name).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
RECIPE_CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))

# A folder uses only those before it. The loose files of anyo_rl (plan, repeat) may use any folder, and no folder uses
# them.
ORDER = (
    *("run", "metrics", "data", "llm", "teacher", "encoders", "catalog", "ranking", "students", "evidence"),
    *("reasoning", "sampling", "values", "search", "evaluation", "training", "serve", "stages"),
)
LOOSE = {"__init__", "plan", "repeat"}
TEXT_SUFFIXES = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".json", ".jinja", ".css", ".js", ".cfg", ".sh"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported_modules(source: str) -> set[str]:
    """Dotted names of every import in the source, those inside functions and `from package import module` included."""
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def forbidden_imports(place: tuple[str, ...], source: str) -> list[str]:
    """What a file at `place` (its path from the root, suffix left out) imports against the order."""
    package = place[0]
    higher = PACKAGES[PACKAGES.index(package) + 1 :]
    found = []
    for module in sorted(imported_modules(source)):
        parts = module.split(".")
        if parts[0] in higher:
            found.append(module)
        elif package == parts[0] == "anyo_rl" and len(parts) > 1 and place[1] in ORDER and parts[1] != place[1]:
            before = ORDER[: ORDER.index(place[1])]
            is_module = (ROOT / "anyo_rl" / parts[1]).is_dir() or (ROOT / "anyo_rl" / f"{parts[1]}.py").is_file()
            if is_module and parts[1] not in before:
                found.append(module)
    return found


@pytest.mark.parametrize("path", [path for path in CODE if path.relative_to(ROOT).parts[0] in PACKAGES], ids=name_of)
def test_imports_follow_the_order(path: Path):
    assert forbidden_imports(path.relative_to(ROOT).with_suffix("").parts, path.read_text(encoding="utf-8")) == []


def test_forbidden_imports_finds_what_it_should():
    assert forbidden_imports(("anyo_rl", "metrics", "gains"), "import numpy\nfrom anyo_rl.run.files import x") == []
    assert forbidden_imports(("anyo_rl", "metrics", "gains"), "from anyo_rl.metrics import ranking") == []
    assert forbidden_imports(("anyo_rl", "metrics", "gains"), "from anyo_rl import catalog") == ["anyo_rl.catalog"]
    assert forbidden_imports(("anyo_rl", "metrics", "gains"), "def f():\n    import reward.rank") == ["reward.rank"]
    assert forbidden_imports(("anyo_rl", "metrics", "gains"), "import anyo_rl.llm.http") == ["anyo_rl.llm.http"]
    assert forbidden_imports(("anyo_rl", "plan"), "import anyo_rl.metrics.gains") == []
    assert forbidden_imports(("reward", "rank"), "import anyo_rl.metrics, recipes.x") == ["recipes.x"]


@pytest.mark.parametrize("path", CODE + TESTS, ids=name_of)
def test_files_stay_short(path: Path):
    limit = 120 if path.parent == ROOT / "recipes" else 400
    n_lines = len(path.read_text(encoding="utf-8").splitlines())
    assert n_lines <= limit, f"{name_of(path)} has {n_lines} lines, the limit is {limit}: split it by what it does"


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_no_call_runs_code_from_data(path: Path):
    """Nothing that a checkpoint, a data set or a model hub brings is executed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {module.split(".")[0] for module in imported_modules(path.read_text(encoding="utf-8"))}
    assert not modules & {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "yaml.load", "yaml.unsafe_load", "eval", "exec"}, f"line {node.lineno}"
            for keyword in node.keywords:
                # A flag of the user's own may be passed on; code never turns it on.
                on = keyword.arg in {"trust_remote_code", "allow_pickle"} and ast.unparse(keyword.value) == "True"
                assert not on, f"line {node.lineno}: {keyword.arg}=True"


def test_no_absolute_paths():
    """Paths of one machine (/root, /home, ...) have no place in what is committed."""
    pattern = re.compile(r"(?<![\w.~*$})-])/(?:root|work|home|tmp|opt|mnt)/[\w.]")
    folders = (*PACKAGES, "benchmarks", "tests", "docs", "accelerate_configs", ".ci")
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in TEXT_SUFFIXES]
    paths += [path for path in ROOT.iterdir() if path.is_file() and (path.suffix in TEXT_SUFFIXES)]
    paths += [ROOT / "Makefile", ROOT / ".ci" / "run"]
    found = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{name_of(path)}:{number}: {line.strip()[:100]}")
    assert found == []


@pytest.mark.parametrize("path", RECIPE_CONFIGS, ids=name_of)
def test_recipe_configs_are_yaml_mappings(path: Path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)
