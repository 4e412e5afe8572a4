"""What a user gets wrong ends in one line that says what to do, not in a library's traceback."""

import runpy
import sys
from pathlib import Path

import pytest

from anyo_rl.config import TeacherArguments, parse, plain_errors, sft_config_path
from anyo_rl.data.schema import DataError
from anyo_rl.launch import LaunchError
from anyo_rl.task import DataArguments

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def run_main(monkeypatch: pytest.MonkeyPatch, recipe: str, *flags: object) -> str:
    """Runs a recipe's main in this process until it gives up; returns its last words."""
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(RECIPES / f"{recipe}.py"))["main"]()
    # A text is printed to stderr by Python, and the exit status is 1.
    assert isinstance(stop.value.code, str)
    return stop.value.code


@pytest.mark.parametrize("recipe", ["grpo_teacher", "sft_teacher", "evaluate"])
def test_an_unknown_key_in_yaml_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str):
    config = tmp_path / "mine.yaml"
    config.write_text("dataset: toy\nuse_cpu: true\nlaerning_rate: 1.0e-3\n")
    message = run_main(monkeypatch, recipe, "--config", config)
    assert "laerning_rate" in message
    assert str(config) in message


@pytest.mark.parametrize("recipe", ["grpo_teacher", "sft_teacher", "evaluate"])
def test_a_missing_config_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str):
    message = run_main(monkeypatch, recipe, "--config", tmp_path / "nowhere.yaml")
    assert "nowhere.yaml" in message
    assert "recipes/configs" in message


def test_broken_yaml_and_a_wrong_choice_are_named(tmp_path: Path):
    config = tmp_path / "mine.yaml"
    config.write_text("dataset: [toy\n")
    with pytest.raises(SystemExit, match=r"mine\.yaml"):
        parse((DataArguments,), args=["--config", str(config)])
    config.write_text("split: by_luck\n")
    with pytest.raises(SystemExit, match="split is 'by_luck'; expected one of users"):
        parse((DataArguments,), args=["--config", str(config)])
    with pytest.raises(SystemExit):
        parse((DataArguments,), args=["--no_such_flag", "1"])


def test_flags_go_on_top_of_the_config(tmp_path: Path):
    config = tmp_path / "mine.yaml"
    config.write_text("n_paths: 3\ntiny_layers: 2\n")
    teacher_args, found = parse((TeacherArguments,), args=["--config", str(config), "--n_paths", "5"])
    assert (teacher_args.n_paths, teacher_args.tiny_layers, found) == (5, 2, config)
    teacher_args, found = parse((TeacherArguments,), default_config=config, args=[])
    assert (teacher_args.n_paths, found) == (3, config)


def test_the_warm_start_config_is_found_beside_the_recipes_own(tmp_path: Path):
    (tmp_path / "sft.yaml").write_text("dataset: toy\n")
    assert sft_config_path("sft.yaml", tmp_path / "grpo.yaml") == tmp_path / "sft.yaml"
    assert sft_config_path(str(tmp_path / "sft.yaml"), None) == tmp_path / "sft.yaml"
    with pytest.raises(SystemExit, match=r"no sft_config 'other\.yaml'"):
        sft_config_path("other.yaml", tmp_path / "grpo.yaml")


def evaluate_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *flags: object) -> str:
    """The recipe that reads data first thing, once there is something to evaluate."""
    (tmp_path / "run" / "sft" / "teacher").mkdir(parents=True)
    return run_main(monkeypatch, "evaluate", "--run_dir", tmp_path / "run", *flags)


def test_an_unknown_data_set_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    message = evaluate_with(monkeypatch, tmp_path, "--dataset", "movielnes")
    assert message.startswith("error: 'movielnes'")
    assert "\n" not in message


def test_a_log_without_events_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    log = tmp_path / "log.csv"
    log.write_text("user_id,item_id,timestamp\n")
    (tmp_path / "items.csv").write_text("item_id,title\n1,Alien\n")
    message = evaluate_with(monkeypatch, tmp_path, "--dataset", log)
    assert str(log) in message
    assert "no events" in message
    assert "\n" not in message


def test_a_run_without_a_teacher_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    message = run_main(monkeypatch, "evaluate", "--run_dir", tmp_path)
    assert f"no finished teacher in {tmp_path}" in message


def test_plain_errors_hides_no_bug():
    with pytest.raises(SystemExit, match="error: no events"), plain_errors():
        raise DataError("no events")
    with pytest.raises(SystemExit, match="error: one process"), plain_errors():
        raise LaunchError("one process")
    with pytest.raises(ValueError, match="a bug"), plain_errors():
        raise ValueError("a bug")
    with pytest.raises(SystemExit, match="error: unknown reward"), plain_errors(ValueError):
        raise ValueError("unknown reward")
