from dataclasses import replace

import numpy as np
import pytest

from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sample, Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import How, answer

ROWS = [
    Row(example_id=f"u{u}:3", user_id=f"u{u}", prompt=prompt, history=history, target_id=target)
    for u, (prompt, history, target) in enumerate(
        [("Alien\n", ["i0", "i4"], "i4"), ("Toys mug\n", ["i5", "i9"], "i0"), ("x", [], "i9")]
    )
]


class Scripted:
    """A sampler that writes what it is told, and remembers what it was asked."""

    def __init__(self, samples: list[list[Sample]]) -> None:
        self.samples = samples
        self.asked: Sampling | None = None
        self.keys: list[str] | None = None

    def sample(self, contexts_B, sampling, *, keys_B=None):
        self.asked, self.keys = sampling, keys_B
        return self.samples[: len(contexts_B)]


@pytest.fixture
def ranker(small_catalog, small_teacher) -> LikelihoodRanker:
    return LikelihoodRanker(small_catalog, small_teacher)


def test_plain_asks_at_once(ranker, small_tokens):
    found = answer(ROWS, ranker, Scripted([]), small_tokens, How("plain", top_k=4))
    contexts = [[*small_tokens.context_ids(row.prompt), small_tokens.marker_id] for row in ROWS]
    expected = ranker.rank(contexts, [row.target_id for row in ROWS], top_k=4)
    assert found.ranks_U.tolist() == expected.ranks_B.tolist()
    assert found.top_ids_U_K == expected.top_ids_B_K
    assert found.paths == []


def test_greedy_is_one_path_at_temperature_0(ranker, small_tokens):
    steps = small_tokens.reasoning_ids(["likes tea"])
    sampler = Scripted([[Sample(tuple(steps), (-0.5,) * len(steps), "stop")], [Sample((5, 6), None, "length")]])
    found = answer(ROWS[:2], ranker, sampler, small_tokens, How("greedy", Sampling(n=9, max_new_tokens=7)))
    assert (sampler.asked.n, sampler.asked.temperature, sampler.asked.max_new_tokens) == (1, 0.0, 7)
    starts = [small_tokens.context_ids(row.prompt) for row in ROWS]
    expected = ranker.rank([[*starts[0], *steps], [*starts[1], 5, 6, small_tokens.marker_id]], ["i4", "i0"])
    assert found.ranks_U.tolist() == expected.ranks_B.tolist()
    first, second = found.paths
    assert (first.completion, first.finish_reason) == ("likes tea ->", "stop")
    assert (first.token_ids, first.token_log_probs) == (steps, [-0.5] * len(steps))
    assert first.cap is None
    assert (first.rank, first.item_id) == (expected.ranks_B[0], expected.top_ids_B_K[0][0])
    assert (second.sample_index, second.token_log_probs, second.finish_reason) == (0, None, "length")
    assert (second.example_id, second.target_id, second.prompt) == ("u1:3", "i0", "Toys mug\n")


@pytest.mark.parametrize("masked", [False, True])
def test_the_mixture_is_the_mean_of_probabilities(ranker, small_catalog, small_teacher, small_tokens, masked):
    rows = [replace(row, excluded=row.history) if masked else row for row in ROWS]
    paths = [(5, 6, small_tokens.marker_id), (7,), (small_tokens.marker_id,)]
    sampler = Scripted([[Sample(path, None, "stop") for path in paths]] * 3)
    found = answer(rows, ranker, sampler, small_tokens, How("mixture", Sampling(n=3), top_k=20))
    for user, row in enumerate(rows):
        start = small_tokens.context_ids(row.prompt)
        contexts = [small_tokens.marked_context(start, path) for path in paths]
        each = np.exp(DistributionRanker(small_catalog, small_teacher).log_probs(contexts).double().numpy())
        mean = each.mean(0)
        target = small_catalog.index[row.target_id]
        hidden = {small_catalog.index[i] for i in row.history} - {target} if masked else set()
        order = [int(i) for i in np.argsort(-mean) if i not in hidden]
        assert found.ranks_U[user] == 1 + order.index(target)
        assert found.top_ids_U_K[user] == [f"i{i}" for i in order]
        for index in range(3):
            path = found.paths[user * 3 + index]
            assert (path.example_id, path.sample_index) == (row.example_id, index)
            assert path.cap == 1000
            own = [int(i) for i in np.argsort(-each[index]) if i not in hidden]
            assert (path.rank, path.item_id) == (1 + own.index(target), f"i{own[0]}")


@pytest.mark.parametrize("mode", ["greedy", "mixture"])
def test_batches_of_users_change_nothing(ranker, small_tokens, small_teacher, monkeypatch, mode):
    sampler = TransformersSampler(small_teacher, small_tokens, with_log_probs=True)
    asked = Sampling(n=3, max_new_tokens=4, seed=5)
    whole = answer(ROWS, ranker, sampler, small_tokens, How(mode, asked))
    monkeypatch.setattr("anyo_rl.search.answers.USERS_AT_ONCE", 2)
    halves = answer(ROWS, ranker, sampler, small_tokens, How(mode, asked))
    assert halves.ranks_U.tolist() == whole.ranks_U.tolist()
    assert halves.top_ids_U_K == whole.top_ids_U_K
    for key in ("token_ids", "rank", "item_id", "seed", "example_id", "sample_index"):
        assert [getattr(p, key) for p in halves.paths] == [getattr(p, key) for p in whole.paths]


@pytest.mark.parametrize("mode", ["plain", "greedy", "mixture"])
def test_no_users(ranker, small_tokens, mode):
    found = answer([], ranker, Scripted([]), small_tokens, How(mode))
    assert (found.ranks_U.tolist(), found.top_ids_U_K, found.paths) == ([], [], [])
