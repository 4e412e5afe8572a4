"""A PRM from the smoke run: as documented, killed and resumed, as a reward, and with LoRA on two processes."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from safetensors.numpy import load_file

from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import make_rows
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.shards import ShardedJob
from anyo_rl.stages.sample import EngineChoice, JobEngine, sample_in_shards
from anyo_rl.values.prm import Prm

SMOKE = Path(__file__).parent / "configs"

pytestmark = pytest.mark.slow


@pytest.fixture
def job(asked, tmp_path) -> Path:
    """A sampling job of two paths for each of a few training examples."""
    rows = make_rows(asked.task, asked.task.split("train").head(12), asked.catalog, asked.tokens)
    folder, sampling = tmp_path / "job", Sampling(n=2, max_new_tokens=16)
    sample_in_shards(
        rows,
        ShardedJob(folder, sampling, policy="sft", n_shards=2, split="train"),
        JobEngine(EngineChoice(), "sft", asked.model, asked.tokens, sampling),
        asked.catalog,
        ranker=LikelihoodRanker(asked.catalog, asked.model),
    )
    return folder


def flags(finished_run, job: Path, run: Path) -> tuple[object, ...]:
    start = ("--model_name_or_path", finished_run.teacher, "--paths", job)
    return ("--config", SMOKE / "prm.yaml", *start, "--output_dir", run)


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "prm" / "model" / "model.safetensors")


def test_paths_are_labelled_and_the_prm_is_measured_and_serves(finished_run, launcher, job, tmp_path):
    whole = tmp_path / "whole"
    output = launcher.finish("train_prm", *flags(finished_run, job, whole))
    assert f"PRM: {whole / 'prm' / 'model'}" in output
    quality = json.loads((whole / "prm" / "quality.json").read_text())
    assert (quality["n_examples"], quality["n_paths"]) == (8, 16)
    assert 0 <= quality["calibration"]["ece"] <= 1
    assert "Spearman within an example" in (whole / "prm" / "quality.md").read_text()
    assert (whole / "prm" / "calibration.svg").read_text().startswith("<svg xmlns=")
    labels = {
        split: pl.read_parquet(whole / "prm" / "labels" / f"{split}.parquet") for split in ("train", "validation")
    }
    assert {split: len(frame) for split, frame in labels.items()} == {"train": 24, "validation": 16}
    for frame in labels.values():
        assert frame["step_values"].list.len().min() >= 1
        assert frame["step_values"].explode().is_between(0, 1).all()
    assert set(labels["train"]["user_id"]).isdisjoint(labels["validation"]["user_id"])
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "eval_loss" in row] == [2, 4]

    prm = Prm.load(whole / "prm" / "model")
    scores = prm.scores(labels["train"]["prompt_ids"].to_list(), labels["train"]["token_ids"].to_list())
    assert [len(one) for one in scores] == labels["train"]["step_values"].list.len().to_list()

    # GRPO takes it as a reward, and as the values of states between steps.
    model, config, run = str(whole / "prm" / "model"), tmp_path / "grpo.yaml", tmp_path / "grpo"
    settings = yaml.safe_load((SMOKE / "grpo.yaml").read_text()) | {"reward_kwargs": {"process": {"model": model}}}
    config.write_text(yaml.safe_dump(settings))
    asked = ("--reward_funcs", "ndcg", "process", "--advantages", "progress", "--step_values", "prm", "--prm", model)
    short = finished_run.short_flags(*asked, "--output_dir", run)
    launcher.finish("grpo_teacher", "--config", config, *short[2:])
    (row,) = [r for r in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "values/first" in r]
    assert 0 < row["values/first"] < 1
    assert 0 <= row["rewards/process/mean"] <= 1


@pytest.mark.on_request
def test_a_judge_labels_and_its_answers_are_kept(finished_run, launcher, job, tmp_path, fake_server):
    fake_server.say = lambda prompt, seed: f"SCORE: {len(prompt) % 11}"
    run, broken = tmp_path / "run", tmp_path / "broken"
    judge = {"url": fake_server.url, "model": "m", "first_wait_s": 0.0}
    asked = (*flags(finished_run, job, run), "--max_steps", 2, "--step_values", "judge", "--judge")
    output = launcher.finish("train_prm", *asked, json.dumps(judge))
    assert f"PRM: {run / 'prm' / 'model'}" in output
    labels = pl.read_parquet(run / "prm" / "labels" / "train.parquet")
    values = {round(value, 5) for of_path in labels["step_values"] for value in of_path[: max(1, len(of_path) - 1)]}
    assert values <= {n / 10 for n in range(11)}
    assert len(values) > 2
    n_states, n_answers = len(fake_server.bodies), sum(1 for f in (run / "prm" / "judge").iterdir() for _ in f.open())
    assert n_answers == n_states
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["Judge"]["model"] == "m"
    assert "SCORE: N" in settings["Judge"]["instructions"]
    # Another budget goes on, another model does not; and without a server nothing is made.
    launcher.finish("train_prm", *asked, json.dumps({**judge, "concurrency": 2}))
    assert len(fake_server.bodies) == n_states
    refused = launcher.start("train_prm", *asked, json.dumps({**judge, "model": "n"})).wait()
    assert "was made with model='m', now 'n'" in refused.output
    fake_server.plan = lambda key, number: 401
    failed = launcher.start(
        "train_prm", *asked[:-3], *flags(finished_run, job, broken)[-2:], *asked[-3:], json.dumps(judge)
    )
    output = failed.wait().output
    assert "error: " in output
    assert "look at the key" in output
    assert "ServerError" not in output  # the launcher has a traceback of its own


@pytest.mark.on_request
def test_killed_and_resumed_it_ends_as_one_that_was_left_alone(finished_run, launcher, job, tmp_path):
    """Killed between its labels and its end: the labels are made once."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    launcher.finish("train_prm", *flags(finished_run, job, whole))
    state = broken / "prm" / "checkpoint-2" / "trainer_state.json"
    launcher.start("train_prm", *flags(finished_run, job, broken)).kill_when(state.exists)
    assert not (broken / "prm" / "model").exists()
    made = (broken / "prm" / "labels" / "train.parquet").stat().st_mtime_ns
    launcher.finish("train_prm", *flags(finished_run, job, broken))
    assert (broken / "prm" / "labels" / "train.parquet").stat().st_mtime_ns == made
    resumed, end = weights(broken), weights(whole)
    for name in end:
        np.testing.assert_array_equal(resumed[name], end[name], err_msg=name)
    assert (broken / "prm" / "quality.json").read_text() == (whole / "prm" / "quality.json").read_text()


@pytest.mark.on_request
def test_two_processes_label_and_train_together_with_lora(finished_run, launcher, job, tmp_path):
    lora = ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj", "--step_values", "monte_carlo")
    run, many = tmp_path / "run", ("--use_cpu", "--max_steps", 2)
    launcher.finish("train_prm", *flags(finished_run, job, run), *lora, *many, config="cpu_2.yaml")
    start, end = load_file(finished_run.teacher / "model.safetensors"), weights(run)
    body = start.keys() & end.keys()
    assert end.keys() - body == {"score.weight", "score.bias"}
    changed = {name for name in body if not np.array_equal(start[name], end[name])}
    assert changed == {name for name in body if "q_proj" in name or "v_proj" in name}
    assert len(pl.read_parquet(run / "prm" / "labels" / "train.parquet")) == 24
    assert not (run / "prm" / "labels" / "train").exists()
