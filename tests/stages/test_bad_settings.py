"""What people write into configs and flags by mistake: each recipe takes it within its bounds, or says what is wrong.

A recipe's own preamble runs, up to where it would load data. Nothing is trained.
"""

import dataclasses
import importlib
import math
import sys
import typing
from pathlib import Path

import numpy as np
import pytest
import yaml

from anyo_rl.run.settings import fits
from anyo_rl.stages.checks import BOUNDS

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "toy"
ON_CPU = {"use_cpu": True, "bf16": False, "report_to": "none"}
TEACHER = {"model_name_or_path": "nowhere/teacher", "paths": "nowhere/paths"}
# Of each recipe: where it loads data, what it is given besides its config.
RECIPES = {
    "grpo_teacher": ("start_job", ON_CPU),
    "ppo_teacher": ("start_job", ON_CPU),
    "sft_teacher": ("start_job", ON_CPU),
    "star_teacher": ("start_job", ON_CPU),
    "dpo_teacher": ("start_job", ON_CPU | TEACHER),
    "train_prm": ("start_job", ON_CPU | TEACHER),
    "sample_paths": ("task_for", {"model_name_or_path": "nowhere/teacher"}),
    "baselines": ("load_task", {}),
    "train_student": ("load_task", {}),
    "distill_student": ("load_task", {}),
    "make_rationales": ("load_task", {"key_variable": None}),
}
# What decides where a run's processes meet, or leaves traces outside of it, is not drawn.
NOT_DRAWN = {
    *("use_cpu", "output_dir", "logging_dir", "deepspeed", "fsdp", "fsdp_config", "parallelism_config", "ddp_backend"),
    *("accelerator_config", "torch_compile", "full_determinism", "push_to_hub", "hub_token", "local_rank", "config"),
}
VALUES = (
    *(
        "abc",
        "''",
        "null",
        "true",
        "no",
        "[1, 2]",
        "[]",
        "{a: 1}",
        "[[1]]",
        "é",
        "1:30",
        "2020-01-01",
        "nowhere/x.yaml",
    ),
    *("-1", "0", "-0.5", "0.5", "2.5", "7", "1e10", "1.0e+10", "1e-5", "10000000000000000000000000", "1.0e+300"),
    *("5.0e-324", ".inf", "-.inf", ".nan", "nan", "'3'", "'0x10'", "1_000", "'1,000'", "-3", "99999", "1" + "0" * 400),
)
OFTEN = (
    *("learning_rate", "warmup_steps", "weight_decay", "temperature", "top_p", "num_generations", "max_steps", "beta"),
    *("gradient_accumulation_steps", "eval_steps", "save_steps", "logging_steps", "epsilon", "n_paths", "seed"),
    *("max_reasoning_tokens", "max_history", "toy_users", "reward_funcs", "reward_kwargs", "ranker", "sft_config"),
)
IN_RANGE = {
    "learning_rate": 1,
    "weight_decay": 1,
    "temperature": 100,
    "top_p": 1,
    "num_generations": 10_000,
    "beta": 100,
}


class Begun(BaseException):
    """The recipe has taken its settings: the dataclasses that it goes on with."""


def stopped(error: type[BaseException], main) -> BaseException:
    with pytest.raises(error) as stop:
        main()
    return stop.value


def run(monkeypatch, recipe: str, *flags: str) -> BaseException:
    """What ends a recipe's preamble."""
    module = importlib.import_module(f"recipes.{recipe}")

    def begun(*args, **kwargs):
        raise Begun([each for each in args if dataclasses.is_dataclass(each)])

    monkeypatch.setattr(module, RECIPES[recipe][0], begun)
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *flags])
    return stopped((Begun, SystemExit), module.main)


def kinds_of(monkeypatch, recipe: str) -> tuple[type, ...]:
    """The dataclasses that a recipe is told."""

    def told(kinds, *args, **kwargs):
        raise Begun(kinds)

    module = importlib.import_module(f"recipes.{recipe}")
    with monkeypatch.context() as patch:
        patch.setattr(module, "begin", told)
        patch.setattr(sys, "argv", [recipe])
        return stopped(Begun, module.main).args[0]


def base_config(recipe: str, folder: Path) -> dict:
    file = CONFIGS / f"{recipe}.yaml"
    shipped = yaml.safe_load(file.read_text()) if file.is_file() else {}
    return {**shipped, "output_dir": str(folder / "run"), **RECIPES[recipe][1]}


