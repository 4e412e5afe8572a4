"""Which checkpoints are gone on from, kept and removed."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anyo_rl.training.loop.checkpoints import (
    best_checkpoint,
    checkpoints,
    latest_checkpoint,
    missing_parts,
    remove_older,
    training_is_over,
)


def checkpoint(stage_dir: Path, step: int, state: str | None) -> Path:
    folder = stage_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({"weight": torch.ones(3)}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"step": step}, folder / name)
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder


def state_of(step: int) -> str:
    return json.dumps({"global_step": step, "log_history": []}, indent=2)


def test_the_newest_checkpoint_is_found_by_its_step(tmp_path):
    assert latest_checkpoint(tmp_path / "nowhere") is None
    assert latest_checkpoint(tmp_path) is None
    for step in (5, 100, 25):  # as text, 5 comes last
        checkpoint(tmp_path, step, state_of(step))
    (tmp_path / "teacher").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    assert (tmp_path / "teacher").exists()


@pytest.mark.parametrize(
    "state", [None, "", state_of(30)[:12], "{}", "null", "[]", '{"global_step": null}', "\x00\x00"]
)
def test_half_written_checkpoints_are_removed(tmp_path, state):
    whole = checkpoint(tmp_path, 25, state_of(25))
    half = checkpoint(tmp_path, 30, state)
    assert latest_checkpoint(tmp_path) == whole
    assert not half.exists()
    assert (whole / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.safetensors", "weights"),
        ("optimizer.pt", "optimizer"),
        ("scheduler.pt", "scheduler"),
        ("rng_state.pth", "random state"),
    ],
)
@pytest.mark.parametrize("left", [None, 0, 0.5])
def test_one_that_lacks_something_is_not_gone_on_from(tmp_path, caplog, name, part, left):
    whole = checkpoint(tmp_path, 25, state_of(25))
    lacking = checkpoint(tmp_path, 30, state_of(30))
    content = (lacking / name).read_bytes()
    (lacking / name).unlink()
    if left is not None:
        (lacking / name).write_bytes(content[: int(left * len(content))])
    assert missing_parts(whole) == ""
    assert missing_parts(lacking) == part
    assert latest_checkpoint(tmp_path) == whole
    assert f"{lacking} has no whole {part}" in caplog.text
    assert (tmp_path / "incomplete-checkpoint-30" / "trainer_state.json").exists()
    assert latest_checkpoint(tmp_path) == whole


def test_checkpoints_of_sharded_training_are_complete(tmp_path):
    deepspeed, fsdp = checkpoint(tmp_path / "a", 5, state_of(5)), checkpoint(tmp_path / "b", 5, state_of(5))
    for folder in (deepspeed, fsdp):
        (folder / "rng_state.pth").rename(folder / "rng_state_0.pth")
        (folder / "optimizer.pt").unlink()
    (deepspeed / "scheduler.pt").unlink()
    (deepspeed / "global_step5").mkdir()
    (fsdp / "optimizer_0").mkdir()
    assert missing_parts(deepspeed) == missing_parts(fsdp) == ""


def test_only_numbered_checkpoints_are_ours(tmp_path):
    whole = checkpoint(tmp_path, 25, state_of(25))
    mine = [
        tmp_path / name for name in ("checkpoint-best-keep", "checkpoint-25-keep", "checkpoint-", "checkpoint-7.5")
    ]
    for folder in mine:
        folder.mkdir()
    (tmp_path / "checkpoint-99").write_text("a file")
    assert checkpoints(tmp_path) == {25: whole}
    assert latest_checkpoint(tmp_path) == whole
    remove_older(tmp_path, 1, None)
    assert all(folder.exists() for folder in [whole, *mine])


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, [5, 10, 25, 100]),
        (0, None, [5, 10, 25, 100]),
        (2, None, [25, 100]),
        (2, "elsewhere/checkpoint-5", [5, 100]),
        (3, "elsewhere/checkpoint-5", [5, 25, 100]),
        (1, "checkpoint-10", [10, 100]),
        (9, None, [5, 10, 25, 100]),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path, limit, best, left):
    for step in (5, 10, 25, 100):
        checkpoint(tmp_path, step, state_of(step))
    remove_older(tmp_path, limit, best)
    assert list(checkpoints(tmp_path)) == left
    remove_older(tmp_path / "nowhere", limit, best)


def over(step: int, best: str | None, stopped: bool = False, at_start: float | None = None) -> str:
    control = {"TrainerControl": {"args": {"should_training_stop": stopped}}}
    state = {"global_step": step, "max_steps": 30, "best_model_checkpoint": best, "stateful_callbacks": control}
    history = [{"step": 0, "eval_ndcg@10": at_start}] if at_start is not None else []
    return json.dumps(state | {"best_metric": 0.3, "log_history": [*history, {"step": 10, "eval_ndcg@10": 0.3}]})


def test_the_best_checkpoint_is_found_where_the_folder_lies_now(tmp_path):
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        best_checkpoint(tmp_path)
    best = checkpoint(tmp_path, 10, over(10, None))
    newest = checkpoint(tmp_path, 30, over(30, "some/other/place/checkpoint-10"))
    assert best_checkpoint(tmp_path) == best
    (newest / "trainer_state.json").write_text(over(30, "checkpoint-20"))  # it was never saved
    assert best_checkpoint(tmp_path) == newest
    (newest / "trainer_state.json").write_text(over(30, None))
    assert best_checkpoint(tmp_path) == newest


@pytest.mark.parametrize(("at_start", "kept"), [(None, True), (0.2, True), (0.3, True), (0.31, False)])
def test_a_start_that_was_better_than_all_checkpoints_is_kept(tmp_path, at_start, kept):
    best = checkpoint(tmp_path, 10, over(10, None))
    checkpoint(tmp_path, 30, over(30, "checkpoint-10", at_start=at_start))
    assert best_checkpoint(tmp_path) == (best if kept else None)


def test_whether_training_is_over(tmp_path):
    assert not training_is_over(checkpoint(tmp_path, 10, over(10, None)))
    assert training_is_over(checkpoint(tmp_path, 20, over(20, None, stopped=True)))
    assert training_is_over(checkpoint(tmp_path, 30, over(30, None)))
