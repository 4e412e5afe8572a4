"""Samples of a vLLM engine are those of the model in hand: greedily the same, drawn with its probabilities."""

import copy
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare

from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.paths import SampledPath
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.seeds import request_seed
from anyo_rl.sampling.shards import ShardedJob, read_paths, run_shards
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.sampling.vllm.sampler import VllmSampler
from anyo_rl.teacher.tokens import Tokens

pytestmark = pytest.mark.slow

LOG_PROB_TOLERANCE = 1e-4  # of one token, float32: other kernels, other order of sums


@pytest.fixture(scope="module")
def contexts(vllm_engine) -> list[list[int]]:
    """Contexts of unequal length, one longer than a block of the prefix cache."""
    tokens = vllm_engine.tokens
    long = "History:\n" + "Alien\nToys mug\n" * 8
    return [tokens.context_ids(text) for text in ("History:\nAlien\nNext:\n", "x", "Toys\nmug\n", long)]


@pytest.fixture(scope="module")
def many_contexts(vllm_engine, contexts) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return contexts + [rng.integers(5, vllm_engine.tokens.marker_id, n).tolist() for n in range(1, 41)]


@pytest.fixture(scope="module")
def adapter(vllm_engine, tmp_path_factory):
    """A saved adapter that turns answers round, and the model with it merged."""
    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(copy.deepcopy(vllm_engine.model), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(3)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return folder, model.merge_and_unload().eval()


@pytest.fixture(scope="module")
def lora_llm(vllm_engine, vllm_environment):
    """The engine's model in another engine, which takes adapters and has processed log-probabilities."""
    from vllm import LLM

    folder = vllm_engine.llm.llm_engine.model_config.model
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vllm_environment.items():
            patch.setenv(name, value)
        llm = LLM(
            folder,
            dtype="float32",
            max_model_len=256,
            block_size=32,
            max_num_seqs=64,
            enforce_eager=True,
            enable_chunked_prefill=False,
            disable_log_stats=True,
            enable_lora=True,
            max_lora_rank=8,
            logprobs_mode="processed_logprobs",
        )
        yield llm
        llm.llm_engine.engine_core.shutdown()


def log_probs_by_hand(model, context, token_ids, temperature=1.0) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([[*context, *token_ids]])).logits[0].float()
    log_p = torch.log_softmax(logits[len(context) - 1 : -1] / temperature, -1)
    return log_p.gather(1, torch.tensor(token_ids)[:, None])[:, 0].tolist()


def check_frequencies(samples, probabilities: np.ndarray) -> None:
    """Chi-square of first tokens against their probabilities, rare tokens in one class."""
    assert probabilities.max() < 0.9
    counts = np.bincount([sample.token_ids[0] for sample in samples], minlength=len(probabilities))
    expected = probabilities * len(samples)
    assert not counts[probabilities == 0].any()
    rare = expected < 5
    counts, expected = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    if expected[-1] < 5:
        counts, expected = np.append(counts[:-2], counts[-2:].sum()), np.append(expected[:-2], expected[-2:].sum())
    assert len(counts) > 5
    assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.001


def test_greedy_writes_what_the_model_in_hand_writes(vllm_engine, many_contexts):
    tokens = vllm_engine.tokens
    asked = {"temperature": 0.0, "max_new_tokens": 24}
    found = VllmSampler(vllm_engine.llm, tokens, with_log_probs=True).sample(many_contexts, Sampling(**asked))
    in_hand = TransformersSampler(vllm_engine.model, tokens, with_log_probs=True).sample(
        many_contexts, Sampling(**asked)
    )
    for (ours,), (theirs,) in zip(found, in_hand, strict=True):
        assert (ours.token_ids, ours.finish_reason) == (theirs.token_ids, theirs.finish_reason)
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=LOG_PROB_TOLERANCE)
    twice = VllmSampler(vllm_engine.llm, tokens, with_log_probs=True).sample(many_contexts[:2], Sampling(n=2, **asked))
    assert [[s.token_ids for s in row] for row in twice] == [[row[0].token_ids] * 2 for row in found[:2]]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_draws_have_the_policy_s_probabilities(vllm_engine, contexts, temperature, top_p):
    sampler = VllmSampler(vllm_engine.llm, vllm_engine.tokens)
    asked = {"n": 2000, "temperature": temperature, "top_p": top_p, "max_new_tokens": 1, "seed": 3}
    for context, samples in zip(contexts[:2], sampler.sample(contexts[:2], Sampling(**asked)), strict=True):
        with torch.no_grad():
            logits = vllm_engine.model(torch.tensor([context])).logits[0, -1].double()
        p, order = (logits / temperature).softmax(-1).sort(descending=True)
        p[p.cumsum(0) - p >= top_p] = 0
        expected = torch.zeros_like(p).scatter(0, order, p / p.sum())
        check_frequencies(samples, expected.numpy())


