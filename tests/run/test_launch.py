"""Launches that fall back without a word are refused, the others pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anyo_rl.run.launch import LaunchError, check_launch, whole_weights

ROOT = Path(__file__).resolve().parents[2]

# What the launcher was seen to leave in the environment (accelerate 1.15).
SIMPLE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "False"}
TORCHRUN = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environ", "num_processes", "distributed_type"),
    [
        ({}, 1, "NO"),
        (SIMPLE, 1, "NO"),
        ({**SIMPLE, "ACCELERATE_USE_CPU": "True"}, 1, "NO"),
        ({"MASTER_ADDR": "10.0.0.1"}, 1, "NO"),  # the user's own, no launcher
        ({**TORCHRUN, "WORLD_SIZE": "1"}, 1, "MULTI_CPU"),
        (TORCHRUN, 2, "MULTI_CPU"),
        ({**TORCHRUN, "ACCELERATE_MIXED_PRECISION": "bf16"}, 2, "MULTI_GPU"),
        ({**TORCHRUN, "ACCELERATE_USE_DEEPSPEED": "true"}, 2, "DEEPSPEED"),
        ({**TORCHRUN, "ACCELERATE_USE_DEEPSPEED": "false"}, 2, "MULTI_GPU"),
        # FSDP shows in PartialState as MULTI_GPU until the trainer's accelerator exists.
        ({**TORCHRUN, "ACCELERATE_USE_FSDP": "true"}, 2, "MULTI_GPU"),
        ({**TORCHRUN, "ACCELERATE_USE_FSDP": "true"}, 2, "FSDP"),
    ],
)
def test_sound_launches_pass(environ: dict[str, str], num_processes: int, distributed_type: str):
    check_launch(num_processes, distributed_type, environ=environ)
    check_launch(num_processes, distributed_type, environ=environ, expected_processes=num_processes)


@pytest.mark.parametrize(
    ("environ", "num_processes", "distributed_type", "message"),
    [
        # two processes that do not see each other: MULTI_GPU config on a machine without GPUs, no --use_cpu
        (TORCHRUN, 1, "NO", "started 2 processes, but this one sees 1.*--use_cpu"),
        ({**TORCHRUN, "ACCELERATE_USE_DEEPSPEED": "true"}, 1, "NO", "sees 1.*--ddp_backend gloo"),
        # accelerate launch --cpu --num_processes 2
        ({**SIMPLE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, 1, "NO", "one was started.*cpu_2.yaml"),
        ({**TORCHRUN, "ACCELERATE_USE_FSDP": "true"}, 2, "MULTI_CPU", "FSDP was asked for.*MULTI_CPU"),
        ({**TORCHRUN, "ACCELERATE_USE_DEEPSPEED": "true"}, 2, "MULTI_CPU", "DeepSpeed was asked for.*--use_cpu"),
    ],
)
def test_silent_fall_backs_are_refused(
    environ: dict[str, str], num_processes: int, distributed_type: str, message: str
):
    with pytest.raises(LaunchError, match=message):
        check_launch(num_processes, distributed_type, environ=environ)


def test_expected_processes_is_compared():
    with pytest.raises(LaunchError, match=r"1 process\(es\) run, 4 were expected"):
        check_launch(1, "NO", environ={}, expected_processes=4)


def test_weights_are_whole_inside_and_as_the_run_has_them_outside():
    from transformers.integrations import deepspeed

    class Zero3:
        def is_zero3(self) -> bool:
            return True

    settings = Zero3()
    deepspeed.set_hf_deepspeed_config(settings)
    try:
        with whole_weights():
            assert not deepspeed.is_deepspeed_zero3_enabled()
        assert deepspeed.is_deepspeed_zero3_enabled()
    finally:
        deepspeed.unset_hf_deepspeed_config()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--cpu", "--num_processes", "2"], "one was started"),
        (["--config_file", "accelerate_configs/cpu_2.yaml"], "started 2 processes, but this one sees 1"),
    ],
)
def test_real_launches_are_refused(tmp_path: Path, flags: list[str], message: str):
    script = tmp_path / "script.py"
    script.write_text("from anyo_rl.run.launch import check_launch\ncheck_launch()\n")
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(script)]
    # Without GPUs in sight, the machine that runs the tests may well have some.
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode != 0
    assert message in result.stderr
