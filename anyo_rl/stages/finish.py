"""How every stage that trains a teacher ends: its best checkpoint, whole, in `<stage>/teacher`, and memory free again.

Each stage keeps its checkpoints in a folder of the run and goes on from the newest complete one. That its teacher's
folder is there says that the stage is done; nothing finished is done twice or lost.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer

from anyo_rl.catalog.item_tokens import teacher_files
from anyo_rl.catalog.opening import Teacher
from anyo_rl.run.launch import whole_weights
from anyo_rl.stages.job import Job
from anyo_rl.teacher.codes import show_bias
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.teacher.save import save_teacher
from anyo_rl.training.critic import detach_critic
from anyo_rl.training.loop.callbacks import train_to_the_end
from anyo_rl.training.loop.checkpoints import best_checkpoint
from anyo_rl.training.loop.closing import close_trainer
from anyo_rl.training.loop.console import TEACHERS, WITH_EVIDENCE, show_on_console
from anyo_rl.training.loop.flops import Flops
from anyo_rl.training.loop.throughput import Throughput
from anyo_rl.training.loop.weights import unquantised

logger = logging.getLogger(__name__)


def finish_stage(
    job: Job, stage: str, trainer: Trainer, teacher: Teacher, start: Callable[[], PreTrainedModel]
) -> Path:
    """Trains from the newest complete checkpoint to the end, saves the best teacher, and closes trainer and teacher.

    Args:
        job: of the run.
        stage: its name.
        trainer: the trainer.
        teacher: what it trains.
        start: gives the model that the stage started from, on which LoRA adapters lie.

    Returns:
        The folder of the finished teacher.
    """
    stage_dir, folder = job.folder / stage, job.teacher_folder(stage)
    show_bias(trainer.model)
    metric = trainer.args.metric_for_best_model
    fused = metric.removeprefix("eval_") in WITH_EVIDENCE
    show_on_console(trainer, stage, WITH_EVIDENCE if fused else TEACHERS)
    trainer.add_callback(Throughput(trainer))
    trainer.add_callback(Flops(trainer))
    train_to_the_end(trainer, stage_dir)
    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        # Read from the disk: what the trainer holds may be shared out over the processes.
        with whole_weights():
            best = best_checkpoint(stage_dir, metric)
            model = load_checkpoint(best, start) if best else unquantised(start())
        if not best:
            logger.warning("%s: no validation was better than at the start, whose teacher is kept", stage_dir)
        detach_critic(model)
        stop_at_marker(model, teacher.tokens)
        save_teacher(model, teacher.tokens.tokenizer, folder, teacher_files(teacher.ids))
        del model
    accelerator.wait_for_everyone()
    close_trainer(trainer)
    teacher.close()
    return folder


def load_checkpoint(
    checkpoint: Path, start: Callable[[], PreTrainedModel], kind: Any = AutoModelForCausalLM
) -> PreTrainedModel:
    """The model of a checkpoint: whole, or LoRA adapters (and their new head) merged into what `start` gives.

    Adapters of a quantised model are merged into its weights as the adapters saw them, in full precision: quantised
    again, the merged weights would be others than those that were trained.
    """
    if (checkpoint / "adapter_config.json").exists():
        return PeftModel.from_pretrained(unquantised(start()), checkpoint).merge_and_unload()
    return kind.from_pretrained(checkpoint, dtype="auto", use_safetensors=True)
