"""A training that is interrupted: it stops where it should, with all of it saved, and ends as one that was not."""

import contextlib
import errno
import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainingArguments

from anyo_rl.training.loop.callbacks import keep_best, train_to_the_end
from anyo_rl.training.loop.checkpoints import BEST, best_checkpoint, latest_checkpoint
from anyo_rl.training.loop.interruption import STOPPED, CheckpointError, disk_is_full

pytestmark = pytest.mark.slow

SCORES = {2: 0.1, 4: 0.5, 6: 0.2, 8: 0.3, 3: 0.5, 9: 0.2}  # by step: the best one comes early


BY_EPOCH = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 3, "max_steps": -1}


class Line(torch.nn.Module):
    """A model of two weights, with dropout, so that random states count."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line, self.dropout = torch.nn.Linear(2, 1), torch.nn.Dropout(0.5)

    def forward(self, x, y):
        return {"loss": (self.line(self.dropout(x))[:, 0] - y).square().mean()}


class Scored(Trainer):
    """Its validations are known beforehand."""

    def evaluate(self, *args, **kwargs):
        metrics = {BEST: SCORES.get(self.state.global_step, 0.0)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class At(TrainerCallback):
    """Does something at an event of a step."""

    def __init__(self, event: str, step: int, action) -> None:
        self.step, self.action = step, action
        setattr(self, event, self.act)

    def act(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.action()


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def make(stage_dir: Path, *callbacks: TrainerCallback, **changed) -> Trainer:
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 4, "max_steps": 8}
    settings |= {"per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 0.1, "save_total_limit": 2}
    settings |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True, **changed}
    rows = [{"x": torch.tensor([float(i), 1.0]), "y": torch.tensor(float(i % 3))} for i in range(6)]
    args = keep_best(TrainingArguments(output_dir=str(stage_dir), **settings), stage_dir)
    return Scored(Line(), args, train_dataset=rows, eval_dataset=rows, callbacks=list(callbacks))


def end(stage_dir: Path) -> tuple[bytes, list[dict]]:
    """Weights of the last step, and what was logged, without clocks."""
    newest = latest_checkpoint(stage_dir)
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return (newest / "model.safetensors").read_bytes(), history


@pytest.fixture(scope="module")
def unbroken_dir(tmp_path_factory):
    stage_dir = tmp_path_factory.mktemp("unbroken")
    train_to_the_end(make(stage_dir), stage_dir)
    return stage_dir


@pytest.fixture(scope="module")
def unbroken_epochs_dir(tmp_path_factory):
    stage_dir = tmp_path_factory.mktemp("unbroken")
    train_to_the_end(make(stage_dir, **BY_EPOCH), stage_dir)
    return stage_dir


@pytest.mark.parametrize(
    ("event", "step", "saved"),
    [
        ("on_step_begin", 2, 3),  # between two validations
        ("on_step_end", 2, 2),  # with the validation that is due
        ("on_evaluate", 4, 4),  # with the save that is due
        ("on_train_end", 8, 8),
    ],
)
def test_sigterm_saves_and_what_goes_on_ends_as_if_nothing_had_been(
    tmp_path, capsys, unbroken_dir, event, step, saved
):
    handler = signal.getsignal(signal.SIGTERM)
    stage_dir = tmp_path / "sft"
    with pytest.raises(SystemExit) as stopped:
        train_to_the_end(make(stage_dir, At(event, step, sigterm)), stage_dir)
    assert stopped.value.code == STOPPED == 143
    where = "the end of the stage" if event == "on_train_end" else f"step {saved}"
    assert f"stopped by SIGTERM, saved at {where} in {stage_dir}: the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == handler
    assert latest_checkpoint(stage_dir).name == f"checkpoint-{saved}"

    train_to_the_end(make(stage_dir), stage_dir)
    assert end(stage_dir) == end(unbroken_dir)
    best, expected = best_checkpoint(stage_dir), best_checkpoint(unbroken_dir)
    assert best.name == expected.name == "checkpoint-4"
    assert (best / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("step", "saved"), [(1, 2), (2, 3), (8, 9)])
def test_by_epochs_one_that_ends_is_validated_first(tmp_path, unbroken_epochs_dir, step, saved):
    stage_dir = tmp_path / "sft"
    with pytest.raises(SystemExit):
        train_to_the_end(make(stage_dir, At("on_step_begin", step, sigterm), **BY_EPOCH), stage_dir)
    newest = latest_checkpoint(stage_dir)
    assert newest.name == f"checkpoint-{saved}"
    history = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in history if BEST in row] == [n for n in (3, 6, 9) if n <= saved]
    train_to_the_end(make(stage_dir, **BY_EPOCH), stage_dir)
    assert end(stage_dir) == end(unbroken_epochs_dir)
    assert best_checkpoint(stage_dir).name == best_checkpoint(unbroken_epochs_dir).name == "checkpoint-3"


def test_what_was_measured_since_the_last_line_is_logged(tmp_path):
    stage_dir = tmp_path / "sft"
    with pytest.raises(SystemExit):
        train_to_the_end(make(stage_dir, At("on_step_begin", 2, sigterm), logging_steps=100), stage_dir)
    history = json.loads((latest_checkpoint(stage_dir) / "trainer_state.json").read_text())["log_history"]
    assert [row["step"] for row in history if "loss" in row] == [3]


def test_without_its_optimizer_a_checkpoint_is_not_gone_on_from(tmp_path, unbroken_dir):
    stage_dir = tmp_path / "sft"
    mine = stage_dir / "checkpoint-best-keep"
    mine.mkdir(parents=True)
    with pytest.raises(SystemExit):
        train_to_the_end(make(stage_dir, At("on_step_begin", 5, sigterm)), stage_dir)
    (stage_dir / "checkpoint-6" / "optimizer.pt").unlink()
    assert latest_checkpoint(stage_dir).name == "checkpoint-4"
    train_to_the_end(make(stage_dir), stage_dir)
    assert end(stage_dir) == end(unbroken_dir)
    assert mine.exists()


class CountsTokens(Scored):
    """Counts what it reads, as TRL's trainers do."""

    _total_train_tokens = 0

    def training_step(self, *args, **kwargs):
        self._total_train_tokens += 10 + self.state.global_step
        return super().training_step(*args, **kwargs)


