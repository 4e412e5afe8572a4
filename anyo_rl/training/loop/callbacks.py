"""Keeping the best, going on after a kill, and writing down what is logged."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from anyo_rl.run.folder import read_metrics, write_metrics
from anyo_rl.training.loop.interruption import interruptible
from anyo_rl.training.loop.validation import METRIC
from anyo_rl.training.loop.vllm import stop_colocated_engine

BEST = f"eval_{METRIC}"


def check_saves(args: TrainingArguments) -> None:
    """Checks that every checkpoint comes with a validation, so that the best one can be told.

    Raises:
        ValueError: it does not.
    """
    if args.eval_strategy != args.save_strategy or args.eval_strategy == "no":
        raise ValueError(
            f"eval_strategy is {args.eval_strategy.value} and save_strategy is {args.save_strategy.value}, expected "
            f"steps or epoch for both: the best checkpoint is chosen on validation"
        )
    if args.eval_strategy == "epoch":
        return
    every, saved = args.eval_steps, args.save_steps  # shares of the training where they are below 1
    if (every < 1) != (saved < 1) or round(saved * 1e6) % round(every * 1e6):
        raise ValueError(
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


def latest_checkpoint(stage_dir: Path) -> Path | None:
    """The newest complete checkpoint; half-written ones are removed.

    A checkpoint's `trainer_state.json` is written last: without it, or with half of it, a kill came in between.
    """
    complete = []
    for folder in stage_dir.glob("checkpoint-*"):
        try:
            state = json.loads((folder / "trainer_state.json").read_text())
            complete.append((int(state["global_step"]), folder))
        except (OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(folder, ignore_errors=True)
    return max(complete)[1] if complete else None


def best_checkpoint(stage_dir: Path, metric: str = BEST) -> Path | None:
    """The checkpoint with the best validation, or the newest where that one was not saved.

    `None` where training made nothing better: the validation before the first step (`eval_on_start`) beats all later
    ones. The folder may have been moved since: only the name of a checkpoint counts.

    Args:
        stage_dir: where the checkpoints are.
        metric: as `keep_best` had it.

    Raises:
        FileNotFoundError: there is no complete checkpoint.
    """
    newest = latest_checkpoint(stage_dir)
    if newest is None:
        raise FileNotFoundError(f"no complete checkpoint in {stage_dir}, expected one at the end of training")
    state = json.loads((newest / "trainer_state.json").read_text())
    at_start = [row[metric] for row in state["log_history"] if row["step"] == 0 and metric in row]
    sign = -1 if metric.endswith("loss") else 1
    if at_start and state["best_metric"] is not None and sign * at_start[0] > sign * state["best_metric"]:
        return None
    named = state["best_model_checkpoint"]
    best = stage_dir / Path(named).name if named else newest
    return best if best.is_dir() else newest


def training_is_over(checkpoint: Path) -> bool:
    """Whether a checkpoint was the last one; resumed from it, the trainer would take one step too many."""
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    control = state["stateful_callbacks"]["TrainerControl"]["args"]
    return state["global_step"] >= state["max_steps"] or control["should_training_stop"]


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
        kept = [row for row in rows if row["stage"] != self.stage or row["step"] <= state.global_step > 0]
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": self.stage, "step": state.global_step, **numbers}) + "\n")