def drawn(random, recipe: str, numbers: dict[str, type | None], folder: Path) -> tuple[str, list[str], list[str]]:
    """The text of a config, flags, and one of which words a refusal has to have."""
    names = sorted(numbers)

    def pick(choices):
        return choices[random.integers(len(choices))]

    def value(name):
        if numbers[name] is None or random.random() < 0.4:
            return pick(VALUES)
        size = 10.0 ** random.uniform(-3, 6) if random.random() < 0.7 else 10.0 ** random.uniform(-15, 15)
        return str(int(size)) if numbers[name] is int else f"{size:e}"

    config = base_config(recipe, folder)
    if random.random() < 0.8:
        config.pop("sft_config", None)
    elif "sft_config" in config:
        config["sft_config"] = str(CONFIGS / config["sft_config"])
    habit = pick(["value"] * 8 + ["flag"] * 4 + ["two", "unknown", "twice", "tab", "list", "empty", "bytes", "number"])
    often = [name for name in OFTEN if name in names]
    name = pick(often) if often and random.random() < 0.6 else pick(names)
    lines = yaml.safe_dump({key: value for key, value in config.items() if key != name}, sort_keys=False)
    flags: list[str] = []
    if habit in ("value", "two"):
        words = [name, *([pick(names)] if habit == "two" else [])]
        lines = yaml.safe_dump({k: v for k, v in config.items() if k not in words}, sort_keys=False)
        return lines + "".join(f"{word}: {value(word)}\n" for word in dict.fromkeys(words)), flags, words
    if habit == "flag":
        return (
            lines,
            [f"--{name}={value(name)}" if random.random() < 0.8 else f"--{name}"],
            [name, name.replace("_", "-")],
        )
    if habit == "unknown":
        return f"{lines}{name}x: 1\n", flags, [f"{name}x"]
    if habit == "twice":
        return f"{lines}{name}: 1\n# again\n{name}: 2\n", flags, [name]
    text = {
        "tab": f"{lines}{name}:\n\t1\n",
        "list": "- 1\n",
        "empty": "# nothing\n",
        "bytes": "seed: \udcff",
        "number": "1: 2",
    }
    return text[habit], flags, ["config.yaml"]


def check_range(told: list) -> None:
    """What a recipe goes on with can be used: finite, plausible, and of the types that it is declared to be."""
    for instance in told:
        hints = (
            typing.get_type_hints(type(instance))
            if type(instance).__module__.startswith(("anyo_rl", "recipes"))
            else {}
        )
        for field in dataclasses.fields(instance):
            value = getattr(instance, field.name, None)
            for number in value if isinstance(value, list) else [value]:
                if isinstance(number, int | float):
                    assert abs(number) <= 1e12, field.name
                    assert not math.isnan(number), field.name
                    assert number <= IN_RANGE.get(field.name, math.inf), field.name
            assert field.name not in hints or fits(value, hints[field.name]), field.name


def check_one(monkeypatch, capsys, tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    recipe = list(RECIPES)[seed % len(RECIPES)]
    numbers = {
        field.name: next(
            (one for one in (int, float) if typing.get_type_hints(kind)[field.name] in (one, one | None)), None
        )
        for kind in kinds_of(monkeypatch, recipe)
        for field in dataclasses.fields(kind)
        if field.init and field.name not in NOT_DRAWN and not field.name.startswith("vllm")
    }
    text, flags, words = drawn(random, recipe, numbers, tmp_path)
    words += ["reward '"] if "reward_funcs" in words else []  # those are said by their own names
    config = tmp_path / "config.yaml"
    config.write_bytes(text.encode(errors="surrogateescape"))
    monkeypatch.chdir(tmp_path)
    end = run(monkeypatch, recipe, "--config", str(config), *flags)
    if isinstance(end, Begun):
        check_range(end.args[0])
        return
    said = capsys.readouterr().err.strip() if end.code == 2 else end.code
    assert isinstance(said, str)
    assert "\n" not in said
    assert any(word in said for word in words), (words, said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", range(60))
def test_bad_settings_are_taken_within_bounds_or_named(monkeypatch, capsys, tmp_path, seed):
    check_one(monkeypatch, capsys, tmp_path, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60, 300))
def test_more_bad_settings(monkeypatch, capsys, tmp_path, seed):
    check_one(monkeypatch, capsys, tmp_path, seed)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_shipped_configs_are_taken(monkeypatch, tmp_path, recipe):
    config = tmp_path / "config.yaml"
    shipped = base_config(recipe, tmp_path)
    if "sft_config" in shipped:
        shipped["sft_config"] = str(CONFIGS / shipped["sft_config"])
    config.write_text(yaml.safe_dump(shipped))
    end = run(monkeypatch, recipe, "--config", str(config))
    assert isinstance(end, Begun), end
    check_range(end.args[0])


def test_the_plausible_ranges_are_those_that_are_checked():
    for name, most in IN_RANGE.items():
        assert BOUNDS[name].most == most
