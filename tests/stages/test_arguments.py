import dataclasses
import importlib
from pathlib import Path

import pytest
from trl import GRPOConfig, ModelConfig, SFTConfig

from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments
from anyo_rl.run.folder import RunFolderError
from anyo_rl.run.launch import LaunchError
from anyo_rl.stages import checks
from anyo_rl.stages.agent_arguments import AgentArguments
from anyo_rl.stages.anyo import AnyoArguments
from anyo_rl.stages.anyo_parts import read_parts
from anyo_rl.stages.arguments import (
    ComparisonArguments,
    GrpoArguments,
    TeacherArguments,
)
from anyo_rl.stages.baselines import BaselineArguments
from anyo_rl.stages.begin import parse, plain_errors
from anyo_rl.stages.cache import CacheArguments
from anyo_rl.stages.evidence import EvidenceArguments
from anyo_rl.stages.server_arguments import ServerArguments
from anyo_rl.stages.student_arguments import StudentArguments
from anyo_rl.stages.warm_start import parse_warm_start
from anyo_rl.training.loop.callbacks import check_saves
from reward.load import load_rewards

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "recipes" / "configs").rglob("*.yaml"))
TYPES = (DataArguments, TeacherArguments, GrpoArguments)


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
    kinds = (
        "sft",
        "grpo",
        "ppo",
        "dpo",
        "star",
        "rationales",
        "prm",
        "baselines",
        "compare",
        "evidence",
        "student",
        "pretrain",
        "reasoning",
        "anyo",
        "agent",
    )
    kind = next(name for name in (*kinds, "cache") if name in path.stem.split("_"))
    trains = kind not in ("rationales", "baselines", "evidence", "student", "cache", "anyo")
    others = {"rationales": "make_rationales", "prm": "train_prm", "evidence": "rank_evidence"}
    others |= {name: name for name in ("baselines", "compare", "anyo")}
    others |= {"student": path.stem, "reasoning": "distill_reasoning"}
    recipe = importlib.import_module(f"recipes.{others.get(kind, f'{kind}_teacher')}")

    def keep(types, **kwargs):
        raise Parsed(types, kwargs.get("defaults"))

    monkeypatch.setattr(recipe, "begin", keep)
    with pytest.raises(Parsed) as asked:
        recipe.main()
    types, defaults = asked.value.args
    flags = [*(["--use_cpu"] if trains else []), "--output_dir", str(tmp_path)]
    *parsed, config = parse(types, args=["--config", str(path), *flags], defaults=defaults)
    assert config == path
    found = {type(instance): instance for instance in parsed}
    if kind == "baselines":
        args = found[BaselineArguments]
        assert args.tune or args.starts  # what is not tuned here was chosen before
        return
    if kind == "agent":
        assert found[AgentArguments].config.n_test > 0
        check_saves(found[GRPOConfig])
        return
    if kind == "anyo":
        read = read_parts(found[AnyoArguments], config, found[TeacherArguments], found[ModelConfig], load_rewards)
        assert read.distill is not None
        return
    if kind == "evidence":
        assert set(found[EvidenceArguments].candidate_lists) <= set(found[EvidenceArguments].retrievers)
        return
    if kind == "student":
        assert found[StudentArguments].start.learning_rate > 0
        return
    if kind == "cache":
        assert found[CacheArguments].source != "evidence" or found[TeacherArguments].evidence
        return
    if not trains:
        assert found[ServerArguments].server().has_budget
        return
    check_saves(parsed[-1])
    for comparison in (instance for instance in parsed if isinstance(instance, ComparisonArguments)):
        warm_start = parse_warm_start(comparison, config, parsed[-1], found[TeacherArguments])
        assert (warm_start is None) == (not comparison.sft_config)


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
        ("- a\n- b\n", "expected a setting in each line, as `name: value`; found a list"),
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


def test_attention_that_is_not_there_is_refused_at_the_start(config, monkeypatch):
    flash = config("attn_implementation: flash_attention_2\n")
    monkeypatch.setattr(checks, "is_flash_attn_2_available", lambda: False)
    with pytest.raises(SystemExit, match="attn_implementation is 'flash_attention_2', for which its package or a GPU"):
        parse((TeacherArguments, ModelConfig), args=flash)
    monkeypatch.setattr(checks, "is_flash_attn_2_available", lambda: True)
    assert parse((TeacherArguments, ModelConfig), args=flash)[1].attn_implementation == "flash_attention_2"
    _, model, _ = parse((TeacherArguments, ModelConfig), args=config("attn_implementation: eager\n"))
    assert model.attn_implementation == "eager"


def test_every_argument_has_a_help_text():
    for kind in TYPES:
        for field in dataclasses.fields(kind):
            assert field.metadata.get("help", "").endswith("."), f"{kind.__name__}.{field.name}"


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


def test_baselines_have_known_names_and_a_seed():
    with pytest.raises(ValueError, match="names has bert4rec; expected some of popularity, item_knn"):
        BaselineArguments(names=["sasrec", "bert4rec"])
    with pytest.raises(ValueError, match="seeds is empty"):
        BaselineArguments(seeds=[])
