"""Lines in a vLLM engine: the same ends and limits as with transformers, and draws that belong to keys."""

from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.sampling.vllm.sampler import VllmSampler


def test_lines_end_at_breaks_and_limits_and_greedy_ones_are_those_of_transformers(vllm_engine):
    llm, model, tokens = vllm_engine
    contexts = [tokens.context_ids(text) for text in ("bapa\n", "x\n", "bepa dopa\n", "Alien\n")]
    limits, keys = [3, 9, 1, 12], list("abcd")
    sampler = VllmSampler(llm, tokens)
    greedy = Sampling(temperature=0)
    expected = TransformersSampler(model, tokens).sample_lines(contexts, greedy, limits, keys)
    found = sampler.sample_lines(contexts, greedy, limits, keys)
    assert [(one.token_ids, one.finish_reason) for one in found] == [
        (one.token_ids, one.finish_reason) for one in expected
    ]
    hot = Sampling(temperature=2.0, seed=3)
    many = sampler.sample_lines(contexts * 8, hot, limits * 8, [f"{key}{i}" for i in range(8) for key in keys])
    ends = {*tokens.break_ids, tokens.marker_id, tokens.eos_id}
    for one, limit in zip(many, limits * 8, strict=True):
        assert len(one.token_ids) <= limit
        assert not ends & set(one.token_ids[:-1])
        assert (one.finish_reason == "stop") == (one.token_ids[-1] in ends)
    alone = sampler.sample_lines([contexts[1]], hot, [9], ["b2"])
    assert alone[0].token_ids == many[4 * 2 + 1].token_ids
