import json
from pathlib import Path

import pytest
from trl import GRPOConfig, ModelConfig

from anyo_rl.evaluation.convergence import Rule
from anyo_rl.run.folder import WARM_START
from anyo_rl.stages.arguments import ComparisonArguments, TeacherArguments
from anyo_rl.stages.job import Job
from anyo_rl.stages.warm_start import (
    parse_warm_start,
    recorded,
    sft_config_path,
    train_direct,
    train_warm_start,
)


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


@pytest.fixture
def warm_start(tmp_path):
    """Parses a warm start for a run with the given YAML and flags; both files get a few trainer settings."""

    def parsed(own: str, warm: str, *, train_direct=True, **flags):
        (tmp_path / "grpo.yaml").write_text(own)
        (tmp_path / "sft.yaml").write_text(
            f"{warm}bf16: false\nmax_steps: 5\neval_strategy: steps\nsave_strategy: steps\n"
        )
        grpo = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, max_steps=7, seed=3)
        comparison = ComparisonArguments(sft_config="sft.yaml", train_direct=train_direct)
        return parse_warm_start(comparison, tmp_path / "grpo.yaml", grpo, TeacherArguments(**flags))

    return parsed


def test_a_warm_start_has_its_own_trainer_settings_and_patience(warm_start):
    warm = "tiny_layers: 2\nearly_stopping_patience: 4\nmax_validation: 300\nlora_r: 8\n"
    found = warm_start("tiny_layers: 2\nlora_r: 8\n", warm, tiny_layers=6, n_paths=2)
    assert (found.training_args.max_steps, found.training_args.seed, found.training_args.use_cpu) == (5, 3, True)
    teacher = found.teacher_args  # a flag holds for both
    assert (teacher.tiny_layers, teacher.n_paths, teacher.early_stopping_patience) == (6, 2, 4)
    kept = recorded(found)[WARM_START].settings
    assert (kept["max_steps"], kept["early_stopping_patience"]) == (5, 4)


def test_direct_has_the_flops_of_all_that_it_is_compared_with(warm_start, tmp_path, monkeypatch):
    """SFT's and GRPO's, not a control's; at a constant rate, since nobody knows how many updates that takes."""
    rows = [("sft", 2e9), ("sft", 3e9), ("grpo", 4e9), ("filler", 9e9)]
    lines = [json.dumps({"stage": stage, "step": 1, "flops": flops}) for stage, flops in rows]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    asked = []
    monkeypatch.setattr("anyo_rl.stages.warm_start.train_sft", lambda *given: asked.append(given) or Path("direct"))
    job = Job(tmp_path, None, ModelConfig(), TeacherArguments(early_stopping_patience=3))
    assert train_direct(job, warm_start("", "", train_direct=False)) == train_direct(job, None) == {}
    assert train_direct(job, warm_start("", "")) == {"direct": Path("direct")}
    ((job, stage, args, lesson, (until,)),) = asked
    assert (stage, lesson.reasoning, until.rival_flops, until.rule) == ("direct", "none", 7e9, Rule(0, 0, 1))
    assert (args.lr_scheduler_type, args.max_steps > 1000) == ("constant_with_warmup", True)
    assert job.teacher_args.early_stopping_patience == 0


def test_without_a_config_there_is_no_warm_start():
    def job(model_args):
        return Job(Path("run"), None, model_args, TeacherArguments())

    assert parse_warm_start(ComparisonArguments(sft_config=None), None, None, TeacherArguments()) is None
    with pytest.raises(SystemExit, match="no teacher: set model_name_or_path, or sft_config"):
        train_warm_start(job(ModelConfig()), None)
    named = ModelConfig(model_name_or_path="teacher")
    assert train_warm_start(job(named), None) == {"sft": "teacher"}
    assert recorded(None) == {}


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
