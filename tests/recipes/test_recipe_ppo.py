"""PPO as its documented command, with adapters and rewards for steps: what it leaves is a plain teacher."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

SMOKE = Path(__file__).parent / "configs"

pytestmark = pytest.mark.slow


def test_ppo_leaves_a_teacher_without_a_critic(finished_run, launcher, tmp_path):
    run = tmp_path / "run"
    least = "--max_steps 2 --eval_steps 2 --save_steps 2 --train_direct false --baselines false --max_test 8"
    start = ("--sft_config", "", "--model_name_or_path", finished_run.teacher)
    how = "--use_peft true --lora_r 4 --lora_target_modules q_proj down_proj --step_rewards shaping --beta 0.01"
    flags = ("--config", SMOKE / "ppo.yaml", *start, *least.split(), *how.split(), "--output_dir", run)
    launcher.finish("ppo_teacher", *flags)

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == "ppo" and "loss" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row in steps:
        assert {"value/loss", "value/explained_variance", "values/first", "kl", "item_loss"} <= row.keys()
    assert steps[0]["value/mean"] == 0  # the head begins at zero
    assert steps[1]["value/mean"] != 0
    # A checkpoint has the critic, or a resumed run would begin with another one.
    kept = load_file(run / "ppo" / "checkpoint-2" / "adapter_model.safetensors")
    assert any("value_head" in name for name in kept)
    teacher = run / "ppo" / "teacher"
    before, after = (load_file(folder / "model.safetensors") for folder in (finished_run.teacher, teacher))
    assert before.keys() == after.keys()
    assert json.loads((teacher / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert all(np.isfinite(weight).all() for weight in after.values())
    assert set(json.loads((run / "evaluation.json").read_text())["stages"]) == {"sft", "ppo"}
