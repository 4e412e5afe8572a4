"""What a run starts from and is compared with: a warm start by SFT, and the `direct` teacher."""

import copy
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType
from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments
from anyo_rl.evaluation.convergence import Rule, read_trainings, rival_flops
from anyo_rl.evaluation.stages import DIRECT, SFT
from anyo_rl.run.folder import METRICS, WARM_START, Section, resolve
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.arguments import ComparisonArguments, ReasonerArguments, TeacherArguments
from anyo_rl.stages.begin import parse
from anyo_rl.stages.job import Job
from anyo_rl.stages.parser import read_settings
from anyo_rl.stages.sft import DIRECTLY, Lesson, train_sft
from anyo_rl.training.loop.callbacks import check_saves
from anyo_rl.training.loop.until import Until

EQUAL = Rule(least_wait=0, least_share=0.0, least_flops=1.0)
MOST_UPDATES = 100_000
# What a part may set for itself, or what is set for it: finished parts that it goes on from.
OF_PARTS = ("early_stopping_patience", "baselines_from", "evidence")


@dataclass(frozen=True)
class WarmStart:
    """A warm start as its config says it.

    Attributes:
        training_args: TRL's settings.
        teacher_args: the run's, with the warm start's own patience.
        train_direct: whether `direct` is trained beside what the run trains.
    """

    training_args: SFTConfig
    teacher_args: TeacherArguments
    train_direct: bool


def parse_warm_start(
    comparison_args: ComparisonArguments,
    config: Path | None,
    training_args: TrainingArguments,
    teacher_args: TeacherArguments,
) -> WarmStart | None:
    """Parses a warm start's config, for its trainer settings and its patience; all else is the run's own.

    Args:
        comparison_args: `sft_config`, without which there is no warm start, and `train_direct`.
        config: the run's config file.
        training_args: the run's; its seed and where it runs hold here too, since parsing trainer settings sets the
            processes up anew.
        teacher_args: the run's.

    Raises:
        SystemExit: no such file, or it says something else of data, model or teacher than the run's config does.
        ValueError: its checkpoints come without a validation, or it does not train what the run's ranker reads.
    """
    if not comparison_args.sft_config:
        return None
    check_written(comparison_args, teacher_args)
    *_, sft_teacher, sft_args = parse_beside(comparison_args.sft_config, config, training_args)
    patience = sft_teacher.early_stopping_patience
    return WarmStart(
        sft_args,
        dataclasses.replace(teacher_args, early_stopping_patience=patience),
        comparison_args.train_direct,
    )


def check_written(args: ComparisonArguments, teacher_args: TeacherArguments) -> None:
    """Checks that SFT trains what the ranker of reinforcement reads.

    Raises:
        UsageError: it does not.
    """
    written = isinstance(args, ReasonerArguments) and args.ranker != "likelihood"
    if written and teacher_args.sft_item_loss != "tokens":
        raise UsageError(
            "a teacher that writes its items learns them token by token: with this ranker set sft_item_loss to tokens"
        )


def parse_beside(named: str, config: Path | None, training_args: TrainingArguments, *kinds: type) -> tuple[Any, ...]:
    """Parses the config of another stage of a run, which has the run's data, model and teacher.

    Args:
        named: the file, beside the run's own config or from here.
        config: the run's config.
        training_args: the run's; its seed and where it runs hold there too, since parsing trainer settings sets the
            processes up anew.
        *kinds: what the config says besides data, model, teacher and TRL's SFT settings.

    Returns:
        One instance of each: data, model, `kinds`, teacher, SFT settings.

    Raises:
        SystemExit: see `parse_warm_start`.
        ValueError: its checkpoints come without a validation.
    """
    shared = ["--seed", str(training_args.seed), "--use_cpu", str(training_args.use_cpu)]
    shared += ["--ddp_backend", training_args.ddp_backend] if training_args.ddp_backend else []
    return parse_part(named, config, (DataArguments, ModelConfig, *kinds, TeacherArguments, SFTConfig), shared)


def parse_part(
    named: str,
    config: Path | None,
    kinds: Sequence[type],
    flags: Sequence[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Parses the config of any part of a run, with flags on top of it.

    Args:
        named: the file, beside the run's own config or from here.
        config: the run's config.
        kinds: what the config says.
        flags: what the run says instead.
        defaults: values below those of the file.

    Returns:
        One instance of each kind.

    Raises:
        SystemExit: no such file, or it says something else of data, model or teacher than the run's config does.
        ValueError: its checkpoints come without a validation.
    """
    path = sft_config_path(named, config)
    _check_agrees(path, config)
    *parsed, _ = parse(kinds, args=["--config", str(path), *flags], defaults=defaults)
    for one in parsed:
        if isinstance(one, TrainingArguments):
            check_saves(one)
    return tuple(parsed)


def recorded(warm_start: WarmStart | None) -> dict[str, Section]:
    """What a run folder records of a warm start, as a section of its arguments; nothing where there is none."""
    if warm_start is None:
        return {}
    patience = {"early_stopping_patience": warm_start.teacher_args.early_stopping_patience}
    return resolve(**{WARM_START: warm_start.training_args.to_dict() | patience})


def train_warm_start(job: Job, warm_start: WarmStart | None, *, hint_share: float = 0.0) -> dict[str, Path | str]:
    """Trains what a run starts from (`sft`).

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
    job = dataclasses.replace(job, teacher_args=warm_start.teacher_args)
    return {SFT.name: train_sft(job, SFT.name, warm_start.training_args, Lesson(hint_share=hint_share))}


def train_direct(job: Job, warm_start: WarmStart | None) -> dict[str, Path | str]:
    """Trains the teacher that a run's others are compared with, with as many FLOPs as all of theirs together.

    That is no converged opponent, and its row says so: a claim takes `recipes/compare.py`.

    Args:
        job: of the run, whose other teachers are finished.
        warm_start: `None` where there is none, and so no `direct` either.

    Returns:
        Stage name to teacher.
    """
    if warm_start is None or not warm_start.train_direct:
        return {}
    until = Until(EQUAL, rival_flops(read_trainings(job.folder / METRICS)))
    return {DIRECT.name: train_until(job, DIRECT.name, open_ended(warm_start.training_args), DIRECTLY, until)}


def open_ended(args: SFTConfig, most_updates: int = MOST_UPDATES) -> SFTConfig:
    """A copy of the settings at a constant rate, for a training that ends by a rule."""
    args = copy.copy(args)
    args.max_steps = most_updates
    args.lr_scheduler_type = SchedulerType.CONSTANT_WITH_WARMUP
    return args


def train_until(job: Job, stage: str, args: SFTConfig, lesson: Lesson, until: Until) -> Path:
    """SFT that a rule ends, and no patience."""
    teacher_args = dataclasses.replace(job.teacher_args, early_stopping_patience=0)
    return train_sft(dataclasses.replace(job, teacher_args=teacher_args), stage, args, lesson, [until])


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
    own = read_settings(config) if config else {}
    try:
        warm = read_settings(path)
    except UsageError as error:
        sys.exit(f"{path}: {error}")
    defaults = {
        item.name: item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
        for kind in (DataArguments, ModelConfig, TeacherArguments)
        for item in dataclasses.fields(kind)
        if item.name not in OF_PARTS and item.init
    }
    differing = [
        f"{name} is {warm[name]!r} there and {own.get(name, default)!r} in {config or 'the defaults'}"
        for name, default in defaults.items()
        if name in warm and warm[name] != own.get(name, default)
    ]
    if differing:
        sys.exit(
            f"{path}: a warm start has the run's data, model and teacher: {'; '.join(differing)}. Make them agree"
        )
