"""The whole of it: configs of parts joined to one another, the stages of the teacher in order, what builds on what."""

from pathlib import Path

import pytest
from trl import ModelConfig

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.run.settings import UsageError
from anyo_rl.stages import anyo
from anyo_rl.stages.anyo import Anyo, AnyoArguments
from anyo_rl.stages.anyo_parts import read_parts
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.begin import parse
from anyo_rl.stages.job import Job
from reward.load import load_rewards

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs" / "toy"


@pytest.fixture
def read(tmp_path):
    """Reads the parts of the shipped config, with flags on top."""

    def read(*flags, config=CONFIGS / "anyo.yaml", **teacher):
        told = ["--config", str(config), "--output_dir", str(tmp_path / "run"), *map(str, flags)]
        args, path = parse((AnyoArguments,), args=told) if config != CONFIGS / "anyo.yaml" else shipped(told)
        return read_parts(args, path, TeacherArguments(**teacher), ModelConfig(), load_rewards)

    def shipped(told):
        args, *_, path = parse((AnyoArguments, DataArguments, ModelConfig, TeacherArguments), args=told)
        return args, path

    return read


def test_parts_are_joined_in_the_run_folder(read, tmp_path):
    parts, run = read("--seed", 3), tmp_path / "run"
    assert parts.baselines.output_dir == str(run / "baselines")
    assert parts.evidence.training_scores
    assert parts.baselines.seeds == parts.evidence.seeds == parts.student.seeds == parts.distill[0].seeds == [3]
    assert list(parts.steps) == ["pretrain", "sft", "grpo"]
    assert {step.training_args.seed for step in parts.steps.values()} == {3}
    assert (parts.cache.stage, parts.cache.mode, parts.cache.run_dir) == ("grpo", "greedy", str(run))
    assert (parts.cache.output_dir, parts.distill[1].teacher_cache) == (str(run / "cache"),) * 2
    assert (parts.student.name, parts.distill[0].name) == ("student", "student_distilled")


def test_a_teacher_that_answers_at_once_is_the_last(read):
    parts = read("--reasoning", "false")
    assert list(parts.steps) == ["pretrain", "direct"]
    assert (parts.cache.stage, parts.cache.mode) == ("direct", "plain")


def test_what_is_finished_elsewhere_takes_the_place_of_a_part(read):
    parts = read(evidence="runs/x/evidence", baselines_from="runs/x/baselines")
    assert parts.evidence is parts.baselines is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--evidence_config", "", "--train_fused", "true"), "train_fused is true and there is no evidence"),
        (("--pretrain_config", "", "--sft_config", "", "--grpo_config", ""), "the run trains none"),
        (("--cache_config", ""), "a student learns from a cache"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(read, flags, message):
    with pytest.raises(UsageError, match=message):
        read(*flags)


def test_a_part_has_the_data_of_the_run(read, tmp_path):
    (tmp_path / "mine.yaml").write_text("baselines_config: part.yaml\n")
    (tmp_path / "part.yaml").write_text("dataset: toy-orders\n")
    with pytest.raises(SystemExit, match="dataset is 'toy-orders' there and 'toy' in"):
        read(config=tmp_path / "mine.yaml")
    (tmp_path / "part.yaml").write_text("names: [popularity]\n")
    assert read(config=tmp_path / "mine.yaml").baselines.names == ["popularity"]


@pytest.fixture
def run(read, tmp_path, monkeypatch):
    """A run whose stages only say what they were asked; it ends with STaR or GRPO as flags say."""

    def run(*flags, **told):
        parts = read(*flags, *["--star_config", CONFIGS / "star_teacher.yaml"][: 2 * bool(told.pop("star", False))])
        task = load_task(DataArguments(toy_users=60, toy_categories=4))
        job = Job(tmp_path / "run", task, ModelConfig(), TeacherArguments(early_stopping_patience=9))
        return Anyo(job, task.args, AnyoArguments(output_dir=str(tmp_path / "run"), **told), parts)

    asked = []

    def stage(job, name, start):
        told = (name, job.model_args.model_name_or_path, start, job.teacher_args.early_stopping_patience)
        asked.append((*told, job.teacher_args.evidence))
        return Path(name)

    monkeypatch.setattr(anyo, "pretrain", lambda job, name, *_: stage(job, name, None))
    monkeypatch.setattr(anyo, "train_sft", lambda job, name, *_: stage(job, name, None))
    monkeypatch.setattr(anyo, "train_reasoning", lambda job, name, start, *_: stage(job, name, start))
    monkeypatch.setattr(anyo, "train_direct", lambda job, _: {"direct": stage(job, "direct", None)})
    run.asked = asked
    return run


def test_each_stage_goes_on_from_the_one_before(run):
    teachers = run().train_teacher()
    assert list(teachers) == ["pretrain", "sft", "grpo", "direct"]
    assert run.asked == [
        ("pretrain", None, None, 0, None),
        ("sft", "pretrain", None, 0, None),
        ("grpo", None, Path("sft"), 0, None),
        ("direct", "pretrain", None, 0, None),
    ]


def test_reinforcement_may_see_the_evidence(run, tmp_path, monkeypatch):
    monkeypatch.setattr(anyo, "check_evidence", lambda *_: None)
    run(train_fused=True).train_teacher()
    assert [told[-1] for told in run.asked] == [None, None, str(tmp_path / "run" / "evidence"), None]


def test_what_builds_on_what(run):
    teachers = dict.fromkeys(["pretrain", "sft", "grpo", "direct"], Path("x"))
    assert run().added(teachers) == [
        ("evidence", "item_knn"),
        ("sft", "pretrain"),
        ("grpo", "sft"),
        ("grpo_fused", "evidence"),
        ("grpo_fused", "grpo"),
        ("student_distilled", "student"),
    ]
    assert run().added({}) == [("evidence", "item_knn"), ("student_distilled", "student")]


def test_the_run_folder_has_each_stages_settings(run):
    mine = run()
    sections = mine.sections()
    assert {"Pretraining", "WarmStart", "GRPOConfig", "GrpoArguments", "AnyoArguments"} <= set(sections)
    found = [sections[name].settings["max_steps"] for name in ("Pretraining", "WarmStart", "GRPOConfig")]
    assert found == [step.training_args.max_steps for step in mine.parts.steps.values()]
    assert len(set(found)) == 3
    assert sections["Pretraining"].settings["cuttings"] == 4
    assert sections["GRPOConfig"].later
    assert not sections["WarmStart"].later
    assert sections["AnyoArguments"].is_free("distill_config")


def test_reasoning_is_not_taught_without_rationales(run):
    mine = run()
    mine.job.task.rationales.clear()
    with pytest.raises(UsageError, match="the data has no rationales"):
        mine.start()
