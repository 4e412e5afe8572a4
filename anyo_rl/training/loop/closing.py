"""Between two trainers in one process: the first lets go of everything it held, and the second starts afresh."""

from accelerate.state import AcceleratorState
from transformers import Trainer

from anyo_rl.run.memory import free_memory


def close_trainer(trainer: Trainer) -> None:
    """Frees a trainer's model, optimizer and data, and destroys its DeepSpeed engine; it cannot be used any more.

    A trainer, its callbacks and its hooks refer to one another: without this they stay in memory, the optimizer's
    states too, until a garbage collection happens to come.
    """
    trainer.accelerator.free_memory()
    vars(trainer).clear()
    free_memory()


def forget_last_trainer() -> None:
    """Lets the next trainer set accelerate up anew: DeepSpeed would hold the last one's batch size against it."""
    AcceleratorState._reset_state()
