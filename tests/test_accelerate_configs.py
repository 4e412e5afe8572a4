"""Every launch config parses, and those that need no GPU start the processes that they promise."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "accelerate_configs").rglob("*.yaml"))

# Each process trains on other data: equal weights at the end mean that the gradients were averaged.
SCRIPT = """
import json, sys
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import Trainer, TrainingArguments

from anyo_rl.launch import check_launch


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
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_parses_and_says_how_to_use_it(path: Path):
    config = load_config_from_file(str(path))
    assert config.num_processes == (1 if path.name == "cpu.yaml" else 2)
    header = path.read_text().split("compute_environment")[0]
    assert f"--config_file accelerate_configs/{path.name}" in header


def test_all_configs_are_there():
    names = {path.stem for path in CONFIGS}
    assert {"cpu", "cpu_2", "ddp", "zero2", "zero3", "fsdp2"} <= names


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "flags", "script_flags", "distributed_type"),
    [
        ("cpu_2.yaml", [], ["--use_cpu"], "MULTI_CPU"),
        ("zero2.yaml", ["--mixed_precision", "no", "--main_process_port", "0"], [], "DEEPSPEED"),
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
