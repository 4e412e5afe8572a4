"""What a run folder holds besides checkpoints and results: its arguments, versions and data counts.

A run folder belongs to one set of arguments: with others its finished stages would be taken for theirs.
"""

import dataclasses
import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping
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

# What may change between two starts of a run: it says how or where to run, what to report and what to evaluate.
FREE = {
    *("output_dir", "data_dir", "sft_config", "reasoning", "train_direct", "baselines", "max_test"),
    *("use_cpu", "local_rank", "ddp_backend", "ddp_timeout", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
    *("ddp_find_unused_parameters", "ddp_static_graph", "deepspeed", "fsdp", "fsdp_config", "parallelism_config"),
    *("generation_batch_size", "num_generations_eval", "per_device_eval_batch_size", "ds3_gather_for_generation"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "torch_empty_cache_steps", "vllm_server_base_url", "vllm_server_host"),
    *("vllm_server_port", "vllm_server_timeout", "vllm_group_port", "vllm_gpu_memory_utilization"),
    *("disable_tqdm", "report_to", "run_name", "project", "debug", "skip_memory_metrics", "save_total_limit"),
    *("logging_dir", "logging_steps", "logging_strategy", "logging_first_step", "logging_nan_inf_filter"),
    *("log_level", "log_level_replica", "log_on_each_node", "log_completions", "num_completions_to_print"),
    *("log_unique_prompts", "log_multimodal", "log_completions_hub_repo", "push_to_hub"),
    # Of questions to a server: more of them, how they are asked, which answers are kept. What has arrived is in the
    # journal, and the tables are made anew from it at each start.
    *("n_samples", "max_examples", "url", "key_variable", "concurrency", "connect_timeout_s", "timeout_s"),
    *("max_attempts", "max_failures_in_a_row", "first_wait_s", "max_wait_s", "skip_statuses"),
    *("prompt_price", "completion_price", "max_tokens_in_all", "max_money"),
    "judge",  # what its answers belong to is a section of its own
    *("fewest_steps", "most_steps", "fewest_words", "most_words", "leak_words", "copied_words"),
}
FREE_PREFIXES = ("hub_", "trackio_")


class RunFolderError(ValueError):
    """The folder holds a run that was made with other arguments, or none."""


def resolve(*arguments: Any, **named: Any) -> dict[str, dict[str, Any]]:
    """Dataclasses as plain settings without secrets, by the name of their class; others by the name given here."""
    settings = {
        type(instance).__name__: instance.to_dict()
        if isinstance(instance, TrainingArguments)
        else dataclasses.asdict(instance)
        for instance in arguments
    }
    return redact(json.loads(json.dumps({**settings, **named}, default=str)))


def start_run(run_dir: Path, arguments: Mapping[str, Mapping[str, Any]], report: Mapping[str, int]) -> None:
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
        run_dir.mkdir(parents=True, exist_ok=True)
        write_whole(run_dir / CONFIG, yaml.safe_dump(dict(arguments), sort_keys=False))
        write_whole(
            run_dir / "versions.json",
            json.dumps({"python": platform.python_version(), **versions, **launch}, indent=2),
        )
        write_whole(run_dir / "data.json", json.dumps(dict(report), indent=2))
    state.wait_for_everyone()
    _wait_for(run_dir / CONFIG)
    log_to_file(run_dir, state.process_index)
    if not state.is_main_process:
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


def check_same(run_dir: Path, arguments: Mapping[str, Mapping[str, Any]]) -> None:
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
        old, new = before[name], arguments[name]
        differences += [
            f"{run_dir} was made with {key}={old[key]!r}, now {new[key]!r}"
            + (" in the warm start" if name == WARM_START else "")
            for key in new
            if key in old and old[key] != new[key] and not _is_free(key, new)
        ]
    if differences:
        raise RunFolderError("\n".join(differences) + "\nname another --output_dir, or remove the folder")


def _is_free(key: str, settings: Mapping[str, Any]) -> bool:
    if key == "n_paths":  # validation by a mixture chooses the best checkpoint with them
        return settings.get("eval_mode") != "mixture"
    return key in FREE or key.startswith(FREE_PREFIXES)
