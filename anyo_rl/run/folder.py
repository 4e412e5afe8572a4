"""What a run folder holds besides checkpoints and results: its arguments, versions and data counts.

A run folder belongs to one set of arguments: with others its finished stages would be taken for theirs.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from anyo_rl.run.files import read_json, readable, write_whole
from anyo_rl.run.lock import hold
from anyo_rl.run.logs import hide_progress_bars, log_to_file
from anyo_rl.run.redact import redact
from anyo_rl.run.settings import UsageError

CONFIG = "config.yaml"
FINGERPRINT = "fingerprint.json"
AS_IT_WAS = "put it back as it was, or name another --output_dir"  # of what says what a folder was made with
METRICS = "metrics.jsonl"
WARM_START = "WarmStart"  # the section of the warm start's trainer settings and patience
PRETRAINING, ROUNDS = "Pretraining", "Rounds"  # those of the sequence stage before it, and of STaR before GRPO
# Folders that are there when nothing that comes after a warm start has been trained.
NO_LATER_STAGE = ("sft", "catalog", "logs", "pretrain", "baselines", "evidence")
PACKAGES = ("anyo-rl", "accelerate", "datasets", "peft", "tokenizers", "torch", "transformers", "trl")

# What may change between two starts of a run, since it says how or where to run, what to report and what to evaluate:
# of our own settings those whose field says `free` in its metadata, and of TRL's and transformers', whose fields are
# not ours to mark, these.
FREE_OF_TRL = {
    *("output_dir", "use_cpu", "local_rank", "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb"),
    *("ddp_broadcast_buffers", "ddp_find_unused_parameters", "ddp_static_graph", "deepspeed", "fsdp", "fsdp_config"),
    *("parallelism_config", "generation_batch_size", "num_generations_eval", "per_device_eval_batch_size"),
    *("ds3_gather_for_generation", "dataloader_num_workers", "dataloader_pin_memory"),
    *("dataloader_persistent_workers", "dataloader_prefetch_factor", "torch_empty_cache_steps"),
    *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_server_timeout", "vllm_group_port"),
    *("vllm_gpu_memory_utilization", "disable_tqdm", "report_to", "run_name", "project", "debug"),
    *("skip_memory_metrics", "save_total_limit", "logging_dir", "logging_steps", "logging_strategy"),
    *("logging_first_step", "logging_nan_inf_filter", "log_level", "log_level_replica", "log_on_each_node"),
    *("log_completions", "num_completions_to_print", "log_unique_prompts", "log_multimodal"),
    *("log_completions_hub_repo", "push_to_hub"),
}
FREE_PREFIXES = ("hub_", "trackio_")
# Of what comes after a warm start, settings that the warm start has too.
OF_WARM_START = {"seed", "data_seed", "use_cpu", "chat_template_kwargs", "hint_share"}


@dataclass(frozen=True)
class Section:
    """Settings of one kind, as a run folder keeps them.

    Attributes:
        settings: by name, in what YAML can say, without secrets.
        free: names of those that may change between two starts of a run.
        later: whether they are of what comes after the warm start, where there is one: until something of that is
            made, they may change (a wrong one is often told by the first step).
    """

    settings: Mapping[str, Any]
    free: frozenset[str] = frozenset()
    later: bool = False

    def is_free(self, name: str) -> bool:
        """Whether a setting may change between two starts of a run."""
        return name in self.free or name in FREE_OF_TRL or name.startswith(FREE_PREFIXES)


class RunFolderError(UsageError):
    """The folder holds a run that was made with other arguments, or none."""


def resolve(*arguments: Any, **named: Any) -> dict[str, Section]:
    """Dataclasses as sections by the name of their class, and mappings (or sections) by the name given here."""
    sections = {
        type(instance).__name__: Section(
            _plain(instance.to_dict() if isinstance(instance, TrainingArguments) else dataclasses.asdict(instance)),
            free_settings(instance),
        )
        for instance in arguments
    }
    given = {name: one if isinstance(one, Section) else Section(_plain(one)) for name, one in named.items()}
    return sections | given


def free_settings(instance: Any) -> frozenset[str]:
    """Names of a dataclass's settings that may change between two starts of a run.

    A field says so in its metadata: `"free": True`, or a function of the instance where it depends on another setting.
    """
    marks = {item.name: item.metadata.get("free", False) for item in dataclasses.fields(instance)}
    return frozenset(name for name, mark in marks.items() if (mark(instance) if callable(mark) else mark))


def read_metrics(file: Path) -> tuple[list[Mapping[str, Any]], int]:
    """The rows of a `metrics.jsonl`, and how many lines could not be read, as the last one of a killed run."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []
    rows: list[Mapping[str, Any]] = []
    broken = 0
    for line in filter(str.strip, lines):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            broken += 1
    return rows, broken


def append_metrics(file: Path, row: Mapping[str, object]) -> None:
    """Appends a line to a `metrics.jsonl`, after what a kill left of the last one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+b") as opened:
        if opened.tell():
            opened.seek(-1, os.SEEK_END)
            torn = opened.read(1) != b"\n"
        else:
            torn = False
        opened.write(b"\n" * torn + json.dumps(row).encode() + b"\n")


def write_metrics(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Writes a `metrics.jsonl` anew, whole or not at all."""
    write_whole(file, "".join(f"{json.dumps(row)}\n" for row in rows))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return redact(json.loads(json.dumps(settings, default=str)))


