"""A run that is killed again and again ends as one that was left alone."""

import shutil

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow


def test_killed_in_every_stage_a_run_ends_the_same(finished_run, launcher, logged, tmp_path):
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

    launcher.start("grpo_teacher", *flags).kill_when((run / "grpo" / "checkpoint-2" / "trainer_state.json").exists)
    assert (run / "sft" / "teacher").exists()
    assert not half.exists()
    assert not (run / "grpo" / "teacher").exists()

    launcher.start("grpo_teacher", *flags).kill_when((run / "direct" / "checkpoint-4" / "trainer_state.json").exists)
    assert (run / "grpo" / "teacher").exists()
    assert not (run / "direct" / "teacher").exists()

    launcher.start("grpo_teacher", *flags).kill_when((run / "answers" / "sft.greedy.parquet").exists)
    assert (run / "direct" / "teacher").exists()
    assert not (run / "evaluation.json").exists()
    launcher.finish("grpo_teacher", *flags)

    # transformers restores optimizer, data order and random state: on the CPU resumed training is exact.
    for stage in ("sft", "direct", "grpo"):
        resumed = load_file(run / stage / "teacher" / "model.safetensors")
        unbroken = load_file(finished_run.folder / stage / "teacher" / "model.safetensors")
        for name in unbroken:
            np.testing.assert_array_equal(resumed[name], unbroken[name], err_msg=f"{stage} {name}")
    # The same lines in the same order: no step is missing, and none is there twice.
    assert logged(run) == logged(finished_run.folder)
    for file in (finished_run.folder / "answers").iterdir():
        assert pl.read_parquet(run / "answers" / file.name).equals(pl.read_parquet(file)), file.name
    resumed, unbroken = ((f / "evaluation.json").read_text() for f in (run, finished_run.folder))
    assert resumed == unbroken
    assert (run / "report.html").exists()
