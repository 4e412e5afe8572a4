"""What a run folder holds besides checkpoints and results: its arguments, versions and data counts.

A run folder belongs to one set of arguments: with others its finished stages would be taken for theirs.
"""

import dataclasses
import importlib.metadata
import json
import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from transformers import TrainingArguments

from anyo_rl.run.files import write_whole
from anyo_rl.run.logs import hide_progress_bars, log_to_file
from anyo_rl.run.redact import redact

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
WARM_START = "WarmStart"  # the section of the warm start's trainer settings and patience
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


@dataclass(frozen=True)
class Section:
    """Settings of one kind, as a run folder keeps them.

    Attributes:
        settings: by name, in what YAML can say, without secrets.
        free: names of those that may change between two starts of a run.
    """

    settings: Mapping[str, Any]
    free: frozenset[str] = frozenset()

    def is_free(self, name: str) -> bool:
        """Whether a setting may change between two starts of a run."""
        return name in self.free or name in FREE_OF_TRL or name.startswith(FREE_PREFIXES)


class RunFolderError(ValueError):
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


def write_metrics(file: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Writes a `metrics.jsonl` anew, whole or not at all."""
    write_whole(file, "".join(f"{json.dumps(row)}\n" for row in rows))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return redact(json.loads(json.dumps(settings, default=str)))


def start_run(run_dir: Path, arguments: Mapping[str, Section], report: Mapping[str, int]) -> None:
    """Writes what is needed to repeat the run: every argument, versions, how it was launched, and counts of the data.

    From here on each process has a log file of its own there (`anyo_rl.run.logs`).

    Args:
        run_dir: the run folder; all processes call this, the main one writes.
        arguments: what `resolve` returns.
        report: what the data came to (`Task.report`).

    Raises:
        RunFolderError: on all processes: the folder is of a run with other arguments. On one that does not see what
            the main process wrote: the machines have no file system in common.
    """
    check_same(run_dir, arguments)
    state = PartialState()
    state.wait_for_everyone()  # all have read the arguments of before
    if state.is_main_process:
        launch = {"num_processes": state.num_processes, "distributed_type": state.distributed_type.value}
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        settings = {name: dict(section.settings) for name, section in arguments.items()}
        run_dir.mkdir(parents=True, exist_ok=True)
        write_whole(run_dir / CONFIG, yaml.safe_dump(settings, sort_keys=False))
        write_whole(
            run_dir / "versions.json",
            json.dumps({"python": platform.python_version(), **versions, **launch}, indent=2),
        )
        write_whole(run_dir / "data.json", json.dumps(dict(report), indent=2))
    state.wait_for_everyone()
    _wait_for(run_dir / CONFIG)
    log_to_file(run_dir, state.process_index)
    hide_progress_bars()


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
    """
    file = run_dir / CONFIG
    if not file.is_file():
        raise RunFolderError(f"found no {file}: expected the folder of a run, as a training recipe's --output_dir")
    return yaml.safe_load(file.read_text())


def check_same(run_dir: Path, arguments: Mapping[str, Section]) -> None:
    """Compares arguments with those that the folder was made with; a folder without any is free.

    Raises:
        RunFolderError: they differ in something that changes what is trained; one line for each difference.
    """
    if not (run_dir / CONFIG).is_file():
        return
    before = read_arguments(run_dir)
    differences = [
        f"{run_dir} was made {'with' if name in before else 'without'} {name}, now it is the other way round"
        for name in sorted(before.keys() ^ arguments.keys())
    ]
    for name in [name for name in arguments if name in before]:
        old, new = before[name], arguments[name].settings
        differences += [
            f"{run_dir} was made with {key}={old[key]!r}, now {new[key]!r}"
            + (" in the warm start" if name == WARM_START else "")
            for key in new
            if key in old and old[key] != new[key] and not arguments[name].is_free(key)
        ]
    if differences:
        raise RunFolderError("\n".join(differences) + "\nname another --output_dir, or remove the folder")
