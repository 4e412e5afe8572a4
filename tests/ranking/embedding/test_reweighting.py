import numpy as np
import pytest
import torch

from anyo_rl.ranking.embedding.ranker import EmbeddingRanker, choose_gamma

IDS = ["a", "b", "c"]
VECTORS = np.array([[1.0], [2.0], [5.0]])  # from 0: D = 1, 2, 5 and D̂ = 0, 1/4, 1


def at_zero(texts):
    return torch.zeros(len(texts), 1)


def test_a_cf_models_scores_move_items_by_hand_computed_amounts():
    ranker = EmbeddingRanker(IDS, VECTORS, at_zero, gamma=3.0)
    # Row 0: scores -1, -1, 3 → W = 0, 0, 1: D̃ = 0, 1/4, 1/8. Row 1: scores 5, 9, 7 → W = 0, 1, 1/2: D̃ of b is 1/32, of
    # c (3/2)^-3 = 8/27. Row 2: all alike → W = 0: the order of the distances.
    scores = np.array([[-1.0, -1.0, 3.0], [5.0, 9.0, 7.0], [2.0, 2.0, 2.0]])
    for weights in (scores, torch.from_numpy(scores), lambda items: scores[:, items]):
        ranking = ranker.rank(["-> x"] * 3, ["b", "b", "c"], cf_scores_B_N=weights)
        assert ranking.ranks_B.tolist() == [3, 2, 3]
        assert ranking.top_ids_B_K == [["a", "c", "b"], ["a", "b", "c"], ["a", "b", "c"]]
        expected = [[0, -1 / 8, -1 / 4], [0, -1 / 32, -8 / 27], [0, -1 / 4, -1]]
        for found, wanted in zip(ranking.top_scores_B_K, expected, strict=True):
            assert found == pytest.approx(wanted)


def test_scores_go_with_the_rows_that_have_an_item():
    ranker = EmbeddingRanker(IDS, VECTORS, at_zero, gamma=3.0)
    scores = torch.tensor([[9.0, 9.0, 0.0], [0.0, 0.0, 1.0]])
    ranking = ranker.rank(["nothing written", "-> x"], ["c", "c"], cf_scores_B_N=scores)
    assert ranking.ranks_B.tolist() == [3, 2]
    ranking = ranker.rank(["nothing", "-> x"], ["c", "c"], cf_scores_B_N=scores, candidates_B=[["c"], ["b", "c"]])
    assert ranking.ranks_B.tolist() == [1, 1]
    assert ranking.top_scores_B_K[1] == pytest.approx([-1 / 8, -1 / 4])


def test_scores_take_the_place_of_the_popularity():
    ranker = EmbeddingRanker(IDS, VECTORS, at_zero, gamma=3.0, popularity_N=np.array([0, 0, 8]))
    assert ranker.rank(["-> x"], ["b"]).ranks_B.tolist() == [3]
    assert ranker.rank(["-> x"], ["b"], cf_scores_B_N=np.array([[0.0, 1.0, 0.0]])).ranks_B.tolist() == [2]
    # Without γ neither is asked for.
    assert ranker.with_gamma(0).rank(["-> x"], ["b"], cf_scores_B_N=lambda items: 1 / 0).ranks_B.tolist() == [2]


def test_errors_about_scores():
    ranker = EmbeddingRanker(IDS, VECTORS, at_zero, gamma=1.0)
    with pytest.raises(ValueError, match=r"must have shape \(1, 3\), a row per context, found \(1, 2\)"):
        ranker.rank(["-> x"], ["a"], cf_scores_B_N=np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"gave shape \(2, 3\), expected \(1, 3\)"):
        ranker.rank(["-> x"], ["a"], cf_scores_B_N=lambda items: np.ones((2, 3)))
    with pytest.raises(ValueError, match="weights hold NaN or infinity"):
        ranker.rank(["-> x"], ["a"], cf_scores_B_N=np.array([[1.0, -np.inf, 2.0]]))


def test_gamma_is_chosen_on_validation_rows():
    # b is 1/4, c is 2^-γ: c is third, and at γ = 2 they tie, so that c stays third; from there on it is second.
    calls = []

    def encoder(texts):
        calls.append(texts)
        return torch.zeros(len(texts), 1)

    ranker = EmbeddingRanker(IDS, VECTORS, encoder, popularity_N=np.array([0, 0, 8]), gamma=50.0)
    choice = choose_gamma(ranker, ["-> x", "nothing"], ["c", "a"], gammas=[0, 2, 3, 9])
    third, second = (1 / 2 + 1 / 2) / 2, (1 / np.log2(3) + 1 / 2) / 2  # without an item the target is third of three
    assert choice.trials == [(0, third), (2, third), (3, pytest.approx(second)), (9, choice.value)]
    assert (choice.gamma, choice.value) == (3.0, pytest.approx(second))
    assert calls == [["x"]]
    assert ranker.gamma == 50.0


def test_gamma_by_another_metric_and_a_cf_model():
    ranker = EmbeddingRanker(IDS, VECTORS, at_zero)
    scores = np.array([[0.0, 0.0, 8.0]])
    choice = choose_gamma(ranker, ["-> x"], ["c"], gammas=[0, 3, 9], metric=lambda ranks: -ranks, cf_scores_B_N=scores)
    assert choice.trials == [(0.0, -3.0), (3.0, -2.0), (9.0, -2.0)]
    assert choice.gamma == 3.0
    # What is excluded makes room, and of equal γ the first is taken.
    choice = choose_gamma(ranker, ["-> x"], ["c"], gammas=[0, 3], excluded_B=[["a", "b"]], cf_scores_B_N=scores)
    assert choice.trials == [(0.0, 1.0), (3.0, 1.0)]
    assert choice.gamma == 0.0


def test_errors_about_gamma():
    ranker = EmbeddingRanker(IDS, VECTORS, at_zero)
    with pytest.raises(ValueError, match="0 gammas and 1 validation rows"):
        choose_gamma(ranker, ["-> x"], ["a"], gammas=[])
    with pytest.raises(ValueError, match="2 gammas and 0 validation rows"):
        choose_gamma(ranker, [], [], gammas=[0, 1])
    with pytest.raises(ValueError, match="nothing to reweigh by"):
        choose_gamma(ranker, ["-> x"], ["a"])
    with pytest.raises(ValueError, match="mean is nan with gamma=0"):
        choose_gamma(ranker, ["-> x"], ["a"], gammas=[0], metric=lambda ranks: ranks * np.nan)
