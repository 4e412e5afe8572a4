"""How every recipe begins: its settings (YAML with flags on top, strictly), its launch, data and run folder."""

import logging
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from transformers import TrainingArguments
from trl import ModelConfig

from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.llm.http import ServerError
from anyo_rl.llm.journal import JournalError
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.kinds.asking import taught
from anyo_rl.run.folder import changed_data, hold_together, read_arguments, resolve, start_run
from anyo_rl.run.launch import LaunchError, check_launch
from anyo_rl.run.settings import UsageError
from anyo_rl.run.shared import made_once
from anyo_rl.stages.arguments import ReasonerArguments, TeacherArguments
from anyo_rl.stages.candidates import check_candidates
from anyo_rl.stages.checks import check_examples, check_history, check_settings
from anyo_rl.stages.fusion import check_evidence
from anyo_rl.stages.fusion_arguments import FusionArguments
from anyo_rl.stages.job import Job
from anyo_rl.stages.parser import SettingsParser, read_settings
from anyo_rl.stages.written import check_written
from anyo_rl.training.loop.callbacks import check_saves
from anyo_rl.training.loop.interruption import CheckpointError, disk_is_full

# Errors whose message says all there is to say: whoever started the program can fix what is wrong.
PLAIN = (UsageError, DataError, LaunchError, CheckpointError, ServerError, JournalError)
Arguments = TypeVar("Arguments")
TRAINERS = ("GRPOConfig", "DPOConfig", "SFTConfig")  # the sections of a run that may hold its seed

logger = logging.getLogger(__name__)


