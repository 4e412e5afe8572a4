"""The main recipe over two machines: two network namespaces of this one, with one disk, as on a cluster."""

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

pytestmark = pytest.mark.slow


@pytest.fixture
def nodes(repo_root: Path, monkeypatch: pytest.MonkeyPatch):
    """Two nodes; the test is skipped where they cannot be had."""
    monkeypatch.syspath_prepend(repo_root / "benchmarks")
    from nodes import NoNodesError, two_nodes

    with contextlib.ExitStack() as stack:
        try:
            pair = stack.enter_context(two_nodes())
        except NoNodesError as error:
            pytest.skip(str(error))
        yield pair


def check(launcher, nodes, finished_run, run: Path, distributed_type: str, flags: tuple[str, ...], **launch) -> None:
    """Starts the recipe on both nodes and checks that they trained one teacher, in one folder."""
    flags = finished_run.short_flags("--max_steps", 2, "--output_dir", run, *flags)
    more = launch.pop("launch_flags", ())
    started = []
    for node in nodes:
        command = launcher.command("grpo_teacher", *flags, launch_flags=(*more, *node.launch_flags), **launch)
        started.append(launcher.run_command(node.command(command), node.env))
    for launched in started:
        assert launched.wait().process.returncode == 0, launched.output[-6000:]

    versions = json.loads((run / "versions.json").read_text())
    assert (versions["num_processes"], versions["distributed_type"]) == (2, distributed_type)
    # The first node alone writes and evaluates.
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    assert [launched.output.count("evaluating grpo (greedy)") for launched in started] == [1, 0]
    assert set(json.loads((run / "evaluation.json").read_text())["stages"]) == {"sft", "grpo"}
    before = load_file(finished_run.teacher / "model.safetensors")
    after = load_file(run / "grpo" / "checkpoint-2" / "model.safetensors")
    assert any(not np.array_equal(before[name], after[name]) for name in after)


def test_two_nodes_train_one_teacher_by_ddp(nodes, finished_run, launcher, tmp_path):
    check(launcher, nodes, finished_run, tmp_path / "run", "MULTI_CPU", ("--use_cpu",), config="cpu_2.yaml")


@pytest.mark.on_request
def test_two_nodes_train_one_teacher_by_zero3(nodes, deepspeed_ready, finished_run, launcher, tmp_path):
    launch = {"config": "zero3_nodes.yaml", "launch_flags": ("--mixed_precision", "no")}
    check(launcher, nodes, finished_run, tmp_path / "run", "DEEPSPEED", ("--ddp_backend", "gloo"), **launch)
