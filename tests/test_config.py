import dataclasses
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
from trl import GRPOConfig, ModelConfig, SFTConfig

from anyo_rl.config import ReasonerArguments, TeacherArguments, parse, parse_warm_start, plain_errors, sft_config_path
from anyo_rl.data.schema import DataError
from anyo_rl.launch import LaunchError
from anyo_rl.run_folder import RunFolderError
from anyo_rl.stages import direct_max_steps
from anyo_rl.task import DataArguments
from anyo_rl.training.callbacks import check_saves

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
TYPES = (DataArguments, TeacherArguments, ReasonerArguments)


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> list[str]:
        (tmp_path / "c.yaml").write_text(text)
        return ["--config", str(tmp_path / "c.yaml")]

    return write


class Parsed(Exception):
    """Carries what a recipe asked to be parsed."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_shipped_config_parses_with_its_recipe(path, monkeypatch, tmp_path):
    kind = next(name for name in ("sft", "grpo", "dpo") if name in path.stem.split("_"))
    recipe = importlib.import_module(f"recipes.{kind}_teacher")

    def keep(types, **kwargs):
        raise Parsed(types, kwargs.get("defaults"))

    monkeypatch.setattr(recipe, "parse", keep)
    with pytest.raises(Parsed) as asked:
        recipe.main()
    types, defaults = asked.value.args
    flags = ["--use_cpu", "--output_dir", str(tmp_path)]
    *parsed, config = parse(types, args=["--config", str(path), *flags], defaults=defaults)
    assert config == path
    check_saves(parsed[-1])
    found = {type(instance): instance for instance in parsed}
    if ReasonerArguments in found and found[ReasonerArguments].sft_config:
        sft_args, _ = parse_warm_start(
            found[ReasonerArguments].sft_config, config, found[GRPOConfig], found[TeacherArguments]
        )
        check_saves(sft_args)
        assert direct_max_steps(sft_args, found[GRPOConfig]) == sft_args.max_steps + found[GRPOConfig].max_steps


def test_flags_go_over_yaml_and_yaml_over_defaults(config):
    args = [*config("tiny_layers: 2\nitem_loss: all\nsplit_ratios: [8, 1, 1]\n"), "--tiny_layers", "3"]
    data, teacher, reasoner, path = parse(TYPES, args=args)
    assert (teacher.tiny_layers, reasoner.item_loss, data.split_ratios) == (3, "all", [8, 1, 1])
    assert teacher.n_paths == TeacherArguments().n_paths
    assert path == Path(args[1])
    *_, none = parse(TYPES, args=[])
    assert none is None


def test_the_default_config_is_for_want_of_another(config, tmp_path):
    default = tmp_path / "default.yaml"
    default.write_text("tiny_layers: 7\n")
    assert parse(TYPES, default, args=[])[1].tiny_layers == 7
    assert parse(TYPES, default, args=config("n_paths: 2\n"))[1].tiny_layers == TeacherArguments().tiny_layers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tiny_layer: 2\n", "tiny_layer"),
        ("item_loss: beast\n", "item_loss is 'beast'; expected one of none, best, all, mixture"),
        ("eval_mode: 3\n", "eval_mode is 3; expected one of plain, greedy, mixture"),
        ("split: user\n", "split is 'user'; expected one of users"),
        ("prompt_style: xml\n", "prompt_style is 'xml'"),
        ("- a\n- b\n", "must contain a YAML mapping"),
        ("a: [1\n", "c.yaml"),
    ],
)
def test_wrong_yaml_is_refused_by_name(config, text, expected):
    with pytest.raises(SystemExit) as refused:
        parse(TYPES, args=config(text))
    assert expected in str(refused.value.code)
    assert "c.yaml" in str(refused.value.code)


def test_values_of_the_wrong_kind_are_refused_by_name(config, capsys):
    with pytest.raises(SystemExit):
        parse(TYPES, args=config("tiny_layers: two\n"))
    assert "--tiny_layers" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse(TYPES, args=["--item_loss", "beast"])
    assert "--item_loss" in capsys.readouterr().err


def test_unknown_flags_and_missing_files_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="tiny_layer_"):
        parse(TYPES, args=["--tiny_layer_", "2"])
    with pytest.raises(SystemExit, match=r"no config file at .*nowhere\.yaml"):
        parse(TYPES, args=["--config", str(tmp_path / "nowhere.yaml")])


@pytest.mark.parametrize("joined", [True, False])
def test_config_is_found_however_it_is_written(config, tmp_path, joined):
    default = tmp_path / "default.yaml"
    default.write_text("tiny_layers: 7\n")
    flag, path = config("tiny_layers: 5\n")
    args = [f"{flag}={path}"] if joined else [flag, path]
    *_, teacher, found = parse((TeacherArguments,), default, args=args)
    assert (teacher.tiny_layers, found) == (5, Path(path))


def test_a_config_flag_without_a_path_is_refused():
    with pytest.raises(SystemExit, match="--config"):
        parse(TYPES, args=["--config"])


def test_trl_arguments_are_parsed_beside_ours(config, tmp_path):
    args = config(f"learning_rate: 1e-4\nbf16: false\nuse_cpu: true\noutput_dir: {tmp_path}\nuse_peft: true\n")
    _, model, training, _ = parse((TeacherArguments, ModelConfig, SFTConfig), args=args)
    assert (training.learning_rate, model.use_peft) == (1e-4, True)


def test_every_argument_has_a_help_text():
    for kind in TYPES:
        for field in dataclasses.fields(kind):
            assert field.metadata.get("help", "").endswith("."), f"{kind.__name__}.{field.name}"


def test_the_warm_starts_config_lies_beside_its_own_or_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "sft.yaml").touch()
    assert sft_config_path("sft.yaml", None) == Path("sft.yaml")
    assert sft_config_path("sft.yaml", tmp_path / "a" / "grpo.yaml") == Path("sft.yaml")
    (tmp_path / "a" / "sft.yaml").touch()
    assert sft_config_path("sft.yaml", tmp_path / "a" / "grpo.yaml") == tmp_path / "a" / "sft.yaml"
    with pytest.raises(SystemExit, match=r"no sft_config 'x\.yaml'; looked at"):
        sft_config_path("x.yaml", None)


def test_plain_errors_hides_no_bug():
    for error in (DataError("no events"), LaunchError("one process"), RunFolderError("another run")):
        with pytest.raises(SystemExit, match=f"error: {error}"), plain_errors():
            raise error
    with pytest.raises(ValueError, match="a bug"), plain_errors():
        raise ValueError("a bug")
    with pytest.raises(SystemExit, match="error: unknown reward"), plain_errors(ValueError):
        raise ValueError("unknown reward")


def test_defaults_are_below_yaml_and_others_are_ignored(config):
    defaults = {"tiny_layers": 9, "n_paths": 7, "not_asked_for": 1}
    _, teacher, *_ = parse(TYPES, args=[*config("n_paths: 5\n")], defaults=defaults)
    assert (teacher.tiny_layers, teacher.n_paths) == (9, 5)


def test_a_hub_token_is_no_argument(config, tmp_path):
    args = config(f"use_cpu: true\nbf16: false\noutput_dir: {tmp_path}\nhub_token: sentinel\n")
    with pytest.raises(SystemExit, match="set HF_TOKEN in the environment") as refused:
        parse((SFTConfig,), args=args)
    assert "sentinel" not in str(refused.value)


def test_more_generations_than_the_evaluation_batch_are_fine(tmp_path):
    # Validation never samples by groups; TRL's check of its batch size would refuse this.
    flags = ["--use_cpu", "--bf16", "false", "--output_dir", str(tmp_path), "--eval_strategy", "steps"]
    flags += ["--num_generations", "16", "--per_device_train_batch_size", "16", "--eval_steps", "1"]
    training, _ = parse((GRPOConfig,), args=flags, defaults={"num_generations_eval": 1})
    assert training.num_generations == 16
    with pytest.raises(SystemExit, match="number of generations used for evaluation"):
        parse((GRPOConfig,), args=flags)


@pytest.fixture
def warm_start(tmp_path):
    """Parses a warm start for a run with the given YAML and flags; both files get a few trainer settings."""

    def parsed(own: str, warm: str, **flags):
        (tmp_path / "grpo.yaml").write_text(own)
        (tmp_path / "sft.yaml").write_text(f"{warm}bf16: false\nmax_steps: 5\n")
        grpo = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_steps=7, seed=3)
        return parse_warm_start("sft.yaml", tmp_path / "grpo.yaml", grpo, TeacherArguments(**flags)), grpo

    return parsed


def test_a_warm_start_has_its_own_trainer_settings_and_patience(warm_start):
    warm = "tiny_layers: 2\nearly_stopping_patience: 4\nmax_validation: 300\nlora_r: 8\n"
    (sft, teacher), grpo = warm_start("tiny_layers: 2\nlora_r: 8\n", warm, tiny_layers=6, n_paths=2)
    assert (sft.max_steps, sft.seed, sft.use_cpu) == (5, 3, True)
    assert (teacher.tiny_layers, teacher.n_paths, teacher.early_stopping_patience) == (
        6,
        2,
        4,
    )  # a flag holds for both
    assert direct_max_steps(sft, grpo) == 12


@pytest.mark.parametrize(
    ("own", "warm", "named"),
    [
        ("dataset: toy\n", "dataset: office\n", "dataset is 'office' there and 'toy' in"),
        ("", "tiny_layers: 2\n", "tiny_layers is 2 there and 4 in"),
        ("use_peft: true\n", "use_peft: false\n", "use_peft is False there and True in"),
        ("", "rationale_attributes: [genres]\n", "rationale_attributes"),
    ],
)
def test_a_warm_start_of_other_data_model_or_teacher_is_refused(warm_start, own, warm, named):
    with pytest.raises(SystemExit, match=r"sft\.yaml: a warm start has the run's data, model and teacher") as refused:
        warm_start(own, warm)
    assert named in str(refused.value)


@pytest.mark.parametrize("steps", [(-1, 7), (5, -1), (-1, -1)])
def test_a_budget_of_direct_needs_steps(steps):
    sft, grpo = (SimpleNamespace(max_steps=n) for n in steps)
    with pytest.raises(ValueError, match="train_direct needs max_steps in both"):
        direct_max_steps(sft, grpo)
