"""GRPO and PPO have the same losses on one process and on two, and go on after a checkpoint as if nothing had been."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from anyo_rl.training.advantages.credit import Credit
from anyo_rl.training.advantages.ppo import Ppo
from anyo_rl.training.critic import attach_critic
from tests.training.helpers import G, by_rank, lift, reasoner

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ["-m", "tests.training.replay"]
STEPS = "--max_steps 3 --num_generations 4 --max_completion_length 32 --learning_rate 1e-2 --logging_steps 1"
QUIET = (
    "--save_strategy no --eval_strategy no --disable_tqdm true --lr_scheduler_type constant --num_generations_eval 1"
)
WITHOUT_CHECKPOINTING = "--gradient_checkpointing false"  # then DDP looks for weights that a forward left out

slow = pytest.mark.slow


def replayed(folder: Path, config: str, launch_flags: str = "", flags: str = "--use_cpu") -> dict:
    out = folder / f"{config}.json"
    accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
    where = ["--config_file", str(ROOT / "accelerate_configs" / config), *launch_flags.split(), *PROGRAM]
    command = [*accelerate, *where, str(out), *STEPS.split(), *QUIET.split(), *flags.split()]
    command += WITHOUT_CHECKPOINTING.split()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    return replayed(tmp_path_factory.mktemp("alone"), "cpu.yaml")


def same(found: dict, alone: dict) -> None:
    for algorithm in ("grpo", "ppo"):
        assert len(found[algorithm]) == len(alone[algorithm]) == 3
        for step, expected in zip(found[algorithm], alone[algorithm], strict=True):
            assert step == pytest.approx(expected, rel=2e-4, abs=2e-5), algorithm
    assert {"value/loss", "value/return"} <= alone["ppo"][0].keys()
    assert alone["ppo"][0]["loss"] != alone["ppo"][2]["loss"]


@slow
def test_two_processes_have_the_losses_of_one(alone, tmp_path):
    found = replayed(tmp_path, "cpu_2.yaml")
    assert (alone["launch"], found["launch"]) == ([1, "NO"], [2, "MULTI_CPU"])
    same(found, alone)


@slow
@pytest.mark.on_request
def test_so_has_zero3(alone, tmp_path, deepspeed_ready):
    found = replayed(
        tmp_path, "zero3.yaml", "--mixed_precision no --main_process_port 0", "--ddp_backend gloo --max_grad_norm 1.0"
    )
    assert found["launch"] == [2, "DEEPSPEED"]
    same(found, alone)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_resumed_run_has_the_losses_of_an_unbroken_one(
    algorithm, small_teacher, small_catalog, small_tokens, tmp_path
):
    lift(small_teacher, small_tokens.marker_id, 3.0)
    if algorithm == "ppo":
        attach_critic(small_teacher)
    weights = {name: value.clone() for name, value in small_teacher.state_dict().items()}
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "num_iterations": 2, "seed": 5}
    settings |= {"per_device_train_batch_size": G, "gradient_accumulation_steps": 2}
    histories = []
    for folder, resumed in ((tmp_path / "unbroken", False), (tmp_path / "resumed", True)):
        small_teacher.load_state_dict(weights)
        if resumed:
            shutil.copytree(tmp_path / "unbroken" / "checkpoint-2", folder / "checkpoint-2")
        trainer = reasoner(
            small_teacher,
            small_catalog,
            small_tokens,
            folder,
            reward=by_rank,
            settings=settings,
            method=Ppo() if algorithm == "ppo" else Credit(),
        )
        trainer.train(resume_from_checkpoint=resumed or None)
        histories.append([row for row in trainer.state.log_history if "loss" in row])
    varying = ("step_time", "seconds", "num_tokens", "per_second", "time_share", "memory")
    unbroken, after = (
        [{k: v for k, v in row.items() if not any(word in k for word in varying)} for row in rows]
        for rows in histories
    )
    assert after == unbroken
    assert unbroken[3]["loss"] != unbroken[1]["loss"]