def test_the_second_token_is_drawn_given_the_first(vllm_engine, contexts):
    sampler = VllmSampler(vllm_engine.llm, vllm_engine.tokens)
    (samples,) = sampler.sample(contexts[:1], Sampling(n=4000, temperature=0.4, max_new_tokens=2, seed=1))
    firsts, counts = np.unique([sample.token_ids[0] for sample in samples], return_counts=True)
    first = int(firsts[counts.argmax()])
    with torch.no_grad():
        logits = vllm_engine.model(torch.tensor([[*contexts[0], first]])).logits[0, -1].double()
    followed = [
        SimpleNamespace(token_ids=s.token_ids[1:]) for s in samples if s.token_ids[0] == first and len(s.token_ids) > 1
    ]
    check_frequencies(followed, (logits / 0.4).softmax(-1).numpy())


def test_raw_log_probs_leave_the_nucleus_aside(vllm_engine, contexts):
    sampler = VllmSampler(vllm_engine.llm, vllm_engine.tokens, with_log_probs=True)
    for top_p in (1.0, 0.5):
        asked = {"n": 20, "top_p": top_p, "max_new_tokens": 12, "seed": 2}
        for context, row in zip(contexts, sampler.sample(contexts, Sampling(**asked)), strict=True):
            for sample in row:
                expected = log_probs_by_hand(vllm_engine.model, context, sample.token_ids)
                assert sample.log_probs == pytest.approx(expected, abs=LOG_PROB_TOLERANCE)


def test_processed_log_probs_are_at_the_temperature(vllm_engine, lora_llm, contexts):
    sampler = VllmSampler(lora_llm, vllm_engine.tokens, with_log_probs=True)
    for temperature in (0.0, 0.5, 1.0, 2.0):
        for context, row in zip(
            contexts,
            sampler.sample(contexts, Sampling(n=10, temperature=temperature, max_new_tokens=12, seed=2)),
            strict=True,
        ):
            for sample in row:
                expected = log_probs_by_hand(vllm_engine.model, context, sample.token_ids, temperature or 1.0)
                assert sample.log_probs == pytest.approx(expected, abs=LOG_PROB_TOLERANCE)


def test_log_probs_that_the_engine_has_not_are_refused(vllm_engine, lora_llm, contexts):
    raw = VllmSampler(vllm_engine.llm, vllm_engine.tokens, with_log_probs=True)
    with pytest.raises(ValueError, match=r"raw_logprobs are not .* LLM\(\.\.\., logprobs_mode='processed_logprobs'\)"):
        raw.sample(contexts, Sampling(temperature=0.7))
    with pytest.raises(ValueError, match="leave top_p at 1, or sample without log-probabilities"):
        raw.sample(contexts, Sampling(temperature=0.7, top_p=0.9))
    processed = VllmSampler(lora_llm, vllm_engine.tokens, with_log_probs=True)
    with pytest.raises(ValueError, match=r"processed_logprobs are not .* logprobs_mode='raw_logprobs'"):
        processed.sample(contexts, Sampling(top_p=0.9))
    # What would come back: log-probabilities among the nucleus alone, which are too high.
    processed._check = lambda *_: None
    for context, (sample,) in zip(
        contexts, processed.sample(contexts, Sampling(top_p=0.3, max_new_tokens=8)), strict=True
    ):
        own = log_probs_by_hand(vllm_engine.model, context, sample.token_ids)
        assert sum(sample.log_probs) > sum(own) + 0.01


