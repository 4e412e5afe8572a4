import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anyo_rl.evidence.candidates import NONE, over_catalog, recall, top_list, union
from anyo_rl.metrics.ranking import target_ranks, top_items

SCORES = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0])  # few of them, so that there are ties


@given(arrays(np.float64, (3, 7), elements=SCORES), st.integers(1, 9))
def test_top_lists_are_those_of_the_metrics_room(scores_R_N, k):
    slow = [items + [NONE] * (min(k, 7) - len(items)) for items in top_items(scores_R_N, k)[0]]
    assert top_list(scores_R_N, k).tolist() == slow


def slow_union(lists, k):
    found = []
    for turn in zip(*lists, strict=True):
        found += [item for item in turn if item != NONE and item not in found]
        # an item twice in one turn was taken for the earlier list
    found = list(dict.fromkeys(found))[:k]
    return found + [NONE] * (k - len(found))


@given(st.lists(st.permutations(range(5)).map(lambda p: p[:3]), min_size=1, max_size=3), st.integers(1, 12))
def test_lists_take_turns_in_a_union(lists, k):
    assert union([np.array([one]) for one in lists], k)[0].tolist() == slow_union(lists, k)


def test_a_union_of_short_lists_is_short():
    assert union([np.array([[3, NONE]]), np.array([[NONE, NONE]])], 3).tolist() == [[3, NONE, NONE]]


def test_recall_by_hand():
    candidates = np.array([[4, 2, 0], [1, 3, NONE], [5, 0, 2], [2, NONE, NONE]])
    targets = np.array([2, 1, 4, 0])
    assert [recall(candidates, targets, k) for k in (1, 2, 3)] == [0.25, 0.5, 0.5]
    assert np.isnan(recall(candidates[:0], targets[:0], 1))


def test_candidates_come_first_and_the_others_as_they_were():
    first = np.array([[0.1, 0.9, 0.5, 0.7, 0.3]])
    scores = over_catalog(first, np.array([[2, 4, NONE]]), np.array([[-3.0, 8.0, 99.0]]))
    assert np.argsort(-scores[0]).tolist() == [4, 2, 1, 3, 0]
    # however close the scores of candidates are, they are apart; equal ones are in the order in which they were named
    close = over_catalog(first, np.array([[0, 2, 4]]), np.array([[1.0, 1.0, 1.0 + 1e-15]]))
    assert np.argsort(-close[0]).tolist() == [4, 0, 2, 1, 3]
    assert target_ranks(close, [2]) == [3]


@pytest.mark.parametrize("k", [1, 5])
def test_no_rows_give_no_lists(k):
    assert top_list(np.empty((0, 5)), k).shape == (0, k)
