"""Settings that make no sense are refused before anything is read or trained, in one line."""

import inspect
from pathlib import Path

import pytest
from trl import DPOConfig, GRPOConfig, ModelConfig, SFTConfig
from trl.trainer import dpo_trainer, grpo_trainer

from anyo_rl.data.task import DataArguments
from anyo_rl.run.settings import UsageError
from anyo_rl.stages import checks
from anyo_rl.stages.arguments import GrpoArguments, PpoArguments, TeacherArguments
from anyo_rl.stages.baselines import BaselineArguments
from anyo_rl.stages.begin import parse
from anyo_rl.stages.judge_arguments import JudgeArguments
from anyo_rl.stages.path_arguments import StarArguments
from anyo_rl.stages.reinforce import checked_method, checked_rewards
from anyo_rl.stages.sample import SampleArguments
from reward.load import load_rewards

TRAINER = ("--use_cpu", "--bf16", "false", "--report_to", "none", "--output_dir", "run")
GRPO = (DataArguments, ModelConfig, TeacherArguments, GrpoArguments, GRPOConfig)


def refused(types: tuple[type, ...], *flags: object, config: Path | None = None) -> str:
    told = [*(TRAINER if any(hasattr(kind, "use_cpu") for kind in types) else ()), *map(str, flags)]
    with pytest.raises(SystemExit) as stop:
        parse(types, config, args=told)
    assert isinstance(stop.value.code, str)
    assert "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.parametrize(
    ("types", "flags", "expected"),
    [
        (GRPO, ("--temperature", -1), "temperature is -1.0: expected above 0"),
        (GRPO, ("--temperature", 0), "temperature is 0.0: expected above 0"),
        (GRPO, ("--temperature", "nan"), "temperature is nan; expected a number"),
        (GRPO, ("--learning_rate", "inf"), "learning_rate is inf: expected 0 to 1"),
        (GRPO, ("--learning_rate", "1e10"), "learning_rate is 10000000000.0: expected 0 to 1"),
        (GRPO, ("--max_steps", 0), "max_steps is 0: expected 1 or more, or -1"),
        (GRPO, ("--seed", 2**32), "seed is 4294967296: expected 0 to"),
        (GRPO, ("--max_validation", -1), "max_validation is -1: expected 1 or more"),
        (GRPO, ("--rank_cap", 10**400), f"rank_cap is {10**59}: expected"),
        (GRPO, ("--top_p", 2), "top_p is 2.0: expected above 0 and up to 1"),
        (GRPO, ("--beta", -1), "beta is -1.0: expected 0 to 100"),
        (GRPO, ("--epsilon", -1), "epsilon is -1.0: expected 0 to 100"),
        (GRPO, ("--loss_type", "nope"), "loss_type is 'nope'; expected one of grpo, dr_grpo"),
        (GRPO, ("--rank_cap", -1), "rank_cap is -1: expected 0 or more"),
        (GRPO, ("--n_paths", 0), "n_paths is 0: expected 1 to 10,000"),
        (GRPO, ("--early_answer_share", 1.5), "early_answer_share is 1.5: expected 0 to 1"),
        (GRPO, ("--min_gain_spread", -1), "min_gain_spread is -1.0: expected 0 or more"),
        (GRPO, ("--save_only_model", "true"), "save_only_model is true"),
        (GRPO, ("--resume_from_checkpoint", "nowhere"), "resume_from_checkpoint is 'nowhere'"),
        (GRPO, ("--scale_rewards", "nope"), "scale_rewards is 'nope'; expected one of group, batch, none"),
        (GRPO, ("--importance_sampling_level", "nope"), "expected one of token, sequence"),
        (GRPO, ("--sync_ref_model", "true"), "sync_ref_model is true and beta is 0"),
        ((DPOConfig,), ("--f_divergence_type", "nope"), "f_divergence_type is 'nope'; expected one of reverse_kl"),
        ((DPOConfig,), ("--loss_type", "nope"), "loss_type is 'nope'; expected one of sigmoid"),
        ((SFTConfig,), ("--max_length", 0), "max_length is 0: expected 1 to 10,000,000"),
        ((PpoArguments,), ("--critic_learning_rate", -1), "critic_learning_rate is -1.0: expected above 0"),
        ((StarArguments,), ("--patience", -1), "patience is -1: expected 1 or more"),
        ((StarArguments,), ("--rounds", -1), "rounds is -1: expected 1 or more"),
        ((StarArguments,), ("--hint_share", 2), "hint_share is 2.0: expected 0 to 1"),
        ((StarArguments,), ("--temperature", -1), "temperature is -1.0: expected 0 to 100"),
        ((SampleArguments,), ("--top_p", 0), "top_p is 0.0: expected above 0 and up to 1"),
        ((ModelConfig,), ("--lora_r", 0), "lora_r is 0: expected 1 to 100,000"),
    ],
)
def test_numbers_out_of_their_bounds_are_refused(types, flags, expected):
    assert expected in refused(types, *flags)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n_paths: null", "n_paths is null; expected a whole number"),
        ("toy_users: true", "toy_users is true; expected a whole number"),
        ("max_history: [1]", "max_history is [1]; expected a whole number"),
        ("learning_rate: .nan", "learning_rate is nan; expected a number"),
        ("reward_weights: [a]", "reward_weights is ['a']; expected a list, each a number or null"),
        ("gradient_checkpointing_kwargs: [1]", "gradient_checkpointing_kwargs is [1]; expected a mapping"),
        ("lora_r: {a: 1}", "lora_r is a mapping; expected a whole number"),
        ("seed: 1\nbeta: 0.1\nseed: 2", "seed is set twice, again in line 3: keep one"),
        ("reward_kwargs: {ndcg: {k: 1, k: 2}}", "k is set twice, again in line 1"),
        ("- seed: 1", "expected a setting in each line, as `name: value`; found a list"),
        ("seed:\n\t1", "no YAML can be read there: while scanning"),
    ],
)
def test_yaml_of_a_wrong_type_is_refused(tmp_path, text, expected):
    config = tmp_path / "c.yaml"
    config.write_text(f"{text}\n")
    assert refused(GRPO, config=config).startswith(f"{config}: {expected}")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"concurrency": "x"}, "judge.concurrency is 'x'; expected a whole number"),
        ({"model": 3}, "judge.model is 3; expected a text or null"),
        ({"prompt_file": 3}, "judge.prompt_file is 3; expected a text or null"),
    ],
)
def test_settings_in_a_mapping_have_types_too(settings, expected):
    with pytest.raises(UsageError, match=expected):
        JudgeArguments(judge={"model": "m", **settings}).judge_values()
    with pytest.raises(UsageError, match=r"start\.sasrec\.dropout is 'x'; expected a number"):
        BaselineArguments(start={"sasrec": {"dropout": "x"}})