def start_run(
    run_dir: Path,
    arguments: Mapping[str, Section],
    report: Mapping[str, int],
    data: Mapping[str, str] | None = None,
) -> None:
    """Writes what is needed to repeat the run: every argument, versions, how it was launched, and counts of the data.

    From here on each process has a log file of its own there (`anyo_rl.run.logs`), and no other program may use it.

    Args:
        run_dir: see `claim`, as for all else.
        arguments: what `resolve` returns.
        report: what the data came to.
        data: what tells the data from other data.

    Raises:
        RunFolderError: see `claim`.
    """
    claim(run_dir, arguments, report, data)
    log_to_file(run_dir, PartialState().process_index)
    hide_progress_bars()


def claim(
    run_dir: Path,
    arguments: Mapping[str, Section],
    report: Mapping[str, int],
    data: Mapping[str, str] | None = None,
) -> None:
    """Holds a folder for a run and writes what is needed to repeat it; by itself for a part of a run, without logs.

    Args:
        run_dir: the run folder; all processes call this, the main one writes.
        arguments: what `resolve` returns.
        report: what the data came to (`Task.report`).
        data: what tells the data from other data (`anyo_rl.data.fingerprint`); `None` where nothing in the folder
            depends on it unseen.

    Raises:
        RunFolderError: on all processes: the folder is of a run with other arguments or other data, is in use, or
            cannot be written. On one that does not see what the main process wrote: the machines have no file system
            in common.
    """
    check_same(run_dir, arguments)
    if changed := changed_data(run_dir, data or {}):
        raise RunFolderError(
            f"{run_dir} was made from other data: {', '.join(changed)} changed since. Put the data back as it "
            "was, name another --output_dir, or remove the folder"
        )
    state = PartialState()
    state.wait_for_everyone()  # all have read the arguments of before
    hold_together(run_dir)
    if state.is_main_process:
        launch = {"num_processes": state.num_processes, "distributed_type": state.distributed_type.value}
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        settings = {name: dict(section.settings) for name, section in arguments.items()}
        write_whole(run_dir / CONFIG, yaml.safe_dump(settings, sort_keys=False))
        write_whole(
            run_dir / "versions.json",
            json.dumps({"python": platform.python_version(), **versions, **launch}, indent=2),
        )
        write_whole(run_dir / "data.json", json.dumps(dict(report), indent=2))
        if data is not None:
            write_whole(run_dir / FINGERPRINT, json.dumps(dict(data), indent=2))
    state.wait_for_everyone()
    _wait_for(run_dir / CONFIG)


def hold_together(run_dir: Path, patience_s: float = 10.0) -> None:
    """Holds a run folder for the processes of this launch, which call this together.

    Args:
        run_dir: the run folder.
        patience_s: how long a program that was killed may take to end.

    Raises:
        RunFolderError: on all of them: another program holds it, or it cannot be written.
    """
    (wrong,) = broadcast_object_list([hold(run_dir, patience_s) if PartialState().is_main_process else None])
    if wrong is not None:
        raise RunFolderError(wrong)


def changed_data(run_dir: Path, data: Mapping[str, str]) -> list[str]:
    """The parts of the data that are not what the run folder was made from; none where the folder does not say."""
    file = run_dir / FINGERPRINT
    before = read_json(file, AS_IT_WAS) if file.is_file() else {}
    return [name for name in before if name in data and before[name] != data[name]]


def _wait_for(file: Path, patience_s: float = 60) -> None:
    """Waits for what another machine wrote: network file systems may show a new file only after a while."""
    end = time.monotonic() + patience_s
    while not file.is_file():
        if time.monotonic() > end:
            raise RunFolderError(
                f"the main process wrote {file}, and {platform.node()} does not see it after {patience_s:g} s: "
                "--output_dir has to be on a file system that all machines share"
            )
        time.sleep(0.5)


def read_arguments(run_dir: Path) -> dict[str, dict[str, Any]]:
    """The arguments that a run was started with.

    Raises:
        RunFolderError: it is no run folder.
        UsageError: its arguments cannot be read.
    """
    file = run_dir / CONFIG
    if not file.is_file():
        raise RunFolderError(f"found no {file}: expected the folder of a run, as a training recipe's --output_dir")
    with readable(file, AS_IT_WAS):
        found = yaml.safe_load(file.read_text())
        if not isinstance(found, dict) or not all(isinstance(section, dict) for section in found.values()):
            raise TypeError("found no mapping of sections")
    return found


def check_same(run_dir: Path, arguments: Mapping[str, Section]) -> None:
    """Compares arguments with those that the folder was made with; a folder without any is free.

    Raises:
        RunFolderError: they differ in something that changes what is trained; one line for each difference.
    """
    if not (run_dir / CONFIG).is_file():
        return
    before = redact(read_arguments(run_dir))  # an older version may have written down what is redacted now
    warm_start_alone = WARM_START in before and not _is_made_after_warm_start(run_dir)
    differences = [
        f"{run_dir} was made {'with' if name in before else 'without'} {name}, now it is the other way round"
        for name in sorted(before.keys() ^ arguments.keys())
    ]
    for name in [name for name in arguments if name in before]:
        old, new = before[name], arguments[name].settings
        may_change = set(new) - OF_WARM_START if warm_start_alone and arguments[name].later else set()
        differences += [
            f"{run_dir} was made with {key}={old[key]!r}, now {new[key]!r}"
            + (" in the warm start" if name == WARM_START else "")
            for key in new
            if key in old and old[key] != new[key] and not arguments[name].is_free(key) and key not in may_change
        ]
    if differences:
        raise RunFolderError("\n".join(differences) + "\nname another --output_dir, or remove the folder")


def _is_made_after_warm_start(run_dir: Path) -> bool:
    """Whether there is a file of any stage besides the warm start."""
    stages = [folder for folder in run_dir.iterdir() if folder.is_dir() and folder.name not in NO_LATER_STAGE]
    return any(file.is_file() for folder in stages for file in folder.rglob("*"))
