"""Searches whose answers are the teacher's and the evidence's together."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from anyo_rl.evidence.candidates import NONE
from anyo_rl.evidence.fusion import FusedRanker
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.search.answers import answer
from anyo_rl.search.how import How, Settings
from anyo_rl.search.values import agreement


class Known:
    """Evidence of any example: the same six candidates, five for the second user."""

    def __init__(self, catalog) -> None:
        self.maker = SimpleNamespace(index=catalog.index, folder="evidence")

    def candidates(self, example_ids):
        rows = [[4, 0, 9, 7, 1, NONE if example == "u1:3" else 2] for example in example_ids]
        return np.array(rows, dtype=np.int32).reshape(-1, 6)

    def log_scores(self, example_ids):
        scores = np.log([[0.3, 0.25, 0.2, 0.1, 0.1, 0.05]] * len(example_ids)).reshape(-1, 6).astype(np.float32)
        scores[self.candidates(example_ids) == NONE] = -np.inf
        return scores

    def target_ranks(self, example_ids):
        return np.full(len(example_ids), 8)


@pytest.fixture
def fused(ranker, small_catalog) -> FusedRanker:
    return FusedRanker(ranker, Known(small_catalog), 0.7)


def how(mode, **settings):
    return How(mode, Sampling(n=4, max_new_tokens=12, seed=5), 10, False, Settings(**settings), keep_found=True)


@pytest.mark.parametrize("mode", ["plain", "weighted_mixture", "rank_fusion", "step_beam", "mcts"])
def test_ranks_are_those_of_the_final_answer_and_targets_need_not_be_known(rows, fused, sampler, small_tokens, mode):
    found = answer(rows, fused, sampler, small_tokens, how(mode))
    unknown = answer([replace(row, target_id="") for row in rows], fused, sampler, small_tokens, how(mode))
    assert unknown.ranks_U.tolist() == [0] * len(rows)
    for user, one in enumerate(found.found_U):
        assert one.item_ids_K == unknown.found_U[user].item_ids_K
        assert len(one.item_ids_K) == (5 if user == 1 else 6)
        own = one.scores_K[one.item_ids_K.index(rows[user].target_id)]
        assert found.ranks_U[user] == sum(score >= own for score in one.scores_K)  # merged lists may tie


def test_the_best_of_n_may_be_the_one_that_evidence_agrees_with(rows, fused, sampler, small_tokens):
    for row, one in zip(
        rows, answer(rows, fused, sampler, small_tokens, how("best_of_n", score="evidence")).found_U, strict=True
    ):
        contexts = [[one.tree.asked_at(leaf, small_tokens)] for leaf in range(1, 5)]
        candidates = fused.evidence.candidates([row.example_id] * 4)
        log_p = fused.log_probs(contexts, candidates)[:, 0]
        scores = fused.evidence.log_scores([row.example_id] * 4)
        expected = [agreement(*both) for both in zip(log_p, scores, strict=True)]
        assert [one.tree.nodes[leaf].value for leaf in range(1, 5)] == pytest.approx(expected, abs=1e-5)
        assert one.ending.leaves == (1 + int(np.argmax(np.round(expected, 6))),)
