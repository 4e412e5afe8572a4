"""The Slurm scripts: what they would start on which machine, and that a machine that fails ends the rest."""

import argparse
import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).resolve().parents[1]
SLURM = Path("accelerate_configs") / "slurm"
RECIPE = ("recipes/grpo_teacher.py", "--sft_config", "", "--output_dir", "runs/of mine")

FAKE_SRUN = """#!/bin/bash
host=$(printf '%s\\n' "$@" | sed -n 's/--nodelist=//p')
echo "$host: $*" >> "$SRUN_LOG"
[[ "$host" == "${FAILS:-}" ]] && exit 3
[[ "$*" == *vllm-serve* || -n "${FAILS:-}" ]] && exec sleep 60
exit 0
"""
FAKE_SCONTROL = "#!/bin/bash\n[[ \"$*\" == 'show hostnames n[1-3]' ]] && printf 'n1\\nn2\\nn3\\n'\n"


def run(script: str, recipe: tuple[str, ...] = RECIPE, **env: str) -> subprocess.CompletedProcess:
    settings = {"cwd": ROOT, "env": {**os.environ, **env}, "capture_output": True, "text": True, "timeout": 60}
    return subprocess.run(["bash", str(SLURM / script), *recipe], **settings)


def planned(script: str, **env: str) -> list[tuple[str, list[str]]]:
    """Machines and commands of a dry run."""
    done = run(script, DRY_RUN="1", **env)
    assert done.returncode == 0, done.stderr
    lines = [line.split(": ", 1) for line in done.stdout.splitlines()]
    return [(host, shlex.split(command)) for host, command in lines]


def launched(command: list[str]) -> argparse.Namespace:
    assert command[:2] == ["accelerate", "launch"]
    return _validate_launch_command(launch_command_parser().parse_args(command[2:]))[0]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)


def test_one_node_starts_one_launcher_with_a_process_a_gpu():
    ((host, command),) = planned("one_node.sh", HOSTS="a", GPUS="4")
    args = launched(command)
    assert (host, args.num_machines, args.num_processes, args.machine_rank) == ("a", 1, 4, 0)
    assert args.config_file == "accelerate_configs/zero2.yaml"
    assert (args.training_script, *args.training_script_args) == RECIPE


@pytest.mark.parametrize("config", ["zero3_nodes", "ddp", "fsdp2"])
def test_nodes_have_ranks_in_order_and_one_meeting_point(config: str):
    found = planned("nodes.sh", HOSTS="a b c", GPUS="8", CONFIG=f"accelerate_configs/{config}.yaml")
    assert [host for host, _ in found] == ["a", "b", "c"]
    for rank, (_, command) in enumerate(found):
        args = launched(command)
        assert (args.num_machines, args.num_processes, args.machine_rank) == (3, 24, rank)
        assert (args.main_process_ip, args.main_process_port) == ("a", 29500)
        assert args.config_file == f"accelerate_configs/{config}.yaml"
        assert (args.training_script, *args.training_script_args) == RECIPE


def test_jobs_have_ports_of_their_own():
    one, other = (launched(planned("nodes.sh", HOSTS="a b", SLURM_JOB_ID=job)[0][1]) for job in ("123456", "123457"))
    assert (one.main_process_port, other.main_process_port) == (23456, 23457)


def test_the_last_machine_serves_and_the_others_train():
    (server, serve), *rest = planned("vllm_server.sh", HOSTS="a b c", GPUS="8", MODEL="M", TENSOR_PARALLEL="2")
    assert (server, serve[:2]) == ("c", ["trl", "vllm-serve"])
    flags = dict(zip(serve[2::2], serve[3::2], strict=True))
    assert (flags["--tensor_parallel_size"], flags["--model"]) == ("2", "M")
    assert [host for host, _ in rest] == ["a", "b"]
    for rank, (_, command) in enumerate(rest):
        args = launched(command)
        assert (args.num_machines, args.num_processes, args.machine_rank) == (2, 16, rank)
        more = args.training_script_args[len(RECIPE) - 1 :]
        told = dict(zip(more[::2], more[1::2], strict=True))
        assert told["--vllm_server_host"] == "c"
        assert told["--vllm_server_port"] == flags["--port"]
        assert (told["--vllm_mode"], told["--model_name_or_path"]) == ("server", "M")


def test_flags_of_the_server_and_its_client_are_trl_s_own():
    from trl import GRPOConfig, TrlParser
    from trl.scripts.vllm_serve import ScriptArguments

    (_, serve), (_, train) = planned("vllm_server.sh", HOSTS="a b", GPUS="1", MODEL="M")
    (args,) = TrlParser([ScriptArguments]).parse_args_and_config(serve[2:])
    assert (args.model, args.port, args.tensor_parallel_size) == ("M", 8000, 1)
    ours = {flag.removeprefix("--") for flag in train if flag.startswith("--vllm") or flag == "--use_vllm"}
    assert len(ours) == 5
    assert ours <= GRPOConfig.__dataclass_fields__.keys()


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"MODEL": "M"}, "no job of Slurm's"),
        ({"HOSTS": "a b"}, "MODEL: set it to the teacher"),
        ({"HOSTS": "a", "MODEL": "M"}, "1 machine, expected at least 2"),
        ({"HOSTS": "a b", "MODEL": "M", "GPUS": "8", "TENSOR_PARALLEL": "16"}, "TENSOR_PARALLEL=16, but"),
    ],
)
def test_what_cannot_run_is_refused(env: dict[str, str], message: str):
    done = run("vllm_server.sh", DRY_RUN="1", **env)
    assert done.returncode != 0
    assert message in done.stderr
    assert done.stdout == ""


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment with an `srun` and a `scontrol` that only write down what they were asked."""
    for name, text in (("srun", FAKE_SRUN), ("scontrol", FAKE_SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "n[1-3]", "SLURM_GPUS_ON_NODE": "2", "SLURM_JOB_ID": "7"}
    return {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SRUN_LOG": str(tmp_path / "log"), **job}


@pytest.mark.parametrize("script", ["nodes.sh", "vllm_server.sh"])
def test_what_srun_starts_is_what_the_dry_run_says(cluster: dict[str, str], script: str):
    start = time.monotonic()
    done = run(script, MODEL="M", **cluster)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 30  # the server does not outlive the training
    lines = Path(cluster["SRUN_LOG"]).read_text().splitlines()
    expected = [f"{host}: {' '.join(command)}" for host, command in planned(script, MODEL="M", **cluster)]
    mine = [re.sub(r": .*--gpus-per-node=2 ", ": ", line) for line in lines]
    assert sorted(mine) == sorted(expected)


@pytest.mark.parametrize("fails", ["n1", "n3"])
def test_a_machine_that_fails_ends_the_rest(cluster: dict[str, str], fails: str):
    start = time.monotonic()
    done = run("nodes.sh", FAILS=fails, **cluster)
    assert done.returncode == 1
    assert "a machine failed" in done.stderr
    assert time.monotonic() - start < 30
