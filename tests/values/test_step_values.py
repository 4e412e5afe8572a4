from dataclasses import replace

import numpy as np
import pytest

from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sample, Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.values.step_values import forced_answer_values, monte_carlo_values

ROWS = [
    Row(example_id="u0:1", prompt="Alien\n", history=["i0", "i2"], target_id="i1", user_id="u"),
    Row(example_id="u0:1", prompt="Alien\n", history=["i0", "i2"], target_id="i1", user_id="u"),
    Row(example_id="u1:1", prompt="mug\n", history=["i9"], target_id="i8", user_id="u"),
    Row(example_id="u1:1", prompt="mug\n", history=["i9"], target_id="i8", user_id="u"),
]
TEXTS = ["toys\nmug", "toys\nAlien\nx", "one", ""]


@pytest.fixture
def completions(small_tokens):
    """Three that reach the marker, one of these without a step, and one that does not reach it."""
    ids = [small_tokens.tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    return [part if place == 2 else [*part, small_tokens.marker_id] for place, part in enumerate(ids)]


@pytest.mark.parametrize("masked", [False, True])
def test_a_forced_answer_is_what_the_oracle_says_of_each_state(
    small_catalog, small_teacher, small_tokens, completions, masked
):
    rows = [replace(row, excluded=row.history) if masked else row for row in ROWS]
    ranker = LikelihoodRanker(small_catalog, small_teacher, tie_band=0.0)
    found = forced_answer_values(rows, completions, ranker, small_tokens)
    oracle = DistributionRanker(small_catalog, small_teacher)
    # As where a reasoning ends, the marker follows the last word and not the line break.
    states = [["", "toys"], ["", "toys", "toys\nAlien"], [""], [""]]
    assert [len(values) for values in found] == [len(of_path) for of_path in states]
    for row, of_path, values in zip(rows, states, found, strict=True):
        contexts = [[*small_tokens.context_ids(row.prompt + text), small_tokens.marker_id] for text in of_path]
        excluded = [row.history] * len(of_path) if masked else None
        ranks = oracle.rank(contexts, [row.target_id] * len(of_path), excluded_B=excluded).ranks_B
        np.testing.assert_allclose(values, ndcg(ranks))


def test_equal_states_are_valued_once(small_catalog, small_teacher, small_tokens, completions, monkeypatch):
    asked = []

    class Counting(LikelihoodRanker):
        def rank(self, contexts_B, *args, **kwargs):
            asked.append(len(contexts_B))
            return super().rank(contexts_B, *args, **kwargs)

    forced_answer_values(ROWS, completions, Counting(small_catalog, small_teacher), small_tokens)
    assert asked == [4]  # two prompts; "toys" of both paths; "toys, Alien"


def test_monte_carlo_is_the_mean_gain_of_what_is_sampled_on(small_catalog, small_teacher, small_tokens, completions):
    ranker = LikelihoodRanker(small_catalog, small_teacher)
    marker, text = small_tokens.marker_id, small_tokens.tokenizer.encode("x", add_special_tokens=False)
    seen = []

    class Fixed:
        def sample(self, contexts_B, sampling):
            seen.append((contexts_B, sampling))
            return [[Sample((*text, marker), None, "stop"), Sample(tuple(text), None, "length")] for _ in contexts_B]

    asked = Sampling(n=2, max_new_tokens=7, temperature=0.5, top_p=0.9, seed=4)
    found = monte_carlo_values(ROWS, completions, Fixed(), ranker, small_tokens, asked)
    ((contexts, given),) = seen
    assert given == asked
    assert [len(values) for values in found] == [2, 3, 1, 1]
    for row, values, starts in zip(ROWS, found, ["toys\n", "toys\n", "", ""], strict=True):
        last = small_tokens.context_ids(row.prompt) + small_tokens.tokenizer.encode(starts, add_special_tokens=False)
        assert last in contexts
        rank = ranker.rank([[*last, *text, marker]], [row.target_id]).ranks_B
        at = 1 if starts else 0
        assert values[at] == pytest.approx(ndcg(rank)[0] / 2)


def test_monte_carlo_samples_the_teacher(small_catalog, small_teacher, small_tokens, completions):
    sampler = TransformersSampler(small_teacher, small_tokens)
    ranker = LikelihoodRanker(small_catalog, small_teacher)
    asked = {"n": 3, "max_new_tokens": 4}
    first = monte_carlo_values(ROWS, completions, sampler, ranker, small_tokens, Sampling(**asked))
    again = monte_carlo_values(ROWS, completions, sampler, ranker, small_tokens, Sampling(**asked))
    other = monte_carlo_values(ROWS, completions, sampler, ranker, small_tokens, Sampling(seed=9, **asked))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(((values >= 0) & (values <= 1)).all() for values in first + other)
    assert first[0][0] == first[1][0]  # the same state