def test_it_stops_at_the_marker_and_at_the_end(vllm_engine, many_contexts):
    tokens = vllm_engine.tokens
    assert tokens.marker_id in vllm_engine.llm.llm_engine.model_config.try_get_generation_config()["eos_token_id"]
    stops = {tokens.eos_id, tokens.marker_id}
    sampler = VllmSampler(vllm_engine.llm, tokens, with_log_probs=True)
    samples = [s for row in sampler.sample(many_contexts, Sampling(n=25, max_new_tokens=60, seed=4)) for s in row]
    ends = {sample.token_ids[-1] for sample in samples if sample.finish_reason == "stop"}
    assert ends == stops
    for sample in samples:
        assert len(sample.log_probs) == len(sample.token_ids) <= 60
        assert not stops & set(sample.token_ids[:-1])
        assert (sample.finish_reason == "stop") == (sample.token_ids[-1] in stops)
        assert sample.finish_reason == "stop" or len(sample.token_ids) == 60


def test_only_the_marker_and_the_end_stop(vllm_engine, contexts):
    """The checkpoint names the marker as an end: with another one it is a token like others."""
    tokens = vllm_engine.tokens
    other = Tokens(tokens.tokenizer, 7)
    samples = [
        s
        for row in VllmSampler(vllm_engine.llm, other).sample(contexts, Sampling(n=250, max_new_tokens=60))
        for s in row
    ]
    assert any(tokens.marker_id in s.token_ids[:-1] for s in samples)
    assert all(s.token_ids[-1] in (7, tokens.eos_id) for s in samples if s.finish_reason == "stop")


def test_draws_belong_to_the_example(vllm_engine, many_contexts):
    sampler = VllmSampler(vllm_engine.llm, vllm_engine.tokens)
    asked = {"n": 3, "max_new_tokens": 8, "seed": 1}
    keys = [f"u{i}:1" for i in range(len(many_contexts))]
    whole = sampler.sample(many_contexts, Sampling(**asked), keys_B=keys)
    assert sampler.sample(many_contexts[::-1], Sampling(**asked), keys_B=keys[::-1]) == whole[::-1]
    alone = [
        sampler.sample([c], Sampling(**asked), keys_B=[k])[0] for c, k in zip(many_contexts[:6], keys, strict=False)
    ]
    assert alone == whole[:6]
    longer = sampler.sample(many_contexts[:6], Sampling(**asked | {"n": 5}), keys_B=keys[:6])
    assert [row[:3] for row in longer] == whole[:6]
    assert sampler.sample(many_contexts, Sampling(**asked | {"seed": 2}), keys_B=keys) != whole
    # Without keys a context is its own; the same one again is another example.
    own = sampler.sample(many_contexts, Sampling(**asked))
    assert own != whole
    again = sampler.sample([*many_contexts[2:4], many_contexts[2]], Sampling(**asked))
    assert again[:2] == own[2:4]
    assert again[2] != again[0]
    assert len({sample.token_ids for sample in own[0]}) > 1


def test_a_job_writes_the_same_paths_in_1_shard_and_in_7(vllm_engine, many_contexts, tmp_path):
    sampler = VllmSampler(vllm_engine.llm, vllm_engine.tokens)
    context_of = {f"u{i}:1": context for i, context in enumerate(many_contexts)}
    rows = [Row(example_id, "u", [], "i1") for example_id in context_of]
    sampling = Sampling(n=3, max_new_tokens=8, seed=5)

    def make_paths(rows):
        keys = [row.example_id for row in rows]
        found = sampler.sample([context_of[key] for key in keys], sampling, keys_B=keys)
        return [
            SampledPath(key, g, token_ids=list(sample.token_ids), seed=request_seed(5, key))
            for key, samples in zip(keys, found, strict=True)
            for g, sample in enumerate(samples)
        ]

    for n_shards in (1, 7):
        run_shards(rows, ShardedJob(tmp_path / str(n_shards), sampling, policy="sft", n_shards=n_shards), make_paths)
    assert read_paths(tmp_path / "1").equals(read_paths(tmp_path / "7"))


