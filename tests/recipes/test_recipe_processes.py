"""Recipes on two processes: DDP, and DeepSpeed's ZeRO-2 and ZeRO-3, all on the CPU."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from safetensors.numpy import load_file

from anyo_rl.run.lock import hold

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Path(__file__).parent / "configs"
ZERO2 = {"config": "zero2.yaml", "launch_flags": ("--mixed_precision", "no", "--main_process_port", "0")}
ZERO3 = ZERO2 | {"config": "zero3.yaml"}
DDP = {"config": "cpu_2.yaml"}

pytestmark = pytest.mark.slow


def short_warm_start(tmp_path: Path) -> Path:
    config = tmp_path / "sft.yaml"
    steps = {"max_steps": 2, "eval_steps": 2, "save_steps": 2}
    config.write_text(yaml.safe_dump(yaml.safe_load((SMOKE / "sft.yaml").read_text()) | steps))
    return config


@pytest.mark.parametrize(
    ("launch", "flags", "distributed_type"),
    [
        (DDP, ("--use_cpu",), "MULTI_CPU"),
        pytest.param(
            ZERO2,
            ("--ddp_backend", "gloo", "--ranker", "embedding", "--item_loss", "none", "--sft_item_loss", "tokens"),
            "DEEPSPEED",
            marks=pytest.mark.on_request,
        ),
        # Weights are shared out here: choosing examples, saving and evaluating need whole ones.
        (ZERO3, ("--ddp_backend", "gloo", "--min_gain_spread", "1e-9"), "DEEPSPEED"),
    ],
    ids=["ddp", "zero2", "zero3"],
)
def test_two_processes_train_one_teacher(request, launcher, tmp_path, launch, flags, distributed_type):
    if distributed_type == "DEEPSPEED":
        request.getfixturevalue("deepspeed_ready")
    run = tmp_path / "run"
    least = "--max_steps 2 --eval_steps 2 --save_steps 2 --train_direct false --baselines false --max_test 8"
    least += " --eval_on_start false"  # else the best may be the start
    warm = ("--config", SMOKE / "grpo.yaml", "--sft_config", short_warm_start(tmp_path))
    output = launcher.finish("grpo_teacher", *warm, *least.split(), "--output_dir", run, *flags, **launch)

    versions = json.loads((run / "versions.json").read_text())
    assert (versions["num_processes"], versions["distributed_type"]) == (2, distributed_type)
    # One process writes: each step once, each part of the evaluation once.
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for stage in ("sft", "grpo"):
        steps = [row for row in rows if row["stage"] == stage and "loss" in row]
        assert [row["step"] for row in steps] == [1, 2]
        for row in steps:
            assert min(row["throughput/samples_per_second"], row["throughput/tokens_per_second"]) > 0
            parts = [value for name, value in row.items() if name.startswith("time_share/")]
            assert sum(parts) == pytest.approx(1 if stage == "grpo" else 0)
    assert output.count("evaluating grpo (greedy)") == 1
    # The console is the main process's; what the other one has to say is in its own file.
    assert output.count("sft, update 2 of 2: validation NDCG@10") == 1
    logs = {file.name: file.read_text() for file in (run / "logs").iterdir()}
    assert logs.keys() == {"rank-0.log", "rank-1.log"}
    assert "evaluating grpo (greedy)" in logs["rank-0.log"]
    assert "evaluating grpo (greedy)" in logs["rank-1.log"]  # they share the users
    before, after = (load_file(run / stage / "teacher" / "model.safetensors") for stage in ("sft", "grpo"))
    assert all(np.isfinite(after[name]).all() for name in before)
    if "embedding" in flags:  # every completion has an item then
        assert [row["parsed_share"] for row in rows if "parsed_share" in row] == [1, 1]
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    stages = json.loads((run / "evaluation.json").read_text())["stages"]
    assert set(stages) == {"sft", "grpo"}
    assert (run / "grpo" / "kept_examples.json").exists() == ("--min_gain_spread" in flags)


def test_both_processes_stop_where_the_folder_is_of_another_run(finished_run, launcher, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(finished_run.folder / "config.yaml", run)
    flags = (*finished_run.flags, "--toy_users", 121, "--output_dir", run, "--use_cpu")
    done = launcher.start("grpo_teacher", *flags, **DDP).wait()
    assert done.process.returncode != 0
    assert f"error: {run} was made with toy_users=120, now 121" in done.output
    assert not (run / "sft").exists()


@pytest.mark.on_request
def test_both_processes_stop_where_another_program_uses_the_folder(finished_run, launcher, tmp_path):
    run = tmp_path / "run"
    assert hold(run) is None
    done = launcher.start("grpo_teacher", *finished_run.flags, "--output_dir", run, "--use_cpu", **DDP).wait()
    assert done.process.returncode != 0
    assert f"error: {run} is in use by process {os.getpid()} on " in done.output
    assert [file.name for file in run.iterdir()] == ["lock"]


def test_two_processes_share_an_evaluation(finished_run, launcher, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run.folder, run, ignore=shutil.ignore_patterns("answers", "checkpoint-*", "paths"))
    (run / "evaluation.json").unlink()
    output = launcher.finish("evaluate", "--run_dir", run, "--baselines", "false", **DDP)
    assert output.count("evaluating grpo (mixture)") == 1
    for stage, mode in (("grpo", "greedy"), ("grpo", "mixture"), ("direct", "plain")):
        of_two, of_one = (
            pl.read_parquet(f / "answers" / f"{stage}.{mode}.parquet") for f in (run, finished_run.folder)
        )
        assert of_two.equals(of_one)
        if mode != "plain":
            name = Path("paths") / f"{stage}.{mode}.parquet"
            columns = ["example_id", "sample_index", "token_ids", "rank"]
            of_two, of_one = (pl.read_parquet(f / name).select(columns) for f in (run, finished_run.folder))
            assert of_two.equals(of_one)
    stages = json.loads((run / "evaluation.json").read_text())["stages"]
    expected = json.loads((finished_run.folder / "evaluation.json").read_text())["stages"]
    assert stages == {name: expected[name] for name in stages}
