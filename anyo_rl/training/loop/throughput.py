"""How fast a stage trains, where its time goes, and what memory it takes: logged with TRL's own metrics.

`throughput/samples_per_second` and `throughput/tokens_per_second` are of all processes: sequences that were trained on
(GRPO's completions), and tokens as `num_tokens` counts them. `time_share/sampling`, `time_share/ranking`,
`time_share/rewards` and `time_share/training` (all else: forwards, backwards, the optimizer, waiting for others) are
of the main process and add up to 1. `memory/peak_gib` is the most that the main process has held so far.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

GIB = 1 << 30


class Clock:
    """Adds up the seconds of named parts of a training step, in `seconds`."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Adds what is done inside to a part."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - began


class Throughput(TrainerCallback):
    """Puts what the module's docstring names among a TRL trainer's metrics, measured from one log to the next.

    Evaluations and checkpoints are not in it. Not as additions to a log: those that report to TensorBoard and others
    come before a callback of ours.

    Args:
        trainer: a trainer with TRL's `_metrics`; if it has a `clock`, its parts are logged as shares.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.clock: Clock | None = getattr(trainer, "clock", None)
        self._reset()

    def _reset(self) -> None:
        self.seconds, self.samples, self.tokens = 0.0, 0, 0
        if self.clock is not None:
            self.clock.seconds.clear()

    def _tokens(self) -> int:
        """Tokens seen until now: GRPO counts them in the trainer's state, SFT and DPO beside it."""
        return max(getattr(self.trainer, "_total_train_tokens", 0), self.trainer.state.num_input_tokens_seen)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock."""
        self.began, self.tokens_before = time.perf_counter(), self._tokens()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Brings the metrics up to date."""
        self.seconds += time.perf_counter() - self.began
        self.tokens += self._tokens() - self.tokens_before
        n_batches = self.trainer.current_gradient_accumulation_steps * self.trainer.accelerator.num_processes
        self.samples += args.train_batch_size * n_batches
        found = {
            "throughput/samples_per_second": self.samples / self.seconds,
            "throughput/tokens_per_second": self.tokens / self.seconds,
            **(shares(self.clock.seconds, self.seconds) if self.clock is not None else {}),
            **peak_memory(self.trainer.accelerator.device),
        }
        for name, value in found.items():
            self.trainer._metrics["train"][name] = [value]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Begins anew after a log of training steps."""
        if "loss" in (logs or {}):
            self._reset()


def shares(seconds: dict[str, float], total: float) -> dict[str, float]:
    """Shares of the time of steps, and what is left for training.

    Args:
        seconds: part to its seconds, no moment in two of them.
        total: of the steps, above 0.

    >>> shares({"sampling": 1.0, "ranking": 0.5}, 2.0)
    {'time_share/sampling': 0.5, 'time_share/ranking': 0.25, 'time_share/training': 0.25}
    """
    found = {f"time_share/{part}": of_part / total for part, of_part in seconds.items()}
    return {**found, "time_share/training": 1 - sum(found.values())}


def peak_memory(device: torch.device) -> dict[str, float]:
    """`memory/peak_gib`: the most that this process's GPU had allocated, or, without one, the process itself."""
    if device.type == "cuda":
        return {"memory/peak_gib": torch.cuda.max_memory_allocated(device) / GIB}
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"memory/peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB}
