"""What is asked of Ray's engines and made of their answers; tests/recipes/test_vllm_sample_paths.py runs them."""

import random

import pytest

from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.ray import RaySampler, connect
from anyo_rl.sampling.seeds import request_seed

CONTEXTS = [[5, 6], [7], [5, 6, 8]]
KEYS = ["a", "b", "c"]
ASKED = {"n": 2, "max_new_tokens": 3, "seed": 4}


class FakeEngines(RaySampler):
    """Answers with tokens made of the request, in any order."""

    def _run(self, requests):
        self.runs = [*getattr(self, "runs", []), requests]
        self.given = []
        for request in random.Random(0).sample(requests, len(requests)):
            self.given.append(request["key"])
            last = self.stops[0] if request["index"] else 9
            token_ids = [len(request["tokenized_prompt"]), 9, last][: self.length]
            yield {"key": request["key"], "index": request["index"], "token_ids": token_ids, "log_probs": [-1.0] * 3}


@pytest.fixture
def engines(small_tokens):
    engines = FakeEngines(
        "teacher", small_tokens, {"max_model_len": 6}, n_engines=2, on_gpu=False, with_log_probs=True
    )
    engines.length = 3
    return engines


def test_each_sample_comes_to_its_place(engines, small_tokens):
    engines.ahead(CONTEXTS, Sampling(**ASKED), keys_B=KEYS)
    assert not hasattr(engines, "runs")  # nothing runs before it is asked for
    (last,) = engines.sample(CONTEXTS[2:], Sampling(**ASKED), keys_B=KEYS[2:])
    first = engines.sample(CONTEXTS[:2], Sampling(**ASKED), keys_B=KEYS[:2])
    assert len(engines.runs) == 1
    assert [[r["seed"] for r in engines.runs[0] if r["key"] == key] for key in KEYS] == [
        [request_seed(4, key), request_seed(4, key) + 1] for key in KEYS
    ]
    for context, samples in zip(CONTEXTS, [*first, last], strict=True):
        assert [s.token_ids for s in samples] == [(len(context), 9, 9), (len(context), 9, small_tokens.eos_id)]
        assert [s.finish_reason for s in samples] == ["length", "stop"]
        assert samples[0].log_probs == (-1.0, -1.0, -1.0)


def test_what_was_not_told_ahead_is_run_by_itself(engines):
    engines.sample(CONTEXTS, Sampling(n=2, max_new_tokens=3))
    engines.sample(CONTEXTS[:1], Sampling(n=2, max_new_tokens=3, seed=1))
    assert [len(requests) for requests in engines.runs] == [6, 2]
    greedy = engines.sample(CONTEXTS[:1], Sampling(n=3, temperature=0.0, max_new_tokens=3))
    assert [len(requests) for requests in engines.runs] == [6, 2, 1]
    assert len(greedy[0]) == 3
    assert engines.sample([], Sampling(n=2, max_new_tokens=3)) == []


def test_what_is_wrong_is_said(engines):
    with pytest.raises(ValueError, match=r"take up to 7 tokens, the engines 6, .*raise max_model_len"):
        engines.ahead(CONTEXTS, Sampling(max_new_tokens=4))
    with pytest.raises(ValueError, match="none may be empty"):
        engines.ahead([[]], Sampling(max_new_tokens=3))
    with pytest.raises(ValueError, match=r"raw_logprobs are not those of the policy at temperature 0\.5"):
        engines.ahead(CONTEXTS, Sampling(max_new_tokens=3, temperature=0.5))
    engines.length = 2
    with pytest.raises(RuntimeError, match=r"after 2 tokens, none of .* the last: expected one, or 3 tokens"):
        engines.sample(CONTEXTS, Sampling(max_new_tokens=3))
    engines.length = 3
    engines.ahead(CONTEXTS[:1], Sampling(**ASKED), keys_B=KEYS[:1])
    engines._stream = iter(())
    with pytest.raises(RuntimeError, match="the engines ended without all samples of a"):
        engines.sample(CONTEXTS[:1], Sampling(**ASKED), keys_B=KEYS[:1])


def test_only_a_cluster_that_is_named_is_joined(monkeypatch):
    ray = pytest.importorskip("ray", reason="needs the `ray` extra")
    asked = []
    monkeypatch.setattr(ray, "init", lambda **given: asked.append((given["address"], given.get("num_cpus"))))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    connect(n_cpus=3)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    connect(n_cpus=3)
    assert asked == [("local", 3), ("10.0.0.1:6379", None)]
