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

# A folder uses only those before it; some of them hold nothing yet. The loose files of anyo_rl (plan, repeat) may use
# any folder, and no folder uses them.
ORDER = (
    *("run", "metrics", "data", "llm", "teacher", "encoders", "catalog", "ranking", "students", "evidence"),
    *("reasoning", "sampling", "values", "search", "evaluation", "training", "distill", "agent", "stages", "serve"),
)
LOOSE = {"__init__", "plan", "repeat"}
MOST_ARGUMENTS = 7
MOST_UNTYPED_ROWS = 56
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
    found = forbidden_imports(path.relative_to(ROOT).with_suffix("").parts, path.read_text(encoding="utf-8"))
    assert found == []


def test_forbidden_imports_finds_what_it_should():
    assert forbidden_imports(("anyo_rl", "metrics", "gains"), "import numpy\nfrom anyo_rl.run.files import x") == []
    assert forbidden_imports(("anyo_rl", "metrics", "gains"), "from anyo_rl.metrics import ranking") == []
    assert forbidden_imports(("anyo_rl", "metrics", "gains"), "from anyo_rl import catalog") == ["anyo_rl.catalog"]
    assert forbidden_imports(("anyo_rl", "metrics", "gains"), "def f():\n    import reward.rank") == ["reward.rank"]
    assert forbidden_imports(("anyo_rl", "metrics", "gains"), "import anyo_rl.llm.http") == ["anyo_rl.llm.http"]
    assert forbidden_imports(("anyo_rl", "plan"), "import anyo_rl.metrics.gains") == []
    assert forbidden_imports(("reward", "rank"), "import anyo_rl.metrics, recipes.x") == ["recipes.x"]


def test_there_is_something_to_check():
    """A wrong root or glob would leave every test here without a case."""
    assert {path.relative_to(ROOT).parts[0] for path in CODE} == {*PACKAGES, "benchmarks"}
    assert ROOT / "anyo_rl" / "metrics" / "gains.py" in CODE
    assert Path(__file__).resolve() in TESTS
    assert RECIPE_CONFIGS


def test_every_module_lies_in_a_folder_of_the_order():
    found = {path.relative_to(ROOT / "anyo_rl").parts for path in CODE if path.is_relative_to(ROOT / "anyo_rl")}
    assert {parts[0].removesuffix(".py") for parts in found if len(parts) == 1} == LOOSE
    folders = {parts[0] for parts in found if len(parts) > 1}
    assert folders - set(ORDER) == set(), "a new folder needs its place in ORDER, docs/design.md and CONTRIBUTING.md"
    assert len(set(ORDER)) == len(ORDER)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which of these modules (dotted name to source) each of them imports, wherever in it the import stands.

    `from package import name` is an import of the module of that name, or else of the package.
    """
    graph = {}
    for module, source in sources.items():
        used = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
                used |= {name if name in sources else node.module for name in inside.values()}
        graph[module] = used & set(sources)
    return graph


def in_circles(graph: dict[str, set[str]]) -> set[str]:
    """The modules that are imported by what they import."""

    def reached(start: str) -> set[str]:
        seen, ahead = set(), list(graph[start])
        while ahead:
            module = ahead.pop()
            if module not in seen:
                seen.add(module)
                ahead += graph[module]
        return seen

    return {module for module in graph if module in reached(module)}


def test_no_circle_of_imports():
    graph = import_graph({module_of(path): path.read_text(encoding="utf-8") for path in CODE})
    assert graph["anyo_rl.evaluation.evaluator"] >= {"anyo_rl.metrics.ranking", "anyo_rl.run.files"}
    assert in_circles(graph) == set(), "these modules import each other, directly or by others"


def test_in_circles_finds_what_it_should():
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.b import B"
    graph = import_graph({"p": "", "p.a": typed, "p.b": "def f():\n    import p.c", "p.c": "from p import a, d"})
    assert graph == {"p": set(), "p.a": {"p.b"}, "p.b": {"p.c"}, "p.c": {"p.a", "p"}}
    assert in_circles(graph) == {"p.a", "p.b", "p.c"}
    assert in_circles({**graph, "p.c": set()}) == set()


def argument_counts(source: str) -> dict[str, int]:
    """Arguments of each function by its name, with its class before it; self, cls, *args and **kwargs aside."""
    found: dict[str, int] = {}

    def look(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                given = child.args
                names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
                found[f"{prefix}{child.name}"] = len([name for name in names if name not in ("self", "cls")])
            look(child, f"{child.name}." if isinstance(child, ast.ClassDef) else prefix)

    look(ast.parse(source), "")
    return found


@pytest.mark.parametrize("path", CODE, ids=name_of)
def test_functions_have_few_arguments(path: Path):
    counts = argument_counts(path.read_text(encoding="utf-8"))
    found = {name: n for name, n in counts.items() if n > MOST_ARGUMENTS}
    assert found == {}, f"more than {MOST_ARGUMENTS} arguments: what travels together is a dataclass"


def test_argument_counts_finds_what_it_should():
    source = "class A:\n    async def f(self, a, /, b, *args, c=1, **kwargs):\n        def g(x): ...\ndef h(): ..."
    assert argument_counts(source) == {"A.f": 3, "A.g": 1, "h": 0}


def test_rows_with_known_fields_are_dataclasses():
    lines = [line for path in CODE for line in path.read_text(encoding="utf-8").splitlines()]
    n_lines = sum("dict[str, Any]" in line for line in lines)
    assert n_lines <= MOST_UNTYPED_ROWS, f"{n_lines} lines with dict[str, Any]: give what has known fields a dataclass"


def tree_shown(page: str) -> list[str]:
    """The lines below `anyo_rl/` in a page's tree: two spaces, a folder or a file, and what it is for."""
    below = page.split("\nanyo_rl/\n")[1]
    return [line for line in below[: below.index("\n```")].splitlines() if line.startswith("  ")]


@pytest.mark.parametrize("page", ["docs/design.md", "CONTRIBUTING.md"])
def test_pages_show_the_folders_that_there_are(page: str):
    shown = tree_shown((ROOT / page).read_text(encoding="utf-8"))
    names = [line.split()[0] for line in shown if line[2] != " "]
    there = {path.relative_to(ROOT / "anyo_rl").parts[0] for path in CODE if path.is_relative_to(ROOT / "anyo_rl")}
    assert names == [*(f"{name}/" for name in ORDER if name in there), "plan.py", "repeat.py"]
    assert shown == tree_shown((ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    for name, line in zip(names, shown, strict=True):
        assert len(line.split(name, 1)[1].split()) >= 3, f"{page} does not say what {name} is for"


@pytest.mark.parametrize("path", CODE + TESTS, ids=name_of)
def test_files_stay_short(path: Path):
    limit = 120 if path.parent == ROOT / "recipes" else 430
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
