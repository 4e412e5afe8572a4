"""Reason distillation: a small model learns from a teacher's paths, then by itself; killed, it ends the same."""

import json
from pathlib import Path

import polars as pl
import pytest

from anyo_rl.evaluation.stages import table_order

SMOKE = Path(__file__).parent / "configs"
pytestmark = pytest.mark.slow


def flags(finished_run, run, *more: object) -> tuple[object, ...]:
    config = ("--config", SMOKE / "distill_reasoning.yaml", "--baselines", "false")
    return (*config, "--teacher", finished_run.teacher, "--output_dir", run, *more)


def test_a_small_model_learns_from_paths_and_then_by_itself(finished_run, launcher, tmp_path, logged):
    run = tmp_path / "run"
    output = launcher.finish("distill_reasoning", *flags(finished_run, run))
    assert "evaluating teacher (greedy)" in output
    kept = pl.read_parquet(run / "taught" / "kept.parquet")
    assert set(kept["policy"]) == {"teacher"}
    assert kept["rank"].max() <= 100  # a gain of .15
    summary = json.loads((run / "evaluation.json").read_text())
    assert table_order(list(summary["stages"])) == ["teacher", "taught", "distilled", "direct"]
    assert {"distilled-teacher", "distilled-taught", "taught-direct"} <= set(summary["differences"])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["stage"] == "distilled" and "loss" in row]
    assert [row["step"] for row in trained] == [1, 2, 3, 4]
    assert all(row["item_loss"] > 0 and row["loss"] > 0 for row in trained)
    assert trained[0]["flops"] < trained[-1]["flops"]
    assert "on-policy distillation" in (run / "distilled" / "teacher" / "README.md").read_text()

    broken = tmp_path / "broken"
    state = broken / "distilled" / "checkpoint-2" / "trainer_state.json"
    launcher.start("distill_reasoning", *flags(finished_run, broken)).kill_when(state.exists)
    launcher.finish("distill_reasoning", *flags(finished_run, broken))
    assert logged(broken) == logged(run)


def test_a_teacher_with_other_tokens_is_refused_before_anything_is_sampled(finished_run, launcher, tmp_path):
    run = tmp_path / "run"
    refused = launcher.start("distill_reasoning", *flags(finished_run, run, "--tiny_vocab_size", 300)).wait()
    assert refused.process.returncode == 1
    assert "both need one vocabulary" in refused.output
    assert not (run / "taught" / "paths").exists()
    refused = launcher.start("distill_reasoning", *flags(finished_run, run, "--teacher", "")).wait()
    assert "no teacher: name a finished one" in refused.output
