"""Throughput, shares of time and memory: by hand on a made-up clock, and in a trainer that reports to TensorBoard."""

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig

from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.search.answers import How
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.training.loop import throughput
from anyo_rl.training.loop.throughput import Clock, Throughput, peak_memory
from anyo_rl.training.loop.validation import Validation
from anyo_rl.training.objective import Objective
from anyo_rl.training.reasoner import ReasonerTrainer

PARTS = ("sampling", "ranking", "rewards", "training")


@pytest.fixture
def now(monkeypatch):
    """A time that tests move on."""
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now.s)
    return now


def test_numbers_are_of_the_steps_since_the_last_log(now):
    trainer = SimpleNamespace(
        state=SimpleNamespace(num_input_tokens_seen=1000),  # of before a kill
        _total_train_tokens=0,
        current_gradient_accumulation_steps=2,
        accelerator=SimpleNamespace(num_processes=3, device=torch.device("cpu")),
        clock=Clock(),
        _metrics={"train": defaultdict(list)},
    )
    args = SimpleNamespace(train_batch_size=4)
    callback = Throughput(trainer)

    def step(seconds, sampling_s, tokens):
        callback.on_step_begin(args, None, None)
        with trainer.clock("sampling"):
            now.s += sampling_s
        now.s += seconds - sampling_s
        trainer.state.num_input_tokens_seen += tokens
        callback.on_step_end(args, None, None)
        now.s += 50.0  # an evaluation

    def logged():
        return {name: pytest.approx(values[0]) for name, values in trainer._metrics["train"].items()}

    step(4.0, 1.0, 80)
    step(8.0, 1.0, 160)
    found = logged()
    assert found["throughput/samples_per_second"] == 2 * 24 / 12
    assert found["throughput/tokens_per_second"] == 240 / 12
    assert (found["time_share/sampling"], found["time_share/training"]) == (2 / 12, 10 / 12)
    callback.on_log(args, None, None, {"eval_ndcg@10": 0.5})  # no end of what is measured
    step(4.0, 4.0, 0)
    assert logged()["throughput/samples_per_second"] == 3 * 24 / 16
    callback.on_log(args, None, None, {"loss": 0.5})
    step(2.0, 0.5, 10)
    found = logged()
    assert (found["throughput/samples_per_second"], found["throughput/tokens_per_second"]) == (12, 5)
    assert found["time_share/sampling"] == 0.25


def test_a_part_that_fails_is_counted_too(now):
    clock = Clock()

    @clock("rewards")
    def fail():
        now.s += 3
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert clock.seconds == {"rewards": 3.0}


def test_peak_memory_only_grows():
    before = peak_memory(torch.device("cpu"))["memory/peak_gib"]
    held = torch.ones(64 << 20)  # 256 MiB
    after = peak_memory(torch.device("cpu"))["memory/peak_gib"]
    del held
    assert 0 < before <= after < 1024
    assert peak_memory(torch.device("cpu"))["memory/peak_gib"] >= after


def test_a_reasoner_reports_them_to_tensorboard(small_teacher, small_catalog, small_tokens, tmp_path, monkeypatch):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    rows = [Row(prompt="Alien\n", history=["i0"], target_id="i1", example_id="u0:1", user_id="u0")]
    stop_at_marker(small_teacher, small_tokens)
    settings = {"use_cpu": True, "bf16": False, "disable_tqdm": True, "save_strategy": "no", "max_steps": 2}
    settings |= {"per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 5}
    trainer = ReasonerTrainer(
        model=small_teacher,
        args=GRPOConfig(output_dir=str(tmp_path), report_to="tensorboard", logging_steps=1, **settings),
        train_dataset=Dataset.from_list([row.columns() for row in rows]),
        processing_class=small_tokens.tokenizer,
        reward_funcs=[lambda completions, **_: [float(len(text)) for text in completions]],
        catalog=small_catalog,
        tokens=small_tokens,
        validation=Validation(rows, small_catalog, small_tokens, How("greedy", Sampling(max_new_tokens=3), top_k=1)),
        objective=Objective(),
    )
    trainer.add_callback(Throughput(trainer))
    trainer.train()

    (file,) = (tmp_path / "events").rglob("events.*")
    events = loader.EventAccumulator(str(file)).Reload()
    for n, row in enumerate(row for row in trainer.state.log_history if "loss" in row):
        parts = [row[f"time_share/{part}"] for part in PARTS]
        assert all(0 < part < 1 for part in parts)
        assert sum(parts) == pytest.approx(1)
        assert row["throughput/tokens_per_second"] > row["throughput/samples_per_second"] > 0
        for name in ("throughput/tokens_per_second", "memory/peak_gib", "time_share/ranking"):
            assert events.Scalars(f"train/{name}")[n].value == pytest.approx(row[name], rel=1e-4)
