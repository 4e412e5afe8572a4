"""Weighted mixtures, and rows whose target nobody knows."""

import numpy as np
import pytest

from anyo_rl.evidence.fusion import fuse
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker


@pytest.fixture
def contexts(small_tokens) -> list[list[list[int]]]:
    """Three contexts of each of two rows."""
    texts = [("Alien", "mug", "Toys"), ("lamp oak", "x", "Aliens 3")]
    return [[[*small_tokens.context_ids(text), small_tokens.marker_id] for text in row] for row in texts]


WEIGHTS = [(0.5, 0.5, 0.0), (0.1, 0.2, 0.7)]


def test_the_mixture_is_the_weighted_mean(small_catalog, small_teacher, contexts):
    ranker = LikelihoodRanker(small_catalog, small_teacher)
    found = ranker.rank_mixture(contexts, ["i4", "i0"], top_k=20, weights_B_G=WEIGHTS)
    exact = DistributionRanker(small_catalog, small_teacher)
    for row in range(2):
        each_G_N = np.exp(exact.log_probs(contexts[row]).double().numpy())
        mean_N = np.array(WEIGHTS[row]) @ each_G_N
        order = np.argsort(-mean_N)
        assert found.top_ids_B_K[row] == [f"i{item}" for item in order]
        np.testing.assert_allclose(np.exp(found.top_scores_B_K[row]), mean_N[order], atol=1e-6)
        target = [4, 0][row]
        assert found.ranks_B[row] == 1 + order.tolist().index(target)
        assert found.log_probs_B[row] == pytest.approx(np.log(mean_N[target]), abs=1e-5)
    # A context without weight might as well not be there, and equal weights are those that need not be told.
    without = ranker.rank_mixture([contexts[0][:2]], ["i4"], top_k=20)
    assert without.top_ids_B_K[0] == found.top_ids_B_K[0]
    np.testing.assert_allclose(without.top_scores_B_K[0], found.top_scores_B_K[0], atol=1e-5)
    alike = ranker.rank_mixture(contexts, ["i4", "i0"], top_k=20, weights_B_G=[[1 / 3] * 3] * 2)
    assert alike.top_ids_B_K == ranker.rank_mixture(contexts, ["i4", "i0"], top_k=20).top_ids_B_K


@pytest.mark.parametrize("weights", [[(0.5, 0.6, -0.1)] * 2, [(0.5, 0.5)] * 2, [(0.5, 0.5, 0.5)] * 2, [WEIGHTS[0]]])
def test_weights_that_are_none_are_refused(small_catalog, small_teacher, contexts, weights):
    with pytest.raises(ValueError, match=r"summing to 1|2 contexts but 1 rows"):
        LikelihoodRanker(small_catalog, small_teacher).rank_mixture(contexts, ["i4", "i0"], weights_B_G=weights)


def test_rows_without_a_target_have_items_and_no_rank(small_catalog, small_teacher, contexts):
    ranker = LikelihoodRanker(small_catalog, small_teacher)
    known = ranker.rank_mixture(contexts, ["i4", "i0"], top_k=5, excluded_B=[["i1"], []])
    found = ranker.rank_mixture(contexts, [None, "i0"], top_k=5, excluded_B=[["i1"], []])
    assert found.ranks_B.tolist() == [0, known.ranks_B[1]]
    assert np.isnan(found.log_probs_B[0])
    assert found.top_ids_B_K == known.top_ids_B_K


def test_weighted_fusion_by_hand():
    evidence = np.log([[0.5, 0.5]])
    paths = np.log([[[0.9, 0.1], [0.2, 0.8]]])
    found = np.exp(fuse(paths, evidence, 1.0, np.array([[0.25, 0.75]])))
    np.testing.assert_allclose(found, [[0.25 * 0.9 + 0.75 * 0.2, 0.25 * 0.1 + 0.75 * 0.8]])
