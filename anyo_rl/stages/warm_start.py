"""What a run starts from and is compared with: a warm start by SFT, and the `direct` teacher."""

import copy
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainingArguments
from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.evaluation.stages import DIRECT, SFT
from anyo_rl.run.folder import WARM_START, resolve
from anyo_rl.stages.arguments import ComparisonArguments, ReasonerArguments, TeacherArguments
from anyo_rl.stages.begin import parse
from anyo_rl.stages.job import Job
from anyo_rl.stages.sft import DIRECTLY, Lesson, train_sft
from anyo_rl.training.loop.callbacks import check_saves


@dataclass(frozen=True)
class WarmStart:
    """A warm start as its config says it.

    Attributes:
        training_args: TRL's settings.
        teacher_args: the run's, with the warm start's own patience.
        direct_max_steps: update budget of the `direct` teacher; 0 where it is not trained.
    """

    training_args: SFTConfig
    teacher_args: TeacherArguments
    direct_max_steps: int


def parse_warm_start(
    comparison_args: ComparisonArguments,
    config: Path | None,
    training_args: TrainingArguments,
    teacher_args: TeacherArguments,
    rounds: int = 1,
) -> WarmStart | None:
    """Parses a warm start's config, for its trainer settings and its patience; all else is the run's own.

    Args:
        comparison_args: `sft_config`, without which there is no warm start, and `train_direct`.
        config: the run's config file.
        training_args: the run's; its seed and where it runs hold here too, since parsing trainer settings sets the
            processes up anew.
        teacher_args: the run's.
        rounds: how often `training_args` train.

    Raises:
        SystemExit: no such file, or it says something else of data, model or teacher than the run's config does.
        ValueError: its checkpoints come without a validation, budgets count epochs where steps are needed, or it
            does not train what the run's ranker reads.
    """
    if not comparison_args.sft_config:
        return None
    written = isinstance(comparison_args, ReasonerArguments) and comparison_args.ranker != "likelihood"
    if written and teacher_args.sft_item_loss != "tokens":
        raise ValueError(
            "a teacher that writes its items learns them token by token: with this ranker set sft_item_loss to tokens"
        )
    path = sft_config_path(comparison_args.sft_config, config)
    _check_agrees(path, config)
    shared = ["--seed", str(training_args.seed), "--use_cpu", str(training_args.use_cpu)]
    shared += ["--ddp_backend", training_args.ddp_backend] if training_args.ddp_backend else []
    types = (DataArguments, ModelConfig, TeacherArguments, SFTConfig)
    *_, sft_teacher, sft_args, _ = parse(types, args=["--config", str(path), *shared])
    check_saves(sft_args)
    patience = sft_teacher.early_stopping_patience
    return WarmStart(
        sft_args,
        dataclasses.replace(teacher_args, early_stopping_patience=patience),
        direct_max_steps(sft_args, training_args, rounds) if comparison_args.train_direct else 0,
    )


def direct_max_steps(sft_args: SFTConfig, training_args: TrainingArguments, rounds: int = 1) -> int:
    """The update budget of the `direct` teacher: as many as the warm start and what follows have together.

    Raises:
        ValueError: one of them counts epochs.
    """
    if sft_args.max_steps <= 0 or training_args.max_steps <= 0:
        raise ValueError(
            f"train_direct needs max_steps in both configs, found {sft_args.max_steps} for the warm start and "
            f"{training_args.max_steps} for what follows: set both, or train_direct: false"
        )
    return sft_args.max_steps + rounds * training_args.max_steps


def recorded(warm_start: WarmStart | None) -> dict[str, Any]:
    """What a run folder records of a warm start, as a section of its arguments; nothing where there is none."""
    if warm_start is None:
        return {}
    patience = {"early_stopping_patience": warm_start.teacher_args.early_stopping_patience}
    return resolve(**{WARM_START: warm_start.training_args.to_dict() | patience})


def train_warm_start(job: Job, warm_start: WarmStart | None, *, hint_share: float = 0.0) -> dict[str, Path | str]:
    """Trains what a run starts from (`sft`) and the teacher that it is compared with (`direct`).

    Args:
        job: of the run; without a warm start the path in its `model_args` is what the run starts from.
        warm_start: `None` where there is none.
        hint_share: see `Lesson`.

    Returns:
        Stage name to teacher.

    Raises:
        SystemExit: there is nothing to start from.
    """
    if warm_start is None:
        if not job.model_args.model_name_or_path:
            raise SystemExit("no teacher: set model_name_or_path, or sft_config for a warm start")
        return {SFT.name: job.model_args.model_name_or_path}
    job, args = dataclasses.replace(job, teacher_args=warm_start.teacher_args), warm_start.training_args
    teachers: dict[str, Path | str] = {SFT.name: train_sft(job, SFT.name, args, Lesson(hint_share=hint_share))}
    if warm_start.direct_max_steps:
        args = copy.copy(args)
        args.max_steps = warm_start.direct_max_steps
        teachers[DIRECT.name] = train_sft(job, DIRECT.name, args, DIRECTLY)
    return teachers


def sft_config_path(named: str, config: Path | None) -> Path:
    """The warm start's config: beside the recipe's own, or from the current folder.

    Raises:
        SystemExit: it is in neither place.
    """
    places = [*([config.parent / named] if config else []), Path(named)]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        sys.exit(f"no sft_config {named!r}; looked at {', '.join(map(str, places))}")
    return found


def _check_agrees(path: Path, config: Path | None) -> None:
    """Data, model and teacher of a warm start are the run's: what its config says of them must not be else.

    The two files are compared, not the flags on top of them, which hold for both.
    """
    own = (yaml.safe_load(config.read_text()) if config else None) or {}
    warm = yaml.safe_load(path.read_text())
    defaults = {
        item.name: item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        for kind in (DataArguments, ModelConfig, TeacherArguments)
        for item in dataclasses.fields(kind)
        if item.name != "early_stopping_patience" and item.init
    }
    differing = [
        f"{name} is {warm[name]!r} there and {own.get(name, default)!r} in {config or 'the defaults'}"
        for name, default in defaults.items()
        if isinstance(warm, dict) and name in warm and warm[name] != own.get(name, default)
    ]
    if differing:
        sys.exit(
            f"{path}: a warm start has the run's data, model and teacher: {'; '.join(differing)}. Make them agree"
        )
