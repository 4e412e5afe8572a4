"""BIGRec as published, by recipes alone: a reward reweighed by a retriever, and rows of what teachers write."""

import json

import pytest

pytestmark = pytest.mark.slow


def test_a_teacher_is_rewarded_and_evaluated_for_what_it_writes(launcher, finished_run, tmp_path):
    run = tmp_path / "run"
    flags = finished_run.short_flags("--ranker", "embedding", "--item_loss", "none", "--output_dir", run)
    refused = launcher.start("grpo_teacher", *flags, "--reweigh_by", "evidence").wait()
    assert refused.process.returncode == 1
    assert "reweigh_by is evidence: name the folder of recipes/rank_evidence.py" in refused.output
    launcher.finish("grpo_teacher", *flags, "--reweigh_by", "item_knn")
    choice = json.loads((run / "grpo" / "gamma.json").read_text())
    assert choice["gamma"] in [gamma for gamma, _ in choice["trials"]]
    assert "of what is written: embedding" in (run / "evaluation.md").read_text()
    rows = json.loads((run / "evaluation.json").read_text())
    assert {"grpo_written", "grpo_written_item_knn"} <= set(rows["stages"])
    assert "grpo_written-grpo" in rows["differences"]

    launcher.finish("evaluate", "--run_dir", run, "--written", "free", "--reweigh_by", "popularity")
    rows = json.loads((run / "evaluation.json").read_text())
    assert {"grpo_freely_written", "grpo_freely_written_popularity", "grpo_written"} <= set(rows["stages"])
    assert set(rows["differences"]["grpo_freely_written_popularity-popularity"]) == {"greedy"}
