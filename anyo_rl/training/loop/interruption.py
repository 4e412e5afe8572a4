"""What lets a training be interrupted: by SIGTERM, in the middle of a save, by a full disk.

transformers has a switch of its own (`enable_jit_checkpoint`), in which each process decides for itself at which step
it saves, and a checkpoint says that training is over. Here all processes decide together.
"""

import errno
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from anyo_rl.training.loop.checkpoints import remove_older
from anyo_rl.training.loop.vllm import stop_colocated_engine

STOPPED = 128 + signal.SIGTERM  # exit status of a process that saved and stopped, as shells have it


class CheckpointError(OSError):
    """A checkpoint could not be written; those before it are whole."""


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that a file could not be written for want of room: on the disk, or in a quota."""
    codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    in_words = isinstance(error, SafetensorError) and any(f"(os error {code})" in str(error) for code in codes)
    return in_words or _torch_could_not_write(error) or getattr(error, "errno", None) in codes


def _torch_could_not_write(error: BaseException) -> bool:
    """torch has no error of its own for that, and does not say why."""
    return isinstance(error, RuntimeError) and "inline_container" in str(error)


class StoppedError(Exception):
    """Training was asked to stop, and all of it is saved."""


class StopOnSigterm(TrainerCallback):
    """On SIGTERM to any process all finish the optimiser step, with its validation if one is due, save, and stop.

    A checkpoint that comes without a validation is none that could be the best, and goes as others go.

    Args:
        accelerator: the trainer's.

    Raises:
        StoppedError: out of the training, on all processes, once the checkpoint is complete.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.asked, self.agreed = False, False

    def ask(self, signum: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Takes the signal. A launcher and Slurm may both send it: the second one changes nothing."""
        self.asked = True

    def agree(self) -> bool:
        """Whether any process was asked. All must call this together, and get the same answer."""
        asked = torch.tensor([self.asked], device=self.accelerator.device)
        self.agreed |= bool(self.accelerator.gather(asked).any())
        return self.agreed

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Has the step saved; where epochs are validated and saved, and one ends here, that save is waited for."""
        epoch_ends = float(state.epoch).is_integer() or control.should_training_stop
        if self.agree() and not (args.save_strategy == SaveStrategy.EPOCH and epoch_ends):
            control.should_save = True
            control.should_log = True  # what was measured since the last line would be lost

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops, now that the checkpoint is there. It says that training goes on, as it was saved before."""
        if self.agree():
            raise StoppedError(f"step {state.global_step}")


class InCycle(TrainerCallback):
    """Lets a resumed GRPO use what is left of a generation cycle, where it was saved in the middle of one.

    TRL counts from 0 again: the cycles would begin at other prompts, some of which would be trained on twice. What is
    left is sampled anew, so resuming is exact only from between two cycles.

    Args:
        trainer: the trainer; those without cycles are left alone.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sets TRL's count of forwards; an epoch is a whole number of cycles."""
        if hasattr(self.trainer, "_step"):
            n_batches = len(kwargs["train_dataloader"])
            updates_per_epoch = max(1, -(-n_batches // args.gradient_accumulation_steps))
            self.trainer._step = state.global_step % updates_per_epoch * args.gradient_accumulation_steps


class Totals(TrainerCallback):
    """Lets what is counted since the start of a training go on after a kill: TRL and transformers begin at 0 again.

    Tokens go into the trainer's state, which every checkpoint has; TRL's GRPO has them there by itself. The mean loss
    of a training (`train_loss`) is over all steps whose loss was logged before the checkpoint, and all after it.

    Args:
        trainer: the trainer.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.loss, self.n_steps = 0.0, 0  # of the steps before this start, their sum
        self._log = trainer.log
        trainer.log = self._log_whole

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Takes up the counts of the checkpoint."""
        if self._counts_tokens(args):
            self.trainer._total_train_tokens = state.num_input_tokens_seen
        for row in state.log_history:
            if "loss" in row:
                self.loss += row["loss"] * (row["step"] - self.n_steps)
                self.n_steps = row["step"]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Puts the tokens where a checkpoint has them."""
        if self._counts_tokens(args):
            state.num_input_tokens_seen = max(state.num_input_tokens_seen, self.trainer._total_train_tokens)

    def _counts_tokens(self, args: Any) -> bool:
        return hasattr(self.trainer, "_total_train_tokens") and args.include_num_input_tokens_seen == "no"

    def _log_whole(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "train_loss" in logs and self.n_steps:
            n_now = self.trainer.state.global_step - self.trainer._initial_global_step
            whole = (self.loss + logs["train_loss"] * n_now) / (self.n_steps + n_now)
            logs = {**logs, "train_loss": whole}
        self._log(logs, *args, **kwargs)


@contextmanager
def interruptible(trainer: Trainer, stage_dir: Path) -> Iterator[None]:
    """Training inside may be interrupted; all processes enter together.

    Args:
        trainer: the trainer.
        stage_dir: the folder of its checkpoints.

    Raises:
        CheckpointError: a checkpoint could not be written.
        SystemExit: with status 143, on all processes: SIGTERM came, and training is saved.
    """
    stop = StopOnSigterm(trainer.accelerator)
    trainer.add_callback(stop)
    trainer.add_callback(InCycle(trainer))
    trainer.add_callback(Totals(trainer))
    _guard_saves(trainer, stage_dir)
    # Only the main thread can take signals; a trainer in another one is stopped as any program is.
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, stop.ask) if in_main else None
    where = "the end of the stage"
    try:
        try:
            yield
        except StoppedError as stopped:
            where = str(stopped)
        if stop.agree():
            where = f"{where} in {stage_dir}"
            _leave(trainer, f"stopped by SIGTERM, saved at {where}: the same command goes on from there")
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


def _leave(trainer: Trainer, message: str) -> None:
    if trainer.accelerator.is_main_process:
        print(message, file=sys.stderr, flush=True)
    stop_colocated_engine(trainer)
    trainer.accelerator.wait_for_everyone()
    PartialState().destroy_process_group()
    sys.exit(STOPPED)


def _guard_saves(trainer: Trainer, stage_dir: Path) -> None:
    """Makes a checkpoint's last file follow those of all processes, and says plainly that one could not be written."""
    save, save_random_state = trainer._save_checkpoint, trainer._save_rng_state

    def save_random_state_together(folder: str) -> None:
        # The main process now writes `trainer_state.json`, and removes older checkpoints.
        save_random_state(folder)
        trainer.accelerator.wait_for_everyone()

    def save_or_say(*args: Any, **kwargs: Any) -> None:
        # transformers would take any folder whose name begins with `checkpoint-` for one of its own, and remove it.
        limit, trainer.args.save_total_limit = trainer.args.save_total_limit, None
        try:
            save(*args, **kwargs)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not _torch_could_not_write(error):
                raise
            free_mb = shutil.disk_usage(stage_dir).free / 1e6
            raise CheckpointError(
                f"the checkpoint of step {trainer.state.global_step} could not be written to {stage_dir} ({error}; "
                f"{free_mb:.0f} MB are free there). Those before it are whole: make room, and the same command goes "
                "on from the newest"
            ) from error
        finally:
            trainer.args.save_total_limit = limit
        if trainer.args.should_save:
            remove_older(stage_dir, limit, trainer.state.best_model_checkpoint)

    trainer._save_rng_state, trainer._save_checkpoint = save_random_state_together, save_or_say
