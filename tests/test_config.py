import dataclasses
import importlib
from pathlib import Path

import pytest
from trl import ModelConfig, SFTConfig

from anyo_rl.config import ReasonerArguments, TeacherArguments, parse, sft_config_path
from anyo_rl.task import DataArguments

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
    kind = next((name for name in ("sft", "grpo") if name in path.stem.split("_")), None)
    recipe = importlib.import_module(f"recipes.{kind}_teacher" if kind else f"recipes.{path.stem}")

    def keep(types, **kwargs):
        raise Parsed(types)

    monkeypatch.setattr(recipe, "parse", keep)
    with pytest.raises(Parsed) as asked:
        recipe.main()
    flags = ["--use_cpu", "--output_dir", str(tmp_path)] if kind else []
    *parsed, config = parse(asked.value.args[0], args=["--config", str(path), *flags])
    assert config == path
    for instance in parsed:
        if isinstance(instance, ReasonerArguments) and instance.sft_config:
            assert sft_config_path(instance.sft_config, config).is_file()


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
