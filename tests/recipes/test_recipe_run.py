"""What a finished run of grpo_teacher leaves behind, and the recipes that start from it."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from safetensors.numpy import load_file

from anyo_rl.evaluation.convergence import read_trainings, rival_flops

SMOKE = Path(__file__).parent / "configs"
SECRET = "sentinel-of-a-secret"
PATH_COLUMNS = (
    *("example_id", "sample_index", "policy", "split", "user_id", "history", "prompt", "completion", "token_ids"),
    *("token_log_probs", "steps", "item_id", "item_title", "target_id", "target_title", "rank", "ranker", "cap"),
    *("rewards", "step_values", "finish_reason", "model", "seed"),
)

pytestmark = pytest.mark.slow


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "teacher" / "model.safetensors")


def evaluation(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_every_stage_is_evaluated_with_intervals(finished_run):
    summary = evaluation(finished_run.folder)
    modes = {stage: set(found) for stage, found in summary["stages"].items()}
    reasoning, plain = {"greedy", "mixture"}, {"plain"}
    assert modes.pop("sft") == modes.pop("grpo") == reasoning
    others = ("direct", "popularity", "item_knn", "sasrec", "oracle", "intent_oracle")
    assert modes == dict.fromkeys(others, plain)
    beside = ("sft", "direct", "item_knn", "sasrec")
    assert set(summary["differences"]) == {"sft-direct", *(f"grpo-{other}" for other in beside)}
    assert (summary["dataset"], summary["n_users"], summary["n_paths"]) == ("toy", 20, 2)
    for section in ("stages", "differences"):
        for found in summary[section].values():
            for numbers in found.values():
                value = numbers["ndcg@10"]
                assert value["low"] <= value["mean"] <= value["high"]
                assert value["n"] == 20
    for stage in ("sft", "grpo"):
        assert 0 <= summary["stated_intent"][stage] <= 1
        assert 0 <= summary["true_intent"].get(stage, 0) <= 1  # not known where no intent is stated
    ndcg = {stage: found[mode]["ndcg@10"]["mean"] for stage, found in summary["stages"].items() for mode in found}
    assert ndcg.pop("intent_oracle") >= 0
    assert ndcg["oracle"] == max(ndcg.values())
    assert "popularity" in finished_run.output  # the table is printed
    assert "grpo" in (finished_run.folder / "evaluation.md").read_text()


def test_the_report_needs_no_other_file(finished_run):
    page = (finished_run.folder / "report.html").read_text()
    assert "<html" in page
    assert not re.search(r"https?://", page)
    assert "@import" not in page


def test_metrics_have_every_stage_and_every_reward(finished_run):
    rows = metrics(finished_run.folder)
    found = read_trainings(finished_run.folder / "metrics.jsonl")
    direct = found["direct"]  # as many FLOPs as its rivals have, at the first validation where it has them
    assert direct.flops >= rival_flops(found) > direct.flops * (1 - 2 / direct.updates) * 0.9
    for stage, n_steps in (("sft", 6), ("direct", direct.updates), ("grpo", 4)):
        steps = [row["step"] for row in rows if row["stage"] == stage and "loss" in row]
        assert steps == list(range(1, n_steps + 1))
        assert [row["step"] for row in rows if row["stage"] == stage and "eval_ndcg@10" in row][-1] == n_steps
    for row in rows:
        if row["stage"] == "grpo" and "loss" in row:
            assert 0 <= row["rewards/my_reward/mean"] <= 1
            assert 0 <= row["rewards/ndcg/mean"] <= 1
            assert row["item_loss"] >= 0
            assert {"parsed_share", "rank/mean", "rank/gain"} <= set(row)


def test_paths_have_every_column_of_the_schema(finished_run):
    for stage in ("sft", "grpo"):
        for mode, n_paths in (("greedy", 1), ("mixture", 2)):
            frame = pl.read_parquet(finished_run.folder / "paths" / f"{stage}.{mode}.parquet")
            assert set(PATH_COLUMNS) <= set(frame.columns)
            assert len(frame) == 20 * n_paths
            assert not frame.select("example_id", "sample_index").is_duplicated().any()
            n_tokens = frame["token_ids"].list.len().to_numpy()
            assert (n_tokens <= 16).all()
            assert (frame["token_log_probs"].list.len().to_numpy() == n_tokens).all()
            assert frame["rank"].is_between(1, evaluation(finished_run.folder)["n_items"]).all()


def test_completions_are_logged_with_ranks_and_rewards(finished_run):
    files = sorted((finished_run.folder / "grpo" / "completions").glob("*.parquet"))
    assert len(files) == 4  # one a step
    frame = pl.read_parquet(files[0])
    assert {"completion", "rank", "ndcg", "my_reward", "advantage"} <= set(frame.columns)
    assert len(frame) == 8 * 2
    marked = frame.filter(pl.col("ndcg") > 0)
    np.testing.assert_allclose(marked["ndcg"], 1 / np.log2(1 + marked["rank"].to_numpy()), rtol=1e-5)
    assert "my_reward" in finished_run.output


def test_what_repeats_the_run_is_written_and_no_secret_is(finished_run):
    config = yaml.safe_load((finished_run.folder / "config.yaml").read_text())
    assert config["GRPOConfig"]["learning_rate"] == 1e-3
    assert config["TeacherArguments"]["max_reasoning_tokens"] == 16
    assert "marker_token" in config["TeacherArguments"]
    versions = json.loads((finished_run.folder / "versions.json").read_text())
    assert {"python", "torch", "trl", "transformers", "anyo-rl"} <= set(versions)
    assert versions["num_processes"] == 1
    assert config["WarmStart"]["max_steps"] == 6  # and not the longer budget of the direct teacher
    assert "early_stopping_patience" in config["WarmStart"]
    counts = json.loads((finished_run.folder / "data.json").read_text())
    assert counts
    assert all(isinstance(value, int) for value in counts.values())
    for file in finished_run.folder.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_grpo_moved_the_weights(finished_run):
    before = weights(finished_run.folder / "sft")
    after = load_file(finished_run.folder / "grpo" / "checkpoint-4" / "model.safetensors")  # the best may be the start
    assert before.keys() >= after.keys()
    assert all(np.isfinite(after[name]).all() for name in after)
    assert sum(not np.array_equal(before[name], after[name]) for name in after) > len(after) / 2


def test_run_again_nothing_is_redone(finished_run, launcher, tmp_path):
    # As if the run had been killed after its last step, before the teacher was saved and evaluated.
    run = tmp_path / "run"
    shutil.copytree(finished_run.folder, run)
    shutil.rmtree(run / "grpo" / "teacher")
    (run / "evaluation.json").unlink()
    output = launcher.finish("grpo_teacher", *finished_run.flags, "--output_dir", run)
    assert "validation NDCG@10" not in output
    for baseline in ("popularity", "item_knn", "sasrec", "oracle"):
        assert f"evaluating {baseline}" not in output
    assert metrics(run) == metrics(finished_run.folder)
    assert evaluation(run) == evaluation(finished_run.folder)
    again, first = weights(run / "grpo"), weights(finished_run.folder / "grpo")
    assert all(np.array_equal(again[name], first[name]) for name in first)


def test_another_reward_does_not_go_into_a_finished_folder(finished_run, launcher):
    before = (finished_run.folder / "config.yaml").read_text()
    flags = ("--config", SMOKE / "grpo.yaml", "--reward_funcs", "mrr", "--output_dir", finished_run.folder)
    done = launcher.start("grpo_teacher", *flags).wait()
    assert done.process.returncode == 1
    assert f"error: {finished_run.folder} was made with reward_funcs=['ndcg', " in done.output
    assert "now ['mrr']" in done.output
    assert 'recipes/grpo_teacher.py", line' not in done.output  # no traceback of ours
    assert (finished_run.folder / "config.yaml").read_text() == before


def test_a_reward_that_raises_stops_the_run_and_is_named(finished_run, launcher, tmp_path):
    reward = tmp_path / "broken.py"
    reward.write_text("def broken(rank, **kwargs):\n    raise KeyError('the lost key')\n")
    flags = finished_run.short_flags("--reward_funcs", f"{reward}:broken", "--output_dir", tmp_path / "run")
    done = launcher.start("grpo_teacher", *flags).wait()
    assert done.process.returncode != 0
    assert "reward 'broken'" in done.output
    assert "the lost key" in done.output
    assert "sample 0:" in done.output
    assert "rank:" in done.output
    assert not (tmp_path / "run" / "grpo" / "teacher").exists()


def test_direct_teacher_and_evaluate(finished_run, launcher, tmp_path):
    run = tmp_path / "run"
    flags = ("--config", SMOKE / "sft.yaml", "--n_paths", 2, "--max_steps", 2, "--output_dir", run)
    output = launcher.finish("sft_teacher", *flags, "--reasoning", "false")
    assert f"teacher: {run / 'direct' / 'teacher'}" in output
    assert {row["stage"] for row in metrics(run)} == {"direct"}
    assert {stage: set(modes) for stage, modes in evaluation(run)["stages"].items()} == {"direct": {"plain"}}
    # Its reasoning sister is there already: evaluate compares what it finds, with the run's own settings.
    shutil.copytree(finished_run.folder / "sft" / "teacher", run / "sft" / "teacher")
    launcher.finish("evaluate", "--run_dir", run, "--causal_examples", 4)
    found, expected = evaluation(run), evaluation(finished_run.folder)
    assert set(found["stages"]) == set(expected["stages"]) - {"grpo"}
    assert found["stages"]["sft"] == expected["stages"]["sft"]
    assert (found["n_users"], found["n_paths"], found["seed"]) == (20, 2, 42)
    assert found["causal"]["sft"]["n"] == 4
    assert 0 <= found["causal"]["sft"]["changed_by_history"]["mean"] <= 1
    for page in (run / "report.html", run / "sft" / "teacher" / "README.md"):
        assert "Causal report" in page.read_text()


@pytest.mark.on_request
def test_repeat_runs_the_sft_recipe_for_each_seed(launcher, tmp_path):
    flags = ("--config", SMOKE / "sft.yaml", "--max_steps", 2, "--max_test", 8, "--output_dir", tmp_path / "runs")
    command = launcher.command("sft_teacher", *flags)
    done = launcher.run_command([sys.executable, "-m", "anyo_rl.repeat", "--seeds", "0", "1", "--", *command]).wait()
    assert done.process.returncode == 0, done.output
    summary = json.loads((tmp_path / "runs" / "repeat.json").read_text())
    assert set(summary["stages"]) == {"sft"}
    assert len(summary["stages"]["sft"]["mixture"]["ndcg@10"]["by_seed"]) == 2
    assert {row["stage"] for row in metrics(tmp_path / "runs" / "seed-0")} == {"sft"}
    assert set(weights(tmp_path / "runs" / "seed-0" / "sft"))


def test_repeat_runs_the_recipe_for_each_seed(finished_run, launcher, tmp_path):
    command = launcher.command("grpo_teacher", *finished_run.short_flags("--output_dir", tmp_path / "runs"))
    done = launcher.run_command([sys.executable, "-m", "anyo_rl.repeat", "--seeds", "0", "1", "--", *command]).wait()
    assert done.process.returncode == 0, done.output
    summary = json.loads((tmp_path / "runs" / "repeat.json").read_text())
    assert summary["seeds"] == [0, 1]
    assert len(summary["stages"]["grpo"]["greedy"]["ndcg@10"]["by_seed"]) == 2
    assert evaluation(tmp_path / "runs" / "seed-1")["seed"] == 1
