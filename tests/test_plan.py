"""Memory and time against numbers worked out by hand, and the choice of a config."""

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from anyo_rl import plan
from anyo_rl.plan import GIB, SIZES, Job, Shape

# hidden 4, 2 layers, 2 query heads and 1 key head of 3, feed-forward 5, 7 tokens
TINY = Shape(4, 2, 2, 1, 3, 5, 7, tied=True)


def test_parameters_by_hand():
    # queries and output 2·4·6, keys and values 2·4·3, feed-forward 3·4·5, norms 2·4 + 2·3
    layer = 48 + 24 + 60 + 14
    assert plan.n_parameters(TINY) == 7 * 4 + 2 * layer + 4 == 324
    assert plan.n_parameters(replace(TINY, tied=False)) == 324 + 28
    # rank 2: (4+6)·2 for queries and output, (4+3)·2 for keys and values, 3·(4+5)
    assert plan.n_lora(TINY, 2) == 2 * 2 * (20 + 14 + 27)


def test_parameters_are_those_of_the_models(small_teacher):
    config = small_teacher.config
    assert plan.n_parameters(Shape.of(config.to_dict())) == sum(p.numel() for p in small_teacher.parameters())
    # 8B as published: 8.19 billion, 6.95 of them outside embedding and head
    assert plan.n_parameters(SIZES["8B"]) == pytest.approx(8.19e9, rel=0.001)
    assert plan.n_parameters(SIZES["8B"]) - 2 * 151936 * 4096 == pytest.approx(6.95e9, rel=0.001)
    for name, shape in SIZES.items():
        assert plan.n_parameters(shape) == pytest.approx(float(name[:-1]) * 1e9, rel=0.06)


@pytest.mark.parametrize(
    ("config", "gpus", "expected"),
    [  # of 100 trained parameters: weights, gradients, optimizer
        ("cpu", 1, (400, 400, 800)),
        ("ddp", 4, (400, 400, 800)),
        ("zero1", 4, (200, 200, 300)),
        ("zero2", 4, (200, 50, 300)),
        ("zero3", 4, (50, 50, 300)),
        ("zero3_offload", 4, (0, 0, 0)),
    ],
)
def test_state_by_hand(config: str, gpus: int, expected: tuple[int, int, int]):
    found = plan.state_bytes(config, 100, 0, gpus)
    assert (found["weights"], found["gradients"], found["optimizer"]) == expected
    assert found["host"] == (400 if config == "zero3_offload" else 0)


def test_frozen_weights_have_no_gradients_and_no_optimizer():
    found = plan.state_bytes("ddp", 10, 1000, 1)
    assert found == {"weights": 2040, "gradients": 40, "optimizer": 80, "buffers": 0, "host": 0}
    assert plan.state_bytes("zero3", 10, 1000, 2)["weights"] == 1010


def test_activations_head_and_caches_by_hand():
    # a token in a layer: 2·(6·4 + 4·6 + 4·3 + 4·5) + 8·4 bytes
    assert plan.activation_bytes(TINY, 10, checkpointing=False) == 2 * 10 * 192
    assert plan.activation_bytes(TINY, 10) == 10 * 192 + 2 * 10 * 2 * 4
    assert plan.head_bytes(TINY, 10) == 2 * 70 + 4 * (40 + 28)
    assert plan.head_bytes(TINY, 10, head_is_trained=False) == 2 * 70 + 4 * 40
    assert plan.head_bytes(TINY, 10, on_cpu=True) == 8 * 4 * 70 + 4 * (40 + 28)
    assert plan.cache_bytes(TINY, 10) == 2 * 2 * 3 * 2 * 10
    assert plan.cache_bytes(SIZES["8B"], 1) == 147_456  # as in docs/ranking.md
    # beyond a tile nothing is added but the gradients
    big = SIZES["8B"]
    more = plan.head_bytes(big, 8192) - plan.head_bytes(big, 4096)
    assert more == 4 * 4096 * 4096


def test_total_is_the_state_and_the_larger_phase():
    job = Job(prompt=4, completion=4, batch=1, sampled=2, nodes=3, sampling_tokens=11)
    found = plan.memory(TINY, job, "zero3", 2, gpu_bytes=0)
    assert found["sampling cache"] == plan.cache_bytes(TINY, 16) + 4 * 2 * 7
    assert found["ranking cache"] == plan.cache_bytes(TINY, 22)
    assert found["validation cache"] == plan.cache_bytes(TINY, 11)
    assert found["gathered"] == 648
    state = found["weights"] + found["gradients"] + found["optimizer"] + found["buffers"]
    update = found["activations"] + found["logits"]
    assert found["total"] == state + max(update, 648 + found["ranking cache"])
    longer = plan.memory(TINY, replace(job, sampling_tokens=100), "zero3", 2, gpu_bytes=0)
    assert longer["total"] == state + 648 + plan.cache_bytes(TINY, 100)
    shared = plan.memory(TINY, replace(job, vllm_share=0.3), "ddp", 2, gpu_bytes=1000)
    assert (shared["vllm"], shared["sampling cache"], shared["gathered"]) == (300, 0, 0)


