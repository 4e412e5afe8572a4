"""Keeping the best, going on after a kill, and writing down what is logged."""

import copy
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from anyo_rl.run.folder import append_metrics, read_metrics, write_metrics
from anyo_rl.run.settings import UsageError
from anyo_rl.training.loop.checkpoints import BEST, latest_checkpoint, training_is_over
from anyo_rl.training.loop.interruption import interruptible
from anyo_rl.training.loop.vllm import stop_colocated_engine


def check_saves(args: TrainingArguments) -> None:
    """Checks that every checkpoint comes with a validation, so that the best one can be told.

    Raises:
        ValueError: it does not.
    """
    if args.eval_strategy != args.save_strategy or args.eval_strategy == "no":
        raise UsageError(
            f"eval_strategy is {args.eval_strategy.value} and save_strategy is {args.save_strategy.value}, expected "
            f"steps or epoch for both: the best checkpoint is chosen on validation"
        )
    if args.eval_strategy == "epoch":
        return
    every, saved = args.eval_steps, args.save_steps  # shares of the training where they are below 1
    if (every < 1) != (saved < 1) or round(saved * 1e6) % round(every * 1e6):
        raise UsageError(
            f"save_steps is {saved} and eval_steps is {every}, expected a multiple of eval_steps: the best checkpoint "
            f"is chosen on validation"
        )


def keep_best(args: TrainingArguments, stage_dir: Path, metric: str = BEST) -> TrainingArguments:
    """A copy of the arguments for a stage: its folder, and the checkpoint with the best validation NDCG@10 is kept.

    Args:
        args: the settings.
        stage_dir: where checkpoints go.
        metric: what the best one is best at, in place of NDCG@10; of a loss (`eval_loss`) the least is best.

    Raises:
        ValueError: see `check_saves`.
    """
    check_saves(args)
    args = copy.copy(args)  # `replace` would run checks again that refuse values which they derived themselves
    args.output_dir = str(stage_dir)
    args.load_best_model_at_end = True
    args.metric_for_best_model = metric
    args.greater_is_better = not metric.endswith("loss")
    if args.save_total_limit == 1:
        args.save_total_limit = 2  # with 1 the last checkpoint is deleted before the teacher is saved
    args.restore_callback_states_from_checkpoint = True  # else early stopping forgets how long it has waited
    return args


def stopping(patience: int) -> list[TrainerCallback]:
    """Early stopping after `patience` validations without a gain; none for 0."""
    return [EarlyStoppingCallback(patience)] if patience else []


def train_to_the_end(trainer: Trainer, stage_dir: Path) -> None:
    """Trains from the newest complete checkpoint of a stage, if training is not over; all processes end together.

    Raises:
        CheckpointError: a checkpoint could not be written.
        SystemExit: SIGTERM came, and training is saved.
    """
    accelerator = trainer.accelerator
    checkpoint = latest_checkpoint(stage_dir) if accelerator.is_main_process else None
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        checkpoint = latest_checkpoint(stage_dir)
    if not (checkpoint and training_is_over(checkpoint)):
        if checkpoint:
            trainer.args.eval_on_start = False  # measured and written down before the kill
        with interruptible(trainer, stage_dir):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    stop_colocated_engine(trainer)
    accelerator.wait_for_everyone()


class MetricsFile(TrainerCallback):
    """Appends what the trainer logs to the run's `metrics.jsonl`, with the stage and the step.

    A resumed stage drops the lines after the checkpoint that it goes on from, so no step is there twice.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path = path
        self.stage = stage

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drops this stage's lines from the current step on."""
        if not state.is_world_process_zero or not self.path.exists():
            return
        rows = read_metrics(self.path)[0]
        kept = [row for row in rows if row.get("stage") != self.stage or row.get("step", 0) <= state.global_step > 0]
        write_metrics(self.path, kept)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Appends one line."""
        if not state.is_world_process_zero or not logs:
            return
        numbers = {}
        for key, value in logs.items():
            try:
                numbers[key] = float(value)
            except (TypeError, ValueError):
                continue
        append_metrics(self.path, {"stage": self.stage, "step": state.global_step, **numbers})