def test_more_context_than_the_engine_reads_at_once(vllm_engine):
    """Seeded requests whose prompts are read in pieces stop vLLM on the CPU."""
    config = vllm_engine.llm.llm_engine.vllm_config.scheduler_config
    contexts = [[5 + i % 200, *[7] * 199] for i in range(200)]
    assert config.max_num_batched_tokens < 200 * 200
    found = VllmSampler(vllm_engine.llm, vllm_engine.tokens).sample(contexts, Sampling(n=2, max_new_tokens=1))
    assert [len(row) for row in found] == [2] * 200


def test_seeds_are_apart():
    seeds = {request_seed(seed, f"u{user}") for seed in range(50) for user in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert min(b - a for a, b in pairwise(sorted(seeds))) > 10_000  # more than the samples of an example
    assert request_seed(0, "a") == request_seed(0, "a")


def test_adapters_are_sampled_with(vllm_engine, lora_llm, many_contexts, adapter):
    from vllm.lora.request import LoRARequest

    folder, merged = adapter
    tokens = vllm_engine.tokens
    asked = {"temperature": 0.0, "max_new_tokens": 12}
    with_adapter = VllmSampler(
        lora_llm, tokens, with_log_probs=True, lora_request=LoRARequest("policy", 1, str(folder))
    )
    expected = TransformersSampler(merged, tokens, with_log_probs=True).sample(many_contexts, Sampling(**asked))
    plain = VllmSampler(lora_llm, tokens).sample(many_contexts, Sampling(**asked))
    for (ours,), (theirs,) in zip(with_adapter.sample(many_contexts, Sampling(**asked)), expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.log_probs == pytest.approx(theirs.log_probs, abs=LOG_PROB_TOLERANCE)
    in_hand = TransformersSampler(vllm_engine.model, tokens).sample(many_contexts, Sampling(**asked))
    assert [row[0].token_ids for row in plain] == [row[0].token_ids for row in in_hand]
    assert [row[0].token_ids for row in plain] != [row[0].token_ids for row in expected]
    with pytest.raises(ValueError, match="enable_lora=True"):
        VllmSampler(vllm_engine.llm, tokens, lora_request=LoRARequest("policy", 1, str(folder)))


def test_what_cannot_be_honoured_is_refused(vllm_engine, contexts, monkeypatch):
    sampler = VllmSampler(vllm_engine.llm, vllm_engine.tokens)
    with monkeypatch.context() as patch:
        patch.setattr(vllm_engine.llm.llm_engine.vllm_config.scheduler_config, "enable_chunked_prefill", True)
        with pytest.raises(ValueError, match="enable_chunked_prefill=False"):
            VllmSampler(vllm_engine.llm, vllm_engine.tokens)
    assert sampler.sample([]) == []
    for wrong in ({"n": 0}, {"temperature": 0.005}, {"temperature": 2.5}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match="expected at least 1, at least 1, 0 or"):
            sampler.sample(contexts, Sampling(**wrong))
    with pytest.raises(ValueError, match=r"take up to 257 tokens, the engine 256; .*max_model_len=257"):
        sampler.sample([[5] * 250], Sampling(max_new_tokens=7))
    with pytest.raises(ValueError, match="a context is empty"):
        sampler.sample([[5], []])
    with pytest.raises(ValueError, match="1 different keys for 2 contexts"):
        sampler.sample(contexts[:2], keys_B=["a", "a"])
    with pytest.raises(ValueError, match="2 different keys for 1 contexts"):
        sampler.sample(contexts[:1], keys_B=["a", "b"])


def test_an_aborted_request_is_no_sample(vllm_engine):
    sampler = VllmSampler(vllm_engine.llm, vllm_engine.tokens)
    marker = vllm_engine.tokens.marker_id
    for token_ids, reason in (((5, 6), "abort"), ((5, 6), "stop"), ((5, marker), "error"), ((5, 6), "repetition")):
        with pytest.raises(RuntimeError, match=f"ended a completion of 2 tokens by '{reason}'"):
            sampler._sample(SimpleNamespace(token_ids=list(token_ids), finish_reason=reason), sampler.stops)
