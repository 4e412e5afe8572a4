"""Ranks by written orders, by hand: what is mended, what is none, and what logs are told."""

import pytest

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.ranking.orders import OrderRanker, told
from anyo_rl.reasoning.kinds.candidates import Listed, answers_of


@pytest.fixture
def ranker(small_tokens):
    return OrderRanker(build_catalog(answers_of(False, Listed(n_candidates=4, window=4, stride=2)), small_tokens))


TEXTS = {
    "likes tea -> [2] > [4] > [1] > [3]": (1, ["2", "4", "1", "3"]),
    "-> [4] > [4] > [9]": (3, ["4", "1", "2", "3"]),  # 1, 2 and 3 follow as they came in
    "-> none of them": (2, []),
    "likes [2] -> ": (2, []),  # a number in the reasoning is no answer
    "[1] > [2]": (2, []),
    "-> [1]\n[2] > [3]": (2, ["1", "2", "3", "4"]),  # the answer is one line
    "-> [3] -> [2]": (3, ["3", "2", "1", "4"]),
}


def test_ranks_are_places_in_the_order_as_it_was_mended(ranker):
    found = ranker.rank(list(TEXTS), ["2"] * len(TEXTS))
    # "[3] -> [2]": the first marker ends the reasoning, and what follows is read as numbers.
    expected = [rank for rank, _ in TEXTS.values()]
    expected[-1] = 2
    assert found.ranks_B.tolist() == expected
    assert found.top_ids_B_K == [top for _, top in TEXTS.values()]
    assert found.log_probs_B is None


def test_lists_may_be_shorter_than_the_longest(ranker):
    found = ranker.rank(["-> [3] > [1] > [2]", "-> [4] > [2]"], ["1", "1"], excluded_B=[["4"], ["3", "4"]])
    assert found.ranks_B.tolist() == [2, 2]  # of the second, 4 is unknown
    assert found.top_ids_B_K == [["3", "1", "2"], ["2", "1"]]
    assert [order.unknown for order in found.orders_B] == [0, 1]
    with pytest.raises(ValueError, match="are left out"):
        ranker.rank(["-> [1]"], ["1"], excluded_B=[["2"]])
    with pytest.raises(ValueError, match="is the target"):
        ranker.rank(["-> [1]"], ["4"], excluded_B=[["4"]])
    with pytest.raises(ValueError, match="leave candidates_B out"):
        ranker.rank(["-> [1]"], ["1"], candidates_B=[["1"]])


def test_what_was_mended_is_told(ranker):
    found = ranker.rank(["-> [1] > [2] > [3] > [4]", "-> [3] > [3] > [7]", "-> ?"], ["1"] * 3)
    shares = found.told()
    assert shares["as_it_came"] == pytest.approx(2 / 3)
    assert shares["whole"] == shares["unread"] == pytest.approx(1 / 3)
    assert shares["missing"] == pytest.approx((0 + 3 + 4) / 3)
    assert shares["repeated"] == shares["unknown"] == pytest.approx(1 / 3)
    assert told([]) == {}
