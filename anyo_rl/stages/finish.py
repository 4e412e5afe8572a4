"""How every stage that trains a teacher ends: its best checkpoint, whole, in `<stage>/teacher`.

Each stage keeps its checkpoints in a folder of the run and goes on from the newest complete one. That its teacher's
folder is there says that the stage is done; nothing finished is done twice or lost.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.item_tokens import teacher_files
from anyo_rl.catalog.semantic_ids import SemanticIds
from anyo_rl.data.task import Task
from anyo_rl.reasoning.rows import make_rows
from anyo_rl.run.launch import whole_weights
from anyo_rl.search.answers import Mode
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.teacher.codes import show_bias
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.critic import detach_critic
from anyo_rl.training.loop.callbacks import best_checkpoint, train_to_the_end
from anyo_rl.training.loop.throughput import Throughput
from anyo_rl.training.loop.validation import Validation
from anyo_rl.training.loop.weights import unquantised

logger = logging.getLogger(__name__)

TEACHER = "teacher"


def teacher_folder(stage_dir: Path) -> Path:
    """Where a stage keeps its finished teacher; that the folder is there says that the stage is done."""
    return stage_dir / TEACHER


def finish_stage(
    trainer: Trainer,
    stage_dir: Path,
    tokens: Tokens,
    start: Callable[[], PreTrainedModel],
    ids: SemanticIds | None = None,
) -> None:
    """Trains from the newest complete checkpoint to the end, and saves the best teacher in `teacher_folder`.

    Args:
        trainer: the trainer.
        stage_dir: the folder of its checkpoints.
        tokens: the teacher's tokenizer and marker.
        start: gives the model that the stage started from, on which LoRA adapters lie.
        ids: the semantic ids that the teacher answers with, if it does.
    """
    show_bias(trainer.model)
    trainer.add_callback(Throughput(trainer))
    train_to_the_end(trainer, stage_dir)
    accelerator = trainer.accelerator
    if accelerator.is_main_process:
        # Read from the disk: what the trainer holds may be shared out over the processes.
        with whole_weights():
            best = best_checkpoint(stage_dir)
            model = load_checkpoint(best, start) if best else unquantised(start())
        if not best:
            logger.warning("%s: no validation was better than at the start, whose teacher is kept", stage_dir)
        detach_critic(model)
        stop_at_marker(model, tokens)
        save_teacher(model, tokens.tokenizer, teacher_folder(stage_dir), teacher_files(ids))
    accelerator.wait_for_everyone()


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


def validation(task: Task, catalog: Catalog, tokens: Tokens, teacher_args: TeacherArguments, mode: Mode) -> Validation:
    """What is measured on validation users while training."""
    return Validation(
        rows=make_rows(task, task.split("validation", task.args.max_validation), catalog, tokens),
        catalog=catalog,
        tokens=tokens,
        mode=mode,
        n_paths=teacher_args.n_paths,
        max_new_tokens=teacher_args.max_reasoning_tokens,
        mask_history=task.args.mask_history,
    )
