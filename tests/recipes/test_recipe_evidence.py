"""The recipe of evidence as its documented command, on a plain log."""

import json

import pytest

pytestmark = pytest.mark.slow


def test_evidence_is_made_ranked_and_evaluated(launcher, tmp_path):
    lines = [f"u{user},i{(user + 3 * step) % 25},{step}" for user in range(40) for step in range(6)]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    items = [f"i{item},{('oak', 'glass')[item % 2]} thing {item}" for item in range(25)]
    (tmp_path / "items.csv").write_text("item_id,title\n" + "\n".join(items) + "\n")
    run = tmp_path / "evidence"
    flags = ("--dataset", tmp_path / "log.csv", "--split", "leave_one_out", "--output_dir", run)
    flags += ("--seeds", 0, 1, "--positions", 2, "--n_candidates", 10, "--n_folds", 2)
    output = launcher.finish("rank_evidence", *flags)
    summary = json.loads((run / "evaluation.json").read_text())
    assert {stage: len(modes["plain"]["ndcg@10"]["by_seed"]) for stage, modes in summary["stages"].items()} == {
        "evidence": 2,
        "popularity": 2,
        "item_knn": 2,
    }
    assert summary["stages"]["evidence"]["plain"]["ndcg@10"]["mean"] > 0.8  # everybody goes three items on
    assert "Recall on test:" in output
    assert "evidence − item_knn" in output


def test_a_teacher_is_trained_with_evidence(launcher, finished_run, tmp_path):
    evidence, run = tmp_path / "evidence", tmp_path / "run"
    made = ("--dataset", "toy", "--toy_users", 120, "--toy_categories", 5, "--n_candidates", 15, "--n_folds", 3)
    made += ("--seeds", 0, "--positions", 2, "--most_rounds", 10, "--output_dir", evidence)
    launcher.finish("rank_evidence", *made)
    flags = finished_run.short_flags("--evidence", evidence, "--headroom", 1, 60, "--output_dir", run)
    refused = launcher.start("grpo_teacher", *flags).wait()
    assert refused.process.returncode == 1
    assert "with --training_scores true" in refused.output
    launcher.finish("rank_evidence", *made, "--training_scores", "true")
    output = launcher.finish("grpo_teacher", *flags)
    assert json.loads((run / "grpo" / "fusion.json").read_text())["alpha"] > 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {name for row in rows if row["stage"] == "grpo" for name in row}
    assert {"evidence/beyond", "evidence/same_top1", "eval_fused_ndcg@10", "eval_same_top10_change"} <= names
    assert "eval_ndcg@10" not in names
    assert "Top 10 as evidence" in (run / "evaluation.md").read_text()
    assert "grpo_fused" in output
