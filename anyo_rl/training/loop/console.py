"""What a console shows of a training: a bar, and a line for each validation; `metrics.jsonl` has everything."""

import sys
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from anyo_rl.training.loop.validation import METRIC

SHOWN = ("reward", "loss")  # the first that is logged stands beside the bar
QUIET_S = 30.0  # between two states of the bar where nobody watches it move


class Console(TrainerCallback):
    """A bar of updates and a line for each validation, on the main process.

    Args:
        stage: what is trained.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.bar: tqdm | None = None
        self.best = -1.0

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
        value = (metrics or {}).get(f"eval_{METRIC}")
        if not state.is_world_process_zero or value is None or metrics is None:
            return
        note = " (best so far)" if value > self.best else ""
        self.best = max(self.best, value)
        tqdm.write(
            f"{self.stage}, update {state.global_step} of {state.max_steps}: validation NDCG@10 {value:.4f}, "
            f"HR@10 {metrics['eval_hr@10']:.4f}{note}",
            file=sys.stderr,
        )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves the bar as it is."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def show_on_console(trainer: Trainer, stage: str) -> None:
    """Puts `Console` in the place of what prints every row that is logged."""
    for kind in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(kind)
    trainer.add_callback(Console(stage))
