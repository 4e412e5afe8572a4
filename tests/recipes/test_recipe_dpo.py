"""DPO from the smoke run's warm start: as documented, killed and resumed, with LoRA, and evaluated again."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from anyo_rl.reasoning.rows import make_rows
from anyo_rl.sampling.paths import SampledPath
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.shards import ShardedJob, run_shards

SMOKE = Path(__file__).parent / "configs"

pytestmark = pytest.mark.slow


@pytest.fixture
def job(asked, tmp_path) -> Path:
    """A sampling job of two paths for each of a few training examples: its rationale, and that of another."""
    task, tokens = asked.task, asked.tokens
    train = task.split("train").filter(pl.col("example_id").is_in(list(task.rationales))).head(17)
    rows = make_rows(task, train, asked.catalog, tokens)
    reasonings = [tokens.reasoning_ids(task.rationales[row.example_id][0]) for row in rows]
    other = {row.example_id: reasonings[i - 1] for i, row in enumerate(rows)}
    own = {row.example_id: reasonings[i] for i, row in enumerate(rows)}

    def make_paths(rows):
        return [
            SampledPath(
                example_id=row.example_id,
                sample_index=index,
                user_id=row.user_id,
                prompt=row.prompt,
                target_id=row.target_id,
                rank=rank,
                ranker="likelihood",
                token_ids=ids,
                completion=tokens.decode(ids),
            )
            for row in rows
            for index, (ids, rank) in enumerate([(own[row.example_id], 2), (other[row.example_id], 40)])
        ]

    folder = tmp_path / "job"
    run_shards(rows, ShardedJob(folder, Sampling(n=2), policy="sft", n_shards=2, split="train"), make_paths)
    return folder


def flags(finished_run, job: Path, run: Path) -> tuple[object, ...]:
    start = ("--model_name_or_path", finished_run.teacher, "--paths", job)
    return ("--config", SMOKE / "dpo.yaml", *start, "--output_dir", run)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def lines(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    varying = ("runtime", "per_second", "total_flos", "train_loss")
    return [{k: v for k, v in row.items() if not any(word in k for word in varying)} for row in rows]


@pytest.mark.on_request
def test_killed_and_resumed_it_ends_as_one_that_was_left_alone(finished_run, launcher, job, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    output = launcher.finish("dpo_teacher", *flags(finished_run, job, whole))
    assert f"teacher: {whole / 'dpo' / 'teacher'}" in output
    assert "preference pairs: pairs 17," in output
    summary = json.loads((whole / "evaluation.json").read_text())
    assert {stage: set(modes) for stage, modes in summary["stages"].items()} == {
        stage: {"greedy", "mixture"} for stage in ("sft", "dpo")
    }
    assert set(summary["differences"]) == {"dpo-sft"}
    assert "dpo − sft" in (whole / "evaluation.md").read_text()
    assert (whole / "report.html").exists()
    pairs = pl.read_parquet(whole / "pairs" / "train.parquet")
    assert (pairs["chosen"] != pairs["rejected"]).all()
    rows = lines(whole)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert all({"item_loss", "rewards/margins"} <= set(row) for row in rows if "loss" in row)
    start, end = weights(finished_run.teacher), weights(whole / "dpo" / "teacher")
    assert start.keys() == end.keys()
    assert sum(not np.array_equal(start[name], end[name]) for name in start) > len(start) / 2

    state = broken / "dpo" / "checkpoint-2" / "trainer_state.json"
    launcher.start("dpo_teacher", *flags(finished_run, job, broken)).kill_when(state.exists)
    assert not (broken / "dpo" / "teacher").exists()
    launcher.finish("dpo_teacher", *flags(finished_run, job, broken))
    resumed = weights(broken / "dpo" / "teacher")
    for name in end:
        np.testing.assert_array_equal(resumed[name], end[name], err_msg=name)
    assert lines(broken) == rows
    assert (broken / "evaluation.json").read_text() == (whole / "evaluation.json").read_text()

    # Finished, it is not done again, and evaluate finds its teacher.
    assert "validation NDCG@10" not in launcher.finish("dpo_teacher", *flags(finished_run, job, whole))
    assert lines(whole) == rows
    launcher.finish("evaluate", "--run_dir", whole, "--baselines", "false")
    assert json.loads((whole / "evaluation.json").read_text()) == summary


def test_lora_ends_with_a_whole_teacher_and_other_arguments_want_another_folder(finished_run, launcher, job, tmp_path):
    lora = ("--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj", "--max_test", 4, "--learning_rate", 0.1)
    run = tmp_path / "run"
    launcher.finish("dpo_teacher", *flags(finished_run, job, run), *lora)
    start, end = weights(finished_run.teacher), weights(run / "dpo" / "teacher")
    assert start.keys() == end.keys()
    changed = {name for name in start if not np.array_equal(start[name], end[name])}
    assert changed == {name for name in start if "q_proj" in name or "v_proj" in name}
    done = launcher.start("dpo_teacher", *flags(finished_run, job, run), *lora, "--beta", 0.5).wait()
    assert done.process.returncode == 1
    assert f"error: {run} was made with beta=0.1, now 0.5" in done.output


@pytest.mark.on_request
def test_full_weights_and_their_reference_are_shared_out_by_zero3(
    deepspeed_ready, finished_run, launcher, job, tmp_path
):
    run = tmp_path / "run"
    least = "--max_steps 2 --max_test 4 --per_device_train_batch_size 2 --ddp_backend gloo"
    launch = {"config": "zero3.yaml", "launch_flags": ("--mixed_precision", "no", "--main_process_port", "0")}
    launcher.finish("dpo_teacher", *flags(finished_run, job, run), *least.split(), **launch)
    versions = json.loads((run / "versions.json").read_text())
    assert (versions["num_processes"], versions["distributed_type"]) == (2, "DEEPSPEED")
    losses = [row for row in lines(run) if "loss" in row]
    assert [row["step"] for row in losses] == [1, 2]
    assert losses[0]["rewards/margins"] == 0  # the reference is the start, whole on both
    assert losses[1]["rewards/margins"] != 0
    start, end = weights(finished_run.teacher), weights(run / "dpo" / "teacher")
    assert start.keys() == end.keys()