def test_totals_go_on_after_a_kill(tmp_path):
    def train(folder: Path, *callbacks: TrainerCallback) -> Trainer:
        made = make(folder, *callbacks)
        made.__class__ = CountsTokens
        with contextlib.suppress(SystemExit):
            train_to_the_end(made, folder)
        return made

    whole = train(tmp_path / "whole")
    train(tmp_path / "killed", At("on_step_begin", 5, sigterm))
    resumed = train(tmp_path / "killed")
    assert whole._total_train_tokens == resumed._total_train_tokens == 8 * 10 + sum(range(8))
    expected, found = (trainer.state.log_history[-1]["train_loss"] for trainer in (whole, resumed))
    assert found == pytest.approx(expected, rel=1e-6)
    assert expected > 0


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_earlier_checkpoints_whole_and_says_so(tmp_path, unbroken_dir):
    stage_dir = tmp_path / "sft"
    trainer = make(stage_dir)
    save = trainer._save_optimizer_and_scheduler
    trainer._save_optimizer_and_scheduler = lambda d: full() if trainer.state.global_step == 8 else save(d)
    said = rf"of step 8 could not be written to {stage_dir} \(\[Errno 28\] .* MB are free there\)\. .*make room"
    with pytest.raises(CheckpointError, match=said):
        train_to_the_end(trainer, stage_dir)
    assert (stage_dir / "checkpoint-8" / "model.safetensors").exists()
    assert latest_checkpoint(stage_dir).name == "checkpoint-4"
    train_to_the_end(make(stage_dir), stage_dir)
    assert end(stage_dir) == end(unbroken_dir)


def test_other_errors_of_a_save_keep_their_traceback(tmp_path):
    trainer = make(tmp_path)

    def fail(folder):
        raise RuntimeError("Connection closed by peer")

    trainer._save_optimizer_and_scheduler = fail
    with pytest.raises(RuntimeError, match="Connection closed"):
        train_to_the_end(trainer, tmp_path)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (OSError(errno.ENOENT, "No such file"), False),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (SafetensorError("Error while deserializing header: header too small"), False),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), True),
        (RuntimeError("(os error 28)"), False),
        (ValueError("no room"), False),
    ],
)
def test_whether_a_disk_is_full(error, expected):
    assert disk_is_full(error) == expected


def test_the_last_file_of_a_checkpoint_follows_those_of_all_processes(tmp_path, monkeypatch):
    trainer = make(tmp_path, save_steps=8)
    seen, wait = [], trainer.accelerator.wait_for_everyone
    folder = tmp_path / "checkpoint-8"

    def look():
        seen.append(
            {name: (folder / name).exists() for name in ("optimizer.pt", "rng_state.pth", "trainer_state.json")}
        )
        wait()

    monkeypatch.setattr(trainer.accelerator, "wait_for_everyone", look)
    train_to_the_end(trainer, tmp_path)
    assert {"optimizer.pt": True, "rng_state.pth": True, "trainer_state.json": False} in seen
    assert (folder / "trainer_state.json").exists()


def test_a_training_outside_of_the_main_thread_takes_no_signals(tmp_path):
    ended = []
    thread = threading.Thread(target=lambda: ended.append(train_to_the_end(make(tmp_path), tmp_path)))
    thread.start()
    thread.join()
    assert ended == [None]
