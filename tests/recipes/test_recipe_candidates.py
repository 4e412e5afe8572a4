"""Kinds that are asked about candidates, by recipes alone: SFT, GRPO, evaluation, cache, killed once on the way."""

import json

import numpy as np
import polars as pl
import pytest
import yaml
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow
LISTS = {"n_candidates": 9, "window": 6, "stride": 3, "shuffled": True}


@pytest.fixture
def configured(tmp_path, repo_root):
    """Writes the smoke configs of SFT and GRPO for a kind, and gives flags of GRPO."""

    def write(kind, settings, **more):
        for name in ("sft", "grpo"):
            config = yaml.safe_load((repo_root / "tests" / "recipes" / "configs" / f"{name}.yaml").read_text())
            config |= {"reasoning_kind": kind, "kind_settings": settings}
            config |= {key: value for key, value in more.items() if name == "grpo" or key == "sft_item_loss"}
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        return ("--config", tmp_path / "grpo.yaml", "--baselines", "false")

    return write


def test_orders_go_through_all_stages(launcher, configured, logged, tmp_path):
    flags = configured("listwise", LISTS, sft_item_loss="tokens", ranker="order", item_loss="none")
    refused = launcher.start("grpo_teacher", *flags, "--ranker", "embedding", "--output_dir", tmp_path / "no").wait()
    assert refused.process.returncode == 1
    assert "reasoning_kind listwise answers with an order: set ranker to likelihood or order" in refused.output

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    on = ("--output_dir", killed)
    launcher.start("grpo_teacher", *flags, *on).kill_when(
        (killed / "grpo" / "checkpoint-2" / "trainer_state.json").exists
    )
    assert (killed / "sft" / "teacher").exists()
    launcher.finish("grpo_teacher", *flags, *on)
    launcher.finish("grpo_teacher", *flags, "--output_dir", whole)
    for stage in ("sft", "grpo", "direct"):
        resumed, unbroken = (load_file(run / stage / "teacher" / "model.safetensors") for run in (killed, whole))
        for name in unbroken:
            np.testing.assert_array_equal(resumed[name], unbroken[name], err_msg=f"{stage} {name}")
    assert (killed / "evaluation.json").read_text() == (whole / "evaluation.json").read_text()

    summary = json.loads((whole / "evaluation.json").read_text())
    rows = {"incoming", "sft", "sft_written", "grpo", "grpo_written", "direct", "direct_written"}
    assert set(summary["stages"]) - {"oracle", "intent_oracle"} == rows
    assert {"grpo-incoming", "grpo_written-incoming", "grpo_written-grpo"} <= set(summary["differences"])
    assert "ranker: order of 9 candidates of item_knn" in (whole / "evaluation.md").read_text()
    told = json.loads((whole / "candidates" / "grpo_written.greedy.json").read_text())
    assert told["prompts"] == 2 * summary["n_examples"]  # two windows
    assert {"as_shown", "whole", "unread", "missing", "repeated", "unknown"} <= set(told)
    trained = [row for row in logged(whole) if row["stage"] == "grpo"]
    assert any("order/as_it_came" in row for row in trained)

    cache = tmp_path / "cache"
    asked = ("--source", "teacher", "--run_dir", whole, "--top_k", 12, "--output_dir", cache, "--last_positions", 1)
    output = launcher.finish("cache_teacher", *asked)
    assert "12 items each" in output
    table = pl.concat([pl.read_parquet(file) for file in sorted(cache.glob("*.parquet"))], how="vertical_relaxed")
    assert len(table)


def test_yes_and_no_go_through_all_stages(launcher, configured, tmp_path):
    flags = configured("yes_no", {"n_candidates": 3})
    run = tmp_path / "run"
    on = ("--output_dir", run)
    launcher.start("grpo_teacher", *flags, *on).kill_when(
        (run / "grpo" / "checkpoint-2" / "trainer_state.json").exists
    )
    launcher.finish("grpo_teacher", *flags, *on)
    summary = json.loads((run / "evaluation.json").read_text())
    assert set(summary["stages"]) - {"oracle", "intent_oracle"} == {"incoming", "sft", "grpo", "direct"}
    auc = summary["stages"]["grpo"]["greedy"]["auc"]
    assert 0 <= auc["low"] <= auc["mean"] <= auc["high"] <= 1
    assert auc["n"] == 2 * summary["n_examples"]
    told = (run / "evaluation.md").read_text()
    assert "p(yes) of 3 candidates of item_knn, yes: the item chosen and one sampled from the candidates" in told
    assert "AUC" in told
    asked = ("--source", "teacher", "--run_dir", run, "--top_k", 5, "--last_positions", 1)
    launcher.finish(
        "cache_teacher", *asked, "--mode", "plain", "--stage", "direct", "--output_dir", tmp_path / "cache"
    )
