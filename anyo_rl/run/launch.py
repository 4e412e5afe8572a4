"""Refuses launches that would quietly train in another way than the one asked for.

`accelerate launch` accepts several combinations on which it falls back without a word: `--cpu --num_processes 2` is
one process, two processes that do not see each other each train alone, FSDP or DeepSpeed asked for on the CPU can
become plain DDP. A recipe calls `check_launch` first, once its training arguments exist.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class LaunchError(RuntimeError):
    """The processes that run are not the ones that were asked for."""


def check_launch(
    num_processes: int | None = None,
    distributed_type: str | None = None,
    *,
    expected_processes: int | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Compares what was asked of the launcher with what runs, and raises where they differ.

    On Linux a process that was launched is sent SIGTERM from here on when its launcher ends: the launcher of a single
    process ends on SIGTERM without a word to it, and killed ones leave orphans.

    What was asked is read from the environment that `accelerate launch` and `torchrun` leave behind. Two things
    cannot be known from it: `--num_processes` where the launcher starts a single process (it only shows as a
    `MASTER_ADDR` without ranks, whatever the number was), and anything that another launcher did not export. Pass
    `expected_processes` to be certain.

    Args:
        num_processes: Number of processes that work together, 1 or more. `None`: read from accelerate's
            `PartialState`, which is created if the training arguments have not done so.
        distributed_type: Value of accelerate's `DistributedType` ("NO", "MULTI_CPU", "MULTI_GPU", "DEEPSPEED", …).
            `None`: read from the same place.
        expected_processes: Number of processes that the caller insists on, in all machines together.
        environ: Environment variables; `None` is `os.environ`.

    Raises:
        LaunchError: What runs is not what was asked for. The message names both and the command that fixes it.
    """
    env = os.environ if environ is None else environ
    if environ is None and _is_launched(env):
        _end_with_parent()
    if num_processes is None or distributed_type is None:
        num_processes, distributed_type = _current_state()
    _check_processes_meet(env, num_processes)
    _check_single_launch(env, num_processes)
    _check_sharding(env, distributed_type)
    if expected_processes is not None and num_processes != expected_processes:
        raise LaunchError(
            f"{num_processes} process(es) run, {expected_processes} were expected: launch with "
            f"`accelerate launch --config_file accelerate_configs/… --num_processes {expected_processes}`"
        )


def go_on_alone() -> bool:
    """Ends the processes' work together; returns whether this one goes on, and the others go home.

    They must not wait for what one process does alone, an evaluation: that would end in a time-out.
    """
    from accelerate import PartialState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    state = PartialState()
    state.wait_for_everyone()
    is_main = state.is_main_process
    state.destroy_process_group()
    unset_hf_deepspeed_config()  # models would still be loaded, and sampled from, in step with the others
    return is_main


@contextmanager
def whole_weights() -> Iterator[None]:
    """Models loaded inside are whole and work in this process alone, also in a DeepSpeed ZeRO-3 run.

    There `from_pretrained` would share the weights out, and `generate` go in step with all processes, as long as
    trainer settings with DeepSpeed exist.
    """
    from transformers.integrations import deepspeed

    reference = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = reference


def _is_launched(env: Mapping[str, str]) -> bool:
    return "ACCELERATE_MIXED_PRECISION" in env  # `accelerate launch` always sets it


def _end_with_parent() -> None:
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _current_state() -> tuple[int, str]:
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    state = PartialState()
    return state.num_processes, DistributedType(state.distributed_type).value


def _check_processes_meet(env: Mapping[str, str], num_processes: int) -> None:
    asked = int(env.get("WORLD_SIZE", "1"))
    if asked != num_processes:
        # `--use_cpu` turns DeepSpeed off; without it accelerate finds no backend for a CPU by itself.
        flag = "--ddp_backend gloo" if _is_true(env, "ACCELERATE_USE_DEEPSPEED") else "--use_cpu"
        raise LaunchError(
            f"the launcher started {asked} processes, but this one sees {num_processes}: each would train alone and "
            f"write to the same folder. On a machine without a GPU add `{flag}` to the recipe's flags; with GPUs, "
            "check that torch sees them (`torch.cuda.is_available()`)"
        )


def _check_single_launch(env: Mapping[str, str], num_processes: int) -> None:
    # accelerate sets MASTER_ADDR for more than one process even where it then starts just one, without ranks.
    # A MASTER_ADDR of the user's own is no sign without the launcher's mark.
    launched = _is_launched(env) and "MASTER_ADDR" in env
    if launched and "LOCAL_RANK" not in env and num_processes == 1:
        raise LaunchError(
            "several processes were asked for (MASTER_ADDR is set) and one was started: `accelerate launch --cpu` and "
            "launches without `--multi_gpu` start a single one. Use `accelerate launch --config_file "
            "accelerate_configs/cpu_2.yaml RECIPE --use_cpu` on the CPU, accelerate_configs/ddp.yaml on GPUs, or "
            "unset MASTER_ADDR if one process is what you want"
        )


def _check_sharding(env: Mapping[str, str], distributed_type: str) -> None:
    on_cpu = distributed_type in ("NO", "MULTI_CPU")
    if on_cpu and _is_true(env, "ACCELERATE_USE_FSDP"):
        raise LaunchError(
            f"FSDP was asked for, but accelerate runs {distributed_type}: on the CPU it turns FSDP into plain DDP. "
            "Use accelerate_configs/cpu_2.yaml, or accelerate_configs/zero2.yaml to try sharding without a GPU"
        )
    if distributed_type != "DEEPSPEED" and _is_true(env, "ACCELERATE_USE_DEEPSPEED"):
        raise LaunchError(
            f"DeepSpeed was asked for, but accelerate runs {distributed_type}: `--use_cpu` turns DeepSpeed off. Leave "
            "it out (DeepSpeed finds the CPU by itself; add `--mixed_precision no` before the recipe)"
        )


def _is_true(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "false").lower() in ("1", "true", "yes")
