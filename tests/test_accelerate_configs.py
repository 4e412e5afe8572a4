"""Every launch config parses, and those that need no GPU start the processes that they promise."""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "accelerate_configs").rglob("*.yaml"))

# Each process trains on other data: equal weights at the end mean that the gradients were averaged.
SCRIPT = """
import json, sys
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import Trainer, TrainingArguments

from anyo_rl.run.launch import check_launch


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.zeros_(self.layer.weight)

    def forward(self, x, labels):
        return {"loss": ((self.layer(x)[:, 0] - labels) ** 2).mean()}


folder = Path(sys.argv[1])
args = TrainingArguments(
    str(folder / "out"), use_cpu="--use_cpu" in sys.argv, ddp_backend="gloo", max_steps=2,
    per_device_train_batch_size=2, learning_rate=0.1, report_to=[], save_strategy="no", disable_tqdm=True,
)
check_launch(expected_processes=2)
rows = [{"x": torch.tensor([float(i), 1.0]), "labels": torch.tensor(3.0 * i)} for i in range(8)]
trainer = Trainer(Line(), args, train_dataset=rows)
trainer.train()
state = trainer.accelerator.state
(folder / f"rank{state.process_index}.json").write_text(json.dumps({
    "num_processes": state.num_processes,
    "distributed_type": state.distributed_type.value,
    "weight": trainer.accelerator.unwrap_model(trainer.model).layer.weight.tolist()[0],
}))
PartialState().destroy_process_group()
"""


def launch(flags: list[str], script: str, folder: Path, script_flags: list[str]) -> tuple[int, str]:
    path = folder / "script.py"
    path.write_text(script)
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, str(path), str(folder), *script_flags]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=600)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the launcher alone would leave its workers behind
        raise
    return process.returncode, output


def as_launched(command: str) -> argparse.Namespace:
    """What `accelerate launch` makes of a command line: flags, then the config file."""
    words = shlex.split(command)
    while "=" in words[0]:  # environment variables
        words.pop(0)
    assert words[:2] == ["accelerate", "launch"]
    return _validate_launch_command(launch_command_parser().parse_args(words[2:]))[0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_parses_and_says_how_to_use_it(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if path.name == "cpu.yaml" else 2)
    # The loader refuses unknown keys, but not inside a block: each has to be a flag of the launcher.
    known = vars(launch_command_parser().parse_args(["script.py"])).keys()
    assert {*config.deepspeed_config, *config.fsdp_config} <= known
    header = path.read_text().split("compute_environment")[0]
    commands = re.findall(r"^#   (.*accelerate launch .*)$", header, flags=re.M)
    assert commands
    for command in commands:
        # R and IP are placeholders; so is the network interface.
        args = as_launched(command.replace("--machine_rank R", "--machine_rank 1").replace(" IP ", " 10.0.0.1 "))
        assert args.config_file == f"accelerate_configs/{path.name}"
        assert (ROOT / args.training_script).is_file()
        assert args.use_deepspeed == ("zero" in path.name)
    if path.name not in ("cpu.yaml", "cpu_2.yaml"):
        assert re.search("Not yet run on (a GPU|GPUs here)", header)


@pytest.mark.parametrize(
    ("name", "stage", "offload", "n_machines"),
    [
        *(("zero1", 1, "none", 1), ("zero2", 2, "none", 1), ("zero3", 3, "none", 1)),
        *(("zero3_offload", 3, "cpu", 1), ("zero3_nodes", 3, "none", 2)),
    ],
)
def test_deepspeed_configs_ask_for_what_their_names_say(name: str, stage: int, offload: str, n_machines: int):
    flags = "--num_machines 4 --num_processes 32 --machine_rank 3 --main_process_ip 10.0.0.1"
    args = as_launched(f"accelerate launch --config_file {ROOT / 'accelerate_configs' / name}.yaml {flags} script.py")
    assert (args.num_machines, args.num_processes, args.machine_rank) == (4, 32, 3)
    args.deepspeed_fields_from_accelerate_config = ""  # the launcher notes here what came from the file
    cmd, env = prepare_deepspeed_cmd_env(args)
    assert cmd is None  # torchrun's own agent starts the processes, not pdsh
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("4", "8", 3)
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", f"10.0.0.1:{args.main_process_port}")
    assert env["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    assert env["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] == offload
    assert env["ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"] == offload
    assert env["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == str(stage == 3).lower()
    assert load_config_from_file(str(ROOT / "accelerate_configs" / f"{name}.yaml")).num_machines == n_machines


def test_commands_of_the_docs_are_sound(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^accelerate launch .*$", (ROOT / "docs" / "launch.md").read_text(), flags=re.M)
    assert len(commands) >= 5
    for command in commands:
        args = as_launched(command.replace("--machine_rank R", "--machine_rank 1").replace(" IP ", " 10.0.0.1 "))
        assert args.config_file is None or (ROOT / args.config_file).is_file()
        assert (ROOT / args.training_script).is_file()


def test_all_configs_are_there():
    names = {path.stem for path in CONFIGS}
    docs = (ROOT / "docs" / "launch.md").read_text()
    assert all(f"`{name}.yaml`" in docs for name in names)
    assert names == {"cpu", "cpu_2", "ddp", "fsdp2", "zero1", "zero2", "zero3", "zero3_offload", "zero3_nodes"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "flags", "script_flags", "distributed_type"),
    [
        ("cpu_2.yaml", [], ["--use_cpu"], "MULTI_CPU"),
        ("zero1.yaml", ["--mixed_precision", "no", "--main_process_port", "0"], [], "DEEPSPEED"),
        ("zero2.yaml", ["--mixed_precision", "no", "--main_process_port", "0"], [], "DEEPSPEED"),
        ("zero3_offload.yaml", ["--mixed_precision", "no", "--main_process_port", "0"], [], "DEEPSPEED"),
    ],
)
def test_two_processes_train_together(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    config: str,
    flags: list[str],
    script_flags: list[str],
    distributed_type: str,
):
    if config in ("zero1.yaml", "zero3_offload.yaml") and "ANYO_RL_ALL_LAUNCHES" not in os.environ:
        pytest.skip("offload compiles for minutes, and ZeRO-1 is near ZeRO-2: set ANYO_RL_ALL_LAUNCHES=1 to run it")
    if distributed_type == "DEEPSPEED":
        request.getfixturevalue("deepspeed_ready")
    config_path = ROOT / "accelerate_configs" / config
    code, output = launch(["--config_file", str(config_path), *flags], SCRIPT, tmp_path, script_flags)
    assert code == 0, output[-4000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first["num_processes"] == second["num_processes"] == 2
    assert first["distributed_type"] == second["distributed_type"] == distributed_type
    assert first["weight"] == pytest.approx(second["weight"])
    assert first["weight"][0] > 0.05
