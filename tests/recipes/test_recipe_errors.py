"""What a user gets wrong ends in one line that says what to do, not in a library's traceback."""

import runpy
import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def run_main(monkeypatch: pytest.MonkeyPatch, recipe: str, *flags: object) -> str:
    """Runs a recipe's main in this process until it gives up; returns its last words."""
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(RECIPES / f"{recipe}.py"))["main"]()
    # A text is printed to stderr by Python, and the exit status is 1.
    assert isinstance(stop.value.code, str)
    return stop.value.code


@pytest.mark.parametrize("recipe", ["grpo_teacher", "sft_teacher", "dpo_teacher"])
def test_an_unknown_key_in_yaml_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str):
    config = tmp_path / "mine.yaml"
    config.write_text("dataset: toy\nuse_cpu: true\nlaerning_rate: 1.0e-3\n")
    message = run_main(monkeypatch, recipe, "--config", config)
    assert "laerning_rate" in message
    assert str(config) in message


@pytest.mark.parametrize("recipe", ["grpo_teacher", "sft_teacher", "dpo_teacher"])
def test_a_missing_config_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recipe: str):
    message = run_main(monkeypatch, recipe, "--config", tmp_path / "nowhere.yaml")
    assert "nowhere.yaml" in message
    assert "recipes/configs" in message


def evaluate_with(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *flags: object) -> str:
    """The recipe that reads data first thing, once there is something to evaluate."""
    (tmp_path / "run" / "sft" / "teacher").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("{}\n")
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


def test_a_run_without_a_teacher_and_a_folder_without_a_run_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    message = run_main(monkeypatch, "evaluate", "--run_dir", tmp_path)
    assert f"found no {tmp_path / 'config.yaml'}" in message
    (tmp_path / "config.yaml").write_text("DataArguments: {dataset: toy}\n")
    message = run_main(monkeypatch, "evaluate", "--run_dir", tmp_path)
    assert f"no finished teacher in {tmp_path}" in message


TRAINER = ("--use_cpu", "--bf16", "false", "--report_to", "none", "--output_dir")


def test_checkpoints_without_validations_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for recipe in ("grpo_teacher", "sft_teacher", "dpo_teacher"):
        message = run_main(monkeypatch, recipe, *TRAINER, tmp_path / "run", "--save_steps", 30)
        assert "save_steps is 30 and eval_steps is" in message
    assert not (tmp_path / "run").exists()


def test_dpo_without_a_teacher_or_paths_says_what_to_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    message = run_main(monkeypatch, "dpo_teacher", *TRAINER, tmp_path / "run")
    assert "no teacher: set model_name_or_path to the teacher that the paths were sampled from" in message
    message = run_main(monkeypatch, "dpo_teacher", *TRAINER, tmp_path / "run", "--model_name_or_path", "somewhere")
    assert "no paths: set paths to the folder of a sampling job" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--prompt_path", "nowhere.yaml"), "found no prompt file nowhere.yaml"),
        (("--n_candidates", 3), "n_candidates is 3 for kind post_hoc"),
        (("--max_examples", 0), "max_examples is 0"),
        (("--parameters", '{"api_key": "sentinel"}'), "parameters hold api_key"),
        (("--url", "http://user:sentinel@localhost/v1"), "url holds a user, a password or a query"),
        (("--leak_words", -1), "leak_words is -1"),
        (("--kind", "hindsight"), "invalid choice"),
        (("--rationales_path", "runs/other"), "rationales_path is what this recipe makes"),
    ],
)
def test_what_is_wrong_with_a_question_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture, flags: tuple, expected: str
):
    run = tmp_path / "run"
    small = ("--toy_users", 60, "--output_dir", run)
    monkeypatch.setattr(sys, "argv", [str(part) for part in ("make_rationales.py", *small, *flags)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(RECIPES / "make_rationales.py"))["main"]()
    said = f"{stop.value.code} {capsys.readouterr().err}"
    assert expected in said
    assert "sentinel" not in said
    assert not run.exists()