def test_a_flag_of_a_wrong_type_is_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(GRPO, args=[*TRAINER, "--n_paths", "two"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: argument --n_paths/--n-paths: invalid int value: 'two'\n"


def test_vllm_that_is_not_installed_is_told_at_once(monkeypatch):
    monkeypatch.setattr(checks, "is_vllm_available", lambda: False)
    assert "vLLM is asked for and not installed" in refused(GRPO, "--use_vllm", "true")
    assert "vLLM is asked for and not installed" in refused((StarArguments,), "--engine", "vllm")


@pytest.mark.parametrize(("kind", "module"), [(GRPOConfig, grpo_trainer), (DPOConfig, dpo_trainer)])
def test_the_names_of_choices_are_those_of_trl(kind, module):
    source = inspect.getsource(module)
    for name, known in checks.CHOICES[kind].items():
        assert all(f'"{one}"' in source for one in known)
        default = getattr(kind(output_dir="run", use_cpu=True, bf16=False, report_to="none"), name)
        assert set(default if isinstance(default, list) else [default]) <= set(known)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--ranker", "match"), "set item_loss to none, or ranker to likelihood"),
        (("--ranker", "match", "--item_loss", "none", "--top_k", 5), "items are written with transformers"),
        (("--ranker", "match", "--item_loss", "none", "--advantages", "progress"), "credit for steps and PPO need"),
        (("--reward_weights", 1, 2), "reward_weights has 2 and reward_funcs 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_training(flags, expected):
    _, model_args, _, grpo_args, training_args, _ = parse(GRPO, args=[*TRAINER, *map(str, flags)])

    def check() -> None:
        checked_rewards(load_rewards, grpo_args, training_args)
        checked_method(grpo_args, training_args, model_args)

    with pytest.raises(ValueError, match=expected):
        check()


def test_a_separate_critic_has_no_adapters():
    args = parse(
        (ModelConfig, PpoArguments, GRPOConfig), args=[*TRAINER, "--critic", "separate", "--use_peft", "true"]
    )
    with pytest.raises(ValueError, match="a separate critic is trained whole"):
        checked_method(args[1], args[2], args[0])