def test_seconds_by_hand(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"PEAK_FLOPS": 1000.0, "BANDWIDTH": 100.0}.items():
        monkeypatch.setattr(plan, name, value)
    for name in ("TRAIN_SHARE", "FORWARD_SHARE", "BANDWIDTH_SHARE"):
        monkeypatch.setattr(plan, name, 0.5)
    job = Job(prompt=4, completion=4, sampled=2, nodes=3)
    found = plan.step_seconds(TINY, job)
    assert found["sampling"] == pytest.approx(4 * 2 * 324 / 50)  # bound by reading the weights four times
    assert found["ranking"] == pytest.approx(2 * 324 * 2 * 11 / 500)
    assert found["update"] == pytest.approx(8 * 324 * 2 * 8 / 500)
    plain = plan.step_seconds(TINY, replace(job, checkpointing=False, lora_rank=1))
    assert plain["update"] == pytest.approx(4 * 324 * 2 * 8 / 500)


@pytest.mark.parametrize(
    ("size", "gpus", "lora_rank", "expected"),
    [
        ("0.6B", 1, 0, "ddp"),
        ("8B", 8, 0, "zero1"),
        ("14B", 8, 0, "zero2"),
        ("8B", 1, 16, "ddp"),
        ("70B", 64, 0, None),  # sampling and ranking need all 141 GB of weights on one GPU
    ],
)
def test_the_first_config_that_fits(size: str, gpus: int, lora_rank: int, expected: str | None):
    assert plan.choose(SIZES[size], Job(lora_rank=lora_rank), gpus, 80 * GIB) == expected


def test_the_table_of_the_docs_is_what_fits(repo_root):
    rows = re.findall(r"^\| ([\d.]+B.*?) \|((?: [\w–]+ \|){6})$", (repo_root / "docs" / "launch.md").read_text(), re.M)
    found = {size: cells.strip(" |").split(" | ") for sizes, cells in rows for size in sizes.split(", ")}
    assert found == {
        size: [plan.choose(shape, Job(), gpus, 80 * GIB) or "–" for gpus in (1, 2, 4, 8, 16, 64)]
        for size, shape in SIZES.items()
    }


def test_commands_name_configs_that_are_there(repo_root):
    for config in plan.CONFIGS:
        for gpus in (2, 16):
            words = plan.command(config, gpus).split()
            assert (repo_root / words[words.index("--config_file") + 1]).is_file()
    assert "zero3_nodes.yaml --num_processes 16 --num_machines 2" in plan.command("zero3", 16)
    assert plan.command("ddp", 1) == "accelerate launch recipes/grpo_teacher.py"


def test_what_is_printed(monkeypatch, capsys, small_teacher, tmp_path):
    small_teacher.config.save_pretrained(tmp_path)
    for model, gpus in ((str(tmp_path), "1"), ("8B", "8"), ("70B", "64")):
        monkeypatch.setattr(sys, "argv", ["plan", "--model", model, "--gpus", gpus])
        plan.main()
    printed = capsys.readouterr().out
    assert "accelerate_configs/zero1.yaml --num_processes 8" in printed
    assert "none fits; in the smallest gathered takes 131 GiB" in printed
    assert printed.count("Assumed, not measured: 989 TFLOP/s at 40%") == 3


@pytest.mark.parametrize(("flags", "message"), [(["9B", "8"], "neither a size"), (["8B", "0"], "expected 1 or more")])
def test_what_cannot_be_planned_is_refused(monkeypatch, capsys, flags, message):
    monkeypatch.setattr(sys, "argv", ["plan", "--model", flags[0], "--gpus", flags[1]])
    with pytest.raises(SystemExit):
        plan.main()
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("ANYO_RL_ALL_LAUNCHES" not in os.environ, reason="half a minute: set ANYO_RL_ALL_LAUNCHES=1")
def test_the_formula_is_near_what_steps_on_the_cpu_take(repo_root):
    size = ("--hidden", "512", "--layers", "6", "--vocab", "20000", "--tokens", "512", "--checkpointing", "true")
    command = [sys.executable, "benchmarks/plan_memory.py", *size]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
