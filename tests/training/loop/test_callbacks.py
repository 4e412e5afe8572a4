import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import EarlyStoppingCallback, TrainingArguments

from anyo_rl.training.loop.callbacks import (
    MetricsFile,
    best_checkpoint,
    keep_best,
    latest_checkpoint,
    stopping,
    training_is_over,
)


def checkpoint(stage_dir: Path, step: int, state: str | None) -> Path:
    folder = stage_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x")
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


class Run:
    """A trainer's state, for the callback alone."""

    def __init__(self, path: Path, stage: str = "sft", step: int = 0, main: bool = True) -> None:
        self.file = MetricsFile(path, stage)
        self.state = SimpleNamespace(global_step=step, is_world_process_zero=main)
        self.file.on_train_begin(None, self.state, None)

    def log(self, step: int, **logs) -> None:
        self.state.global_step = step
        self.file.on_log(None, self.state, None, logs)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_numbers_are_written_with_stage_and_step(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    run = Run(path)
    run.log(5, loss=0.5, grad_norm="1.5", note="text", nothing=None, table=[1])
    run.log(10, **{"eval_ndcg@10": 0.25})
    run.file.on_log(None, run.state, None, {})
    run.file.on_log(None, run.state, None, None)
    assert rows(path) == [
        {"stage": "sft", "step": 5, "loss": 0.5, "grad_norm": 1.5},
        {"stage": "sft", "step": 10, "eval_ndcg@10": 0.25},
    ]


def test_other_processes_write_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Run(path, main=False).log(5, loss=1.0)
    assert not path.exists()
    Run(path).log(5, loss=1.0)
    Run(path, main=False, step=0)  # and drop nothing
    assert len(rows(path)) == 1


def test_a_resumed_stage_drops_what_came_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Run(path, "sft").log(50, loss=3.0)
    run = Run(path, "grpo")
    for step in (5, 25, 30):
        run.log(step, loss=float(step))
    Run(path, "grpo", step=25).log(30, loss=0.5)
    assert [(r["stage"], r["step"], r["loss"]) for r in rows(path)] == [
        ("sft", 50, 3.0),
        ("grpo", 5, 5.0),
        ("grpo", 25, 25.0),
        ("grpo", 30, 0.5),
    ]


def test_a_stage_from_the_start_drops_all_its_lines_even_those_of_step_0(tmp_path):
    path = tmp_path / "metrics.jsonl"
    run = Run(path, "grpo")
    run.log(0, loss=1.0)
    run.log(5, loss=1.0)
    Run(path, "sft").log(5, loss=2.0)
    Run(path, "grpo")
    assert [r["stage"] for r in rows(path)] == ["sft"]


@pytest.mark.parametrize("torn", ['{"stage": "grpo", "ste', '{"stage": "grpo", "step": 25, "loss": 2', "{"])
def test_a_torn_last_line_is_survived(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    run = Run(path, "grpo")
    run.log(5, loss=1.0)
    with path.open("a") as file:
        file.write(torn)
    Run(path, "grpo", step=10).log(15, loss=0.5)
    assert [r["step"] for r in rows(path)] == [5, 15]
    assert sorted(tmp_path.iterdir()) == [path]  # nothing partial is left


def trainer_settings(folder: Path, **changed) -> TrainingArguments:
    return TrainingArguments(output_dir=str(folder), report_to="none", use_cpu=True, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "eval_strategy is no and save_strategy is steps"),
        ({"save_strategy": "no"}, "eval_strategy is no and save_strategy is no"),
        ({"eval_strategy": "epoch"}, "eval_strategy is epoch and save_strategy is steps"),
        ({"eval_strategy": "steps", "eval_steps": 20, "save_steps": 30}, "save_steps is 30 and eval_steps is 20"),
        ({"eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 20}, "save_steps is 20 and eval_steps is 0.1"),
        ({"eval_strategy": "steps", "eval_steps": 0.2, "save_steps": 0.3}, "save_steps is 0.3 and eval_steps is 0.2"),
    ],
)
def test_checkpoints_without_a_validation_are_refused(tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        keep_best(trainer_settings(tmp_path, **changed), tmp_path)


@pytest.mark.parametrize(
    "changed",
    [
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"eval_strategy": "steps", "eval_steps": 20, "save_steps": 40},
        {"eval_strategy": "steps", "eval_steps": 0.1, "save_steps": 0.3},
    ],
)
def test_checkpoints_with_a_validation_are_fine(tmp_path, changed):
    assert keep_best(trainer_settings(tmp_path, **changed), tmp_path).load_best_model_at_end


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


def test_keep_best_leaves_the_given_arguments_alone(tmp_path):
    args = trainer_settings(tmp_path / "run", eval_strategy="steps", eval_steps=500)
    kept = keep_best(args, tmp_path / "run" / "sft")
    assert (kept.output_dir, kept.load_best_model_at_end) == (str(tmp_path / "run" / "sft"), True)
    assert (kept.metric_for_best_model, kept.greater_is_better) == ("eval_ndcg@10", True)
    assert (args.output_dir, args.load_best_model_at_end) == (str(tmp_path / "run"), False)


def test_stopping():
    assert stopping(0) == []
    (callback,) = stopping(3)
    assert isinstance(callback, EarlyStoppingCallback)
    assert callback.early_stopping_patience == 3
