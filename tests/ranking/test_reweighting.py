import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.ranking.embedding import EmbeddingRanker, choose_gamma, competing_items
from anyo_rl.ranking.protocol import allowed_items

IDS = ["a", "b", "c"]
VECTORS = np.array([[1.0], [2.0], [5.0]])  # from 0: D = 1, 2, 5 and D̂ = 0, 1/4, 1


def at_zero(texts):
    return torch.zeros(len(texts), 1)


def test_a_cf_models_scores_move_items_by_hand_computed_amounts():
    ranker = EmbeddingRanker(IDS, VECTORS, at_zero, gamma=3.0, weights_per_row=True)
    # Row 0: scores -1, -1, 3 → W = 0, 0, 1: D̃ = 0, 1/4, 1/8. Row 1: scores 5, 9, 7 → W = 0, 1, 1/2: D̃ of b is 1/32, of
    # c (3/2)^-3 = 8/27. Row 2: all alike → W = 0: the order of the distances.
    scores = np.array([[-1.0, -1.0, 3.0], [5.0, 9.0, 7.0], [2.0, 2.0, 2.0]])
    for weights in (scores, torch.from_numpy(scores), lambda items: scores[:, items]):
        ranking = ranker.rank(["-> x"] * 3, ["b", "b", "c"], weights_B_N=weights)
        assert ranking.ranks_B.tolist() == [3, 2, 3]
        assert ranking.top_ids_B_K == [["a", "c", "b"], ["a", "b", "c"], ["a", "b", "c"]]
        expected = [[0, -1 / 8, -1 / 4], [0, -1 / 32, -8 / 27], [0, -1 / 4, -1]]
        for found, wanted in zip(ranking.top_scores_B_K, expected, strict=True):
            assert found == pytest.approx(wanted)


def test_scores_go_with_the_rows_that_have_an_item():
    ranker = EmbeddingRanker(IDS, VECTORS, at_zero, gamma=3.0, weights_per_row=True)
    scores = torch.tensor([[9.0, 9.0, 0.0], [0.0, 0.0, 1.0]])
    ranking = ranker.rank(["nothing written", "-> x"], ["c", "c"], weights_B_N=scores)
    assert ranking.ranks_B.tolist() == [3, 2]
    ranking = ranker.rank(["nothing", "-> x"], ["c", "c"], weights_B_N=scores, candidates_B=[["c"], ["b", "c"]])
    assert ranking.ranks_B.tolist() == [1, 1]
    assert ranking.top_scores_B_K[1] == pytest.approx([-1 / 8, -1 / 4])


def test_errors_about_scores():
    with_rows = EmbeddingRanker(IDS, VECTORS, at_zero, gamma=1.0, weights_per_row=True)
    without = EmbeddingRanker(IDS, VECTORS, at_zero)
    with pytest.raises(ValueError, match="weights_per_row is True and there is no weights_B_N"):
        with_rows.rank(["-> x"], ["a"])
    with pytest.raises(ValueError, match="weights_per_row is False and there is a weights_B_N"):
        without.rank(["-> x"], ["a"], weights_B_N=np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"3 columns, found shape \(1, 2\)"):
        with_rows.rank(["-> x"], ["a"], weights_B_N=np.ones((1, 2)))
    with pytest.raises(ValueError, match="weights hold NaN or infinity"):
        with_rows.rank(["-> x"], ["a"], weights_B_N=np.array([[1.0, -np.inf, 2.0]]))


def test_gamma_is_chosen_by_ndcg_at_10():
    # NDCG@10: 1 + 0 → 1/2; (1/2 + 1/2) / 2 = 1/2; (1 + 1/2) / 2 = 3/4; 0.
    ranks = {0.0: [1, 11], 0.5: [3, 3], 1.0: [1, 3], 2.0: [11, 99]}
    choice = choose_gamma(lambda gamma: np.array(ranks[gamma]), list(ranks))
    assert (choice.gamma, choice.value) == (1.0, 0.75)
    assert choice.trials == [(0.0, 0.5), (0.5, 0.5), (1.0, 0.75), (2.0, 0.0)]
    # Of equal ones the first: a grid that starts with 0 does without popularity unless it helps.
    assert choose_gamma(lambda gamma: np.array(ranks[gamma]), [0.0, 0.5]).gamma == 0.0
    with pytest.raises(ValueError, match="empty grid"):
        choose_gamma(lambda gamma: np.array([1]), [])
    with pytest.raises(ValueError, match="no validation targets"):
        choose_gamma(lambda gamma: np.array([]), [0.0])


def test_gamma_chosen_with_a_ranker():
    # c is the target throughout, and third by distance. D̃ of c is 2^-γ and passes b's 1/4 at γ = 2, where they tie.
    ranker = EmbeddingRanker(IDS, VECTORS, at_zero, popularity_N=np.array([0, 0, 8]))
    choice = choose_gamma(lambda gamma: ranker.with_gamma(gamma).rank(["-> x"], ["c"], top_k=0).ranks_B, [0, 2, 3, 9])
    assert choice.trials == [(0.0, 0.5), (2.0, 0.5), (3.0, pytest.approx(1 / np.log2(3))), (9.0, choice.value)]
    assert choice.gamma == 3.0


@given(
    excluded=st.none() | st.sets(st.sampled_from("abcdx")),
    candidates=st.none() | st.sets(st.sampled_from("abcdx")),
    target=st.sampled_from("abcd"),
)
def test_lists_say_what_masks_say(excluded, candidates, target):
    index = {item: i for i, item in enumerate("abcd")}
    allowed_N, last_rank = allowed_items(index, target, excluded, candidates)
    one = competing_items(index, target, excluded, candidates)
    assert one.last_rank == last_rank
    assert one.has_target == allowed_N[index[target]]
    if candidates is None:
        assert one.removed == np.flatnonzero(~allowed_N).tolist()
    else:
        assert one.kept == np.flatnonzero(allowed_N).tolist()
