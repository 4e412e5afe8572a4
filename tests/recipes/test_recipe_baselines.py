"""The recipe of baselines as its documented command: tuned, over seeds, killed and gone on with."""

import json

import pytest

pytestmark = pytest.mark.slow

NAMES = ("popularity", "item_knn", "ease", "sasrec")


def test_baselines_are_chosen_fitted_and_evaluated_over_seeds(launcher, tmp_path):
    run = tmp_path / "baselines"
    flags = ("--toy_users", 40, "--toy_categories", 4, "--tune", "false", "--seeds", 0, 1, "--output_dir", run)
    flags += ("--names", *NAMES)
    output = launcher.finish("baselines", *flags)
    summary = json.loads((run / "evaluation.json").read_text())
    n_seeds = {stage: len(modes["plain"]["ndcg@10"]["by_seed"]) for stage, modes in summary["stages"].items()}
    assert n_seeds == dict.fromkeys((*NAMES, "oracle", "intent_oracle"), 1) | {"sasrec": 2}
    assert summary["n_users"] == 10
    assert {file.stem for file in (run / "chosen").iterdir()} == set(NAMES)
    for text in (output, (run / "evaluation.md").read_text()):
        assert "Chosen on validation" in text
    written = {file: file.stat().st_mtime_ns for file in run.rglob("*.parquet")}
    (run / "seed-1" / "answers" / "sasrec.plain.parquet").unlink()
    (run / "evaluation.json").unlink()
    launcher.finish("baselines", *flags)
    assert json.loads((run / "evaluation.json").read_text()) == summary
    changed = {file.name for file in written if file.stat().st_mtime_ns != written[file]}
    assert changed == {"sasrec.plain.parquet"}
