"""What a console shows of a training: a bar, and a line for each validation; `metrics.jsonl` has everything."""

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from anyo_rl.evaluation.summary import FUSED
from anyo_rl.training.loop.validation import METRIC

# What a validation of teachers measures, in words; by itself or with evidence.
TEACHERS = {METRIC: "NDCG@10", "hr@10": "HR@10"}
WITH_EVIDENCE = {f"{FUSED}{METRIC}": "NDCG@10 with evidence", "same_top10": "as evidence in the first ten"}
SHOWN = ("reward", "loss")  # the first that is logged stands beside the bar
QUIET_S = 30.0  # between two states of the bar where nobody watches it move


class Console(TrainerCallback):
    """A bar of updates and a line for each validation, on the main process.

    Args:
        stage: what is trained.
        metrics: what a validation measures, in words; the first is what a model is chosen by.
    """

    def __init__(self, stage: str, metrics: Mapping[str, str] = TEACHERS) -> None:
        self.stage = stage
        self.metrics = metrics
        self.bar: tqdm | None = None
        self.best: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins where a run that was killed had come to."""
        if state.is_world_process_zero:
            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc=self.stage,
                unit="update",
                mininterval=1.0 if sys.stderr.isatty() else QUIET_S,
                disable=args.disable_tqdm,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Shows what is learned beside the bar."""
        name = next((name for name in SHOWN if name in (logs or {})), None)
        if self.bar is not None and logs is not None and name is not None:
            self.bar.set_postfix({name: f"{float(logs[name]):.3f}"}, refresh=False)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **kwargs: Any
    ) -> None:
        """One line."""
        values = {words: (metrics or {}).get(f"eval_{name}") for name, words in self.metrics.items()}
        value = next(iter(values.values()))
        if not state.is_world_process_zero or value is None:
            return
        better = self.best is None or (value > self.best if args.greater_is_better else value < self.best)
        self.best = value if better else self.best
        told = ", ".join(f"{words} {value:.4f}" for words, value in values.items() if value is not None)
        note = " (best so far)" if better else ""
        tqdm.write(
            f"{self.stage}, update {state.global_step} of {state.max_steps}: validation {told}{note}", file=sys.stderr
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves the bar as it is."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def show_on_console(trainer: Trainer, stage: str, metrics: Mapping[str, str] = TEACHERS) -> None:
    """Puts `Console` in the place of what prints every row that is logged."""
    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)
    trainer.add_callback(Console(stage, metrics))
