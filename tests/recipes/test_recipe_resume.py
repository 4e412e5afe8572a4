"""A run that is killed again and again ends as one that was left alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow


def lines(folder: Path) -> list[dict]:
    """What was logged, but for clocks and for what TRL and transformers count from the start of the process."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    varying = ("runtime", "per_second", "step_time", "rank/seconds", "total_flos", "train_loss", "num_tokens")
    varying += ("time_share/", "memory/")
    return [{k: v for k, v in row.items() if not any(word in k for word in varying)} for row in rows]


def test_killed_in_every_stage_a_run_ends_the_same(finished_run, launcher, tmp_path):
    run = tmp_path / "run"
    flags = (*finished_run.flags, "--output_dir", run)

    first = run / "sft" / "checkpoint-2"
    launcher.start("grpo_teacher", *flags).kill_when((first / "trainer_state.json").exists)
    assert not (run / "sft" / "teacher").exists()
    # A checkpoint that was being written: its weights are there, and half of its last file.
    half = run / "sft" / "checkpoint-5"
    shutil.copytree(first, half)
    state = half / "trainer_state.json"
    state.write_text(state.read_text()[:100])

    launcher.start("grpo_teacher", *flags).kill_when((run / "direct" / "checkpoint-4" / "trainer_state.json").exists)
    assert (run / "sft" / "teacher").exists()
    assert not half.exists()
    assert not (run / "direct" / "teacher").exists()

    launcher.start("grpo_teacher", *flags).kill_when((run / "grpo" / "checkpoint-2" / "trainer_state.json").exists)
    assert (run / "direct" / "teacher").exists()
    assert not (run / "grpo" / "teacher").exists()

    launcher.start("grpo_teacher", *flags).kill_when((run / "answers" / "sft.greedy.parquet").exists)
    assert (run / "grpo" / "teacher").exists()
    assert not (run / "evaluation.json").exists()
    launcher.finish("grpo_teacher", *flags)

    # transformers restores optimizer, data order and random state: on the CPU resumed training is exact.
    for stage in ("sft", "direct", "grpo"):
        resumed = load_file(run / stage / "teacher" / "model.safetensors")
        unbroken = load_file(finished_run.folder / stage / "teacher" / "model.safetensors")
        for name in unbroken:
            np.testing.assert_array_equal(resumed[name], unbroken[name], err_msg=f"{stage} {name}")
    # The same lines in the same order: no step is missing, and none is there twice.
    assert lines(run) == lines(finished_run.folder)
    for file in (finished_run.folder / "answers").iterdir():
        assert pl.read_parquet(run / "answers" / file.name).equals(pl.read_parquet(file)), file.name
    resumed, unbroken = ((f / "evaluation.json").read_text() for f in (run, finished_run.folder))
    assert resumed == unbroken
    assert (run / "report.html").exists()
