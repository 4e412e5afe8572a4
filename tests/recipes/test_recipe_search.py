"""Searches on the smoke run, as documented: rows with costs, the curve, trees to look at, and paths to train on."""

import json
import shutil

import polars as pl
import pytest

from anyo_rl.evaluation.searches import TOKENS
from anyo_rl.evaluation.summary import read_summary
from anyo_rl.sampling.paths import PATHS_SCHEMA
from anyo_rl.training.star import keep_paths

pytestmark = pytest.mark.slow


def test_searches_stand_in_the_table_with_their_costs(finished_run, launcher, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run.folder, run)
    before = read_summary(run)
    searches = (
        "plain",
        "greedy",
        "mixture",
        "weighted_mixture",
        "best_of_n",
        "rank_fusion",
        "step_beam",
        "tree",
        "mcts",
    )
    asked = ("--run_dir", run, "--stage", "sft", "--n", 2, "--final", "best", "mixture", "--search", *searches)
    output = launcher.finish("search_teacher", *asked)
    assert "Over the mixture" in output
    assert "mcts" in output
    summary = read_summary(run)
    modes = {mode for mode, metrics in summary.stages["sft"].items() if TOKENS in metrics}
    assert {f"{search}-2" for search in searches[2:]} | {"plain-0", "greedy-1"} <= modes
    for mode in modes:
        assert summary.stages["sft"][mode][TOKENS].mean <= 2 * 16 or mode.startswith("mixture")
        assert {"n_nodes", "seconds", "ndcg@10"} <= set(summary.stages["sft"][mode])
    for mode, one in summary.equal_tokens["sft"].items():
        assert one.against.startswith("mixture-")
        assert summary.stages["sft"][one.against][TOKENS].mean >= summary.stages["sft"][mode][TOKENS].mean
    # What stood there stands there still.
    assert before is not None
    assert summary.stages["grpo"] == before.stages["grpo"]
    assert summary.differences == before.differences
    chosen = json.loads((run / "search" / "sft.json").read_text())
    assert {one["final"] for one in chosen["tried_on_validation"]} == {"best", "mixture"}
    assert chosen["chosen"]["mcts-2"]["final"] in ("best", "mixture")
    report = (run / "report.html").read_text()
    assert "NDCG@10 by what a search writes" in report
    page = (run / "search" / "sft.mcts-2.html").read_text()
    assert "<svg" in page
    assert "<script" not in page

    # Again, and nothing is asked again; more n, and only these are.
    kept = {file.name: file.stat().st_mtime_ns for file in (run / "answers").glob("sft.*-*.parquet")}
    launcher.finish("search_teacher", *asked)
    assert {name: (run / "answers" / name).stat().st_mtime_ns for name in kept} == kept


def test_paths_that_searches_find_can_be_trained_on(finished_run, launcher, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run.folder, run)
    asked = ("--run_dir", run, "--stage", "sft", "--search", "step_beam", "--n", 2, "--train_examples", 12)
    assert "step_beam-2.train.parquet" in launcher.finish("search_teacher", *asked)
    paths = pl.read_parquet(run / "search" / "sft.step_beam-2.train.parquet")
    assert paths.schema == PATHS_SCHEMA
    assert paths["example_id"].n_unique() == 12
    assert set(paths["split"]) == {"train"}
    kept = keep_paths(paths, least_gain=0.0, most_per_example=1)
    assert kept.counts["sampled"] == len(paths)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--search", "luck"), "expected some of plain"),
        (("--score", "prm"), "set prm to the folder of one"),
        (("--stage", "ppo"), "no finished teacher ppo"),
        (("--score", "evidence", "--search", "best_of_n"), "needs evidence"),
    ],
)
def test_what_cannot_be_searched_is_refused(finished_run, launcher, wrong, said):
    done = launcher.start("search_teacher", "--run_dir", finished_run.folder, *wrong).wait()
    assert done.process.returncode != 0
    assert said in done.output
    assert 'search_teacher.py", line' not in done.output  # no traceback but the launcher's, if it is the first start
