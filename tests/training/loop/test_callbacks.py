import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import EarlyStoppingCallback, TrainingArguments

from anyo_rl.training.loop.callbacks import (
    MetricsFile,
    keep_best,
    stopping,
)


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