def begin(
    dataclass_types: Sequence[type],
    default_config: Path | None = None,
    defaults: Mapping[str, Any] | None = None,
    *,
    on_cpu: bool | None = None,
) -> tuple[Any, ...]:
    """The preamble of a recipe: parses its settings, sets up its console, and checks its launch.

    Args:
        dataclass_types: its settings.
        default_config: the YAML file where `--config` names none.
        defaults: values below those of the YAML file.
        on_cpu: whether processes meet on the CPU, for recipes without trainer settings, which would say so.

    Returns:
        See `parse`.

    Raises:
        LaunchError: what runs is not what was asked of the launcher.
        SystemExit: see `parse`; or checkpoints come without a validation.
    """
    parsed = parse(dataclass_types, default_config, defaults=defaults)
    state = PartialState() if on_cpu is None else PartialState(cpu=on_cpu)
    logging.basicConfig(level=logging.INFO if state.is_main_process else logging.ERROR, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line for each request to a server
    check_launch()
    with plain_errors(ValueError):
        for instance in parsed:
            if isinstance(instance, TrainingArguments):
                check_saves(instance)
    return parsed


def start_job(
    data_args: DataArguments,
    model_args: ModelConfig,
    teacher_args: TeacherArguments,
    training_args: TrainingArguments,
    *others: Any,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    **sections: Any,
) -> Job:
    """Loads the data and claims the run folder for these arguments.

    Args:
        data_args: the data.
        model_args: how teachers are loaded.
        teacher_args: how teachers are made, validated and evaluated.
        training_args: TRL's settings, with the folder and the seed.
        *others: dataclasses that the run depends on besides.
        chat_template_kwargs: what chat templates get besides the messages.
        **sections: what the folder records besides, by name.

    Raises:
        DataError: the data cannot be used.
        UsageError: they leave no example to train on.
        RunFolderError: the folder is of a run with other arguments or other data, or in use.
    """
    later = {name: replace(one, later=True) for name, one in resolve(*others, training_args).items()}
    arguments = resolve(data_args, model_args, teacher_args, **later, **sections)
    check_history(data_args, teacher_args)
    for args in others:
        if isinstance(args, FusionArguments):
            ranker = getattr(args, "ranker", LikelihoodRanker.kind)
            check_candidates(teacher_args.kind(), ranker, args.fusion_alpha)
    check_written(teacher_args, *[args.ranker for args in others if isinstance(args, ReasonerArguments)])
    task, folder = task_for(data_args, teacher_args), Path(training_args.output_dir)
    for args in others:
        check_examples(args, task)
        if isinstance(args, FusionArguments):
            check_evidence(args, teacher_args, task, training_args.seed)
    start_run(folder, arguments, task.report, task.fingerprint)
    return Job(folder, task, model_args, teacher_args, training_args.seed, chat_template_kwargs)


def task_for(data_args: DataArguments, teacher_args: TeacherArguments) -> Task:
    """The data, with rationales of the kind that teachers reason by; all processes call this together.

    Raises:
        DataError: the data cannot be used.
        UsageError: there is no such kind.
    """
    kind = teacher_args.kind()
    return taught(load_task(data_args, made_once), kind)


def task_of_run(run_dir: Path, data_args: DataArguments, teacher_args: TeacherArguments) -> Task:
    """`task_for` what goes on in a finished run's folder, which it holds; says where the data have changed since.

    Raises:
        DataError, UsageError: see `task_for`; or another process holds the folder.
    """
    hold_together(run_dir)
    task = task_for(data_args, teacher_args)
    if changed := changed_data(run_dir, task.fingerprint):
        logger.warning("the teachers of %s were trained on other data: %s changed since", run_dir, ", ".join(changed))
    return task


def parse(
    dataclass_types: Sequence[type],
    default_config: Path | None = None,
    args: Sequence[str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """Parses flags on top of the YAML file of `--config`, or on top of the default file where none is named.

    Args:
        dataclass_types: what to parse.
        default_config: the YAML file where `--config` names none.
        args: flags; those of the command line if `None`.
        defaults: values below those of the YAML file, in place of the dataclasses' own; others are ignored.

    Returns:
        One instance of each dataclass, then the path of the config file (`None` where there is none).

    Raises:
        SystemExit: an unknown key or flag, a value of the wrong type or out of its bounds, or a file that is not
            there; says which.
    """
    beside = Path(sys.argv[0]).parent / "configs"  # of an installed recipe they are not in the current folder
    shipped = beside if beside.is_dir() else "recipes/configs"
    args = list(sys.argv[1:] if args is None else args)
    args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
    if args[-1:] == ["--config"]:
        sys.exit(f"--config has no path after it; the shipped configs are in {shipped}")
    if "--config" not in args and default_config is not None:
        args = ["--config", str(default_config), *args]
    config = Path(args[args.index("--config") + 1]) if "--config" in args[:-1] else None
    if config is not None and not config.is_file():
        sys.exit(f"no config file at {config}; the shipped ones are in {shipped}")
    try:
        if config is not None:
            read_settings(config)
        parser = SettingsParser(list(dataclass_types))
        parser.set_defaults_with_config(**(defaults or {}))
        parsed = parser.parse_args_and_config(args)
        for instance in parsed:
            check_settings(instance)
            if isinstance(instance, TrainingArguments):
                instance.dataloader_pin_memory &= torch.cuda.is_available()  # else there is a warning for each loader
            if getattr(instance, "hub_token", None):
                raise UsageError(
                    "hub_token is no argument: checkpoints would hold it; set HF_TOKEN in the environment"
                )
        return (*parsed, config)
    except (ValueError, TypeError, ImportError, NotImplementedError, OSError) as error:
        sys.exit(f"{config or 'command line'}: {error}")


@dataclass(frozen=True)
class Recorded:
    """The settings of a run, for a recipe that goes on from it.

    Attributes:
        defaults: of the data, the weights, the teacher and the seed, by name.
        chat_template_kwargs: what chat templates were told.
    """

    defaults: Mapping[str, Any]
    chat_template_kwargs: Mapping[str, Any] | None

    @classmethod
    def of_flag(cls, default: str | None = None) -> "tuple[Recorded, Path | None]":
        """That of the run of `--run_dir`, as the command line names it, and the run; nothing where help is asked for.

        Args:
            default: the run where the flag is not there.

        Raises:
            RunFolderError: it is no run folder.
        """
        flag = ArgumentParser(add_help=False, allow_abbrev=False)
        flag.add_argument("--run_dir", default=default)
        run_dir = flag.parse_known_args(sys.argv[1:])[0].run_dir
        if run_dir is None or {"-h", "--help"} & set(sys.argv):
            return cls({}, None), None if run_dir is None else Path(run_dir)
        return cls.of(Path(run_dir)), Path(run_dir)

    @classmethod
    def of(cls, run_dir: Path) -> "Recorded":
        """That of a run.

        Raises:
            RunFolderError: it is no run folder.
        """
        found = read_arguments(run_dir)
        trainer = next((found[name] for name in TRAINERS if name in found), {})
        told = found.get("PairArguments", trainer)  # DPO has no such argument of its own
        sections = ("DataArguments", "ModelConfig", "TeacherArguments")
        defaults = {name: value for section in sections for name, value in found.get(section, {}).items()}
        return cls(defaults | {"seed": trainer.get("seed", 0)}, told.get("chat_template_kwargs"))

    def arguments(self, kind: type[Arguments]) -> Arguments:
        """An instance of one of the dataclasses with the run's settings; what it did not know of has its default."""
        known = {item.name for item in fields(kind) if item.init}  # type: ignore[arg-type]
        return kind(**{name: value for name, value in self.defaults.items() if name in known})


@contextmanager
def plain_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Ends the program with the message alone where the user can fix the cause, as on a full disk; also a decorator.

    Everything else keeps its traceback: it is a bug, ours or a reward's.

    Args:
        *kinds: errors that the user can fix in what is run here, besides those of `PLAIN`.

    Raises:
        SystemExit: in place of such an error, with its message and exit status 1.
    """
    caught: tuple[type[Exception], ...] = (*PLAIN, *kinds)
    try:
        yield
    except caught as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        if not disk_is_full(error):
            raise
        sys.exit(
            f"error: no room to write ({error}). What was finished is whole: make room, and the same command goes on"
        )
