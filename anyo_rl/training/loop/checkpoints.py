"""The checkpoints of a stage: which are complete, which is newest, which is best, and which may go.

Only folders that are named `checkpoint-` and a number are the trainer's; whatever else lies there is the user's.
"""

import json
import logging
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyo_rl.training.loop.validation import METRIC

logger = logging.getLogger(__name__)

BEST = f"eval_{METRIC}"
STATE = "trainer_state.json"
# What training goes on from, each with the files that may hold it: of one process and DDP, of FSDP, of DeepSpeed.
PARTS = {
    "weights": ("*.safetensors", "pytorch_model*", "global_step*"),
    "optimizer": ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*"),
    "scheduler": ("scheduler.pt", "global_step*"),
    "random state": ("rng_state*.pth",),
}


def checkpoints(stage_dir: Path) -> dict[int, Path]:
    """The checkpoints of a stage by their step, in order, complete or not."""
    found = {folder: re.fullmatch(r"checkpoint-(\d+)", folder.name) for folder in stage_dir.glob("checkpoint-*")}
    steps = {int(name[1]): folder for folder, name in found.items() if name and folder.is_dir()}
    return dict(sorted(steps.items()))


def latest_checkpoint(stage_dir: Path) -> Path | None:
    """The newest complete checkpoint; half-written ones are removed, and those that lack something are put aside.

    A checkpoint's `trainer_state.json` is written last: without it, or with half of it, a kill came in between. With
    it, what is missing or cut short was lost later, and training that went on without it would be another one.
    """
    newest = None
    for folder in checkpoints(stage_dir).values():
        if _state(folder) is None:
            shutil.rmtree(folder, ignore_errors=True)
        elif lost := missing_parts(folder):
            aside = folder.with_name(f"incomplete-{folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
            logger.warning("%s has no whole %s: not gone on from, and put aside as %s", folder, lost, aside.name)
        else:
            newest = folder
    return newest


def missing_parts(checkpoint: Path) -> str:
    """What a checkpoint lacks of what training goes on from, in words; empty where nothing."""
    lost = []
    for part, patterns in PARTS.items():
        files = [file for pattern in patterns for file in checkpoint.glob(pattern)]
        if not files or not all(map(_is_whole, files)):
            lost.append(part)
    return ", ".join(lost)


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
    state = json.loads((newest / STATE).read_text())
    at_start = [row[metric] for row in state["log_history"] if row["step"] == 0 and metric in row]
    sign = -1 if metric.endswith("loss") else 1
    if at_start and state["best_metric"] is not None and sign * at_start[0] > sign * state["best_metric"]:
        return None
    named = state["best_model_checkpoint"]
    best = stage_dir / Path(named).name if named else newest
    return best if best.is_dir() else newest


def training_is_over(checkpoint: Path) -> bool:
    """Whether a checkpoint was the last one; resumed from it, the trainer would take one step too many."""
    state = json.loads((checkpoint / STATE).read_text())
    control = state["stateful_callbacks"]["TrainerControl"]["args"]
    return state["global_step"] >= state["max_steps"] or control["should_training_stop"]


def remove_older(stage_dir: Path, limit: int | None, best: str | None) -> None:
    """Removes the oldest checkpoints of a stage; the newest one and the best stay.

    Args:
        stage_dir: where they are.
        limit: how many stay, these two included; all for `None` and 0.
        best: path of the best one.
    """
    folders = list(checkpoints(stage_dir).values())
    stay = {folders[-1].name, Path(best).name if best else ""} if folders else set()
    may_go = [folder for folder in folders if folder.name not in stay]
    for folder in may_go[: max(0, len(folders) - limit)] if limit else []:
        shutil.rmtree(folder, ignore_errors=True)


def _state(checkpoint: Path) -> Mapping[str, Any] | None:
    try:
        state = json.loads((checkpoint / STATE).read_text())
        return {**state, "global_step": int(state["global_step"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_whole(file: Path) -> bool:
    """Whether a file is all there, as far as its end tells."""
    if file.suffix in (".pt", ".pth", ".bin"):
        return zipfile.is_zipfile(file)  # torch's format; the directory of a zip file is at its end
    if file.suffix == ".safetensors":
        with file.open("rb") as opened:
            n_head = int.from_bytes(opened.read(8), "little")
            try:
                head = json.loads(opened.read(min(n_head, file.stat().st_size)))
                ends = [one["data_offsets"][1] for name, one in head.items() if name != "__metadata__"]
            except (ValueError, AttributeError, KeyError, TypeError):
                return False
        return 8 + n_head + max(ends, default=0) == file.stat().st_size
    return True
