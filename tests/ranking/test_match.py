import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.ranking.match import MatchRanker
from anyo_rl.ranking.protocol import Ranking, competing_items

IDS = ["a", "b", "c", "d"]


def catalog_of(tokens, titles):
    return build_catalog(pl.DataFrame({"item_id": IDS[: len(titles)], "title": titles}), tokens)


@pytest.fixture
def ranker(small_tokens):
    return MatchRanker(catalog_of(small_tokens, ["Tea", "Mug", "Mug", "Lamp"]))


def test_written_item_is_first_and_everything_else_is_last(ranker):
    ranking = ranker.rank(["wants tea\n-> Tea", "wants tea -> Mug"], ["a", "a"])
    assert ranking.ranks_B.tolist() == [1, 4]
    assert ranking.ranks_B.dtype == np.int64
    assert ranking.top_ids_B_K == [["a"], ["b"]]
    assert ranking.top_scores_B_K == [[1.0], [1.0]]
    assert ranking.log_probs_B is None


@pytest.mark.parametrize("text", ["no marker at all", "stops here ->", "-> Spoon", ""])
def test_nothing_written_is_a_miss_not_an_error(ranker, text):
    ranking = ranker.rank([text], ["b"])
    assert ranking.ranks_B.tolist() == [4]
    assert ranking.top_ids_B_K == [[]]


def test_items_with_one_title_are_two_items(ranker):
    assert ranker.rank(["-> Mug (2)"], ["b"]).ranks_B.tolist() == [4]
    assert ranker.rank(["-> Mug (2)"], ["c"]).ranks_B.tolist() == [1]


def test_excluded_items_leave_the_ranking_but_the_target_never_does(ranker):
    ranking = ranker.rank(
        ["-> Mug", "-> Tea", "-> Tea"], ["a", "a", "b"], excluded_B=[["b", "b", "not in the catalog"], ["a"], ["a"]]
    )
    # Written but masked: a, c, d tie. Target in its own mask: kept. Written a is masked: b, c, d tie.
    assert ranking.ranks_B.tolist() == [3, 1, 3]
    assert ranking.top_ids_B_K == [[], ["a"], []]


def test_candidates(ranker):
    ranking = ranker.rank(
        ["-> Tea", "-> Tea", "-> Tea"], ["b", "c", "a"], candidates_B=[["a", "b"], ["a", "b"], ["b", "c"]]
    )
    # Retrieved and not written: ties with the 2 candidates. Not retrieved: last of 4, even when it was written.
    assert ranking.ranks_B.tolist() == [2, 4, 4]
    assert ranking.top_ids_B_K == [["a"], ["a"], []]


def test_no_contexts_and_catalog_of_one(ranker, small_tokens):
    assert ranker.rank([], []).ranks_B.tolist() == []
    alone = MatchRanker(catalog_of(small_tokens, ["Tea"]))
    assert alone.rank(["-> Tea", "nothing"], ["a", "a"]).ranks_B.tolist() == [1, 1]


def test_white_space_in_what_was_written_is_folded(ranker):
    assert ranker.written_id("->  Mug \t (2) ") == "c"
    assert ranker.written_id("-> mug") is None


def test_top_k_of_zero(ranker):
    ranking = ranker.rank(["-> Tea"], ["a"], top_k=0)
    assert ranking.top_ids_B_K == [[]]
    assert ranking.top_scores_B_K == [[]]


def test_clear_errors(ranker):
    with pytest.raises(ValueError, match=r"target 'z' is not one of the 4 items"):
        ranker.rank(["-> Tea"], ["z"])
    with pytest.raises(ValueError, match=r"2 contexts but 1 rows in target_ids_B"):
        ranker.rank(["-> Tea", "-> Mug"], ["a"])
    with pytest.raises(ValueError, match=r"found \{'top_scores_B_K': 0\}"):
        Ranking(np.array([1]), [["a"]], [])
    with pytest.raises(ValueError, match=r"1-based, found 0"):
        Ranking(np.array([0]), [["a"]], [[1.0]])


def test_what_competes_and_the_last_rank():
    index = {item: position for position, item in enumerate(IDS)}
    found = competing_items(index, "a", excluded=["b"], candidates=["a", "b", "c", "unknown"])
    assert (found.kept, found.last_rank, found.has_target) == ((0, 2), 2, True)
    assert found.mask(4).tolist() == [True, False, True, False]
    found = competing_items(index, "a", excluded=["b"], candidates=[])
    assert (found.kept, found.last_rank, found.has_target) == ((), 3, False)
    assert not found.mask(4).any()
    found = competing_items(index, "a", excluded=["b", "a", "unknown"])
    assert (found.removed, found.kept, found.last_rank, found.has_target) == ((1,), None, 3, True)


@given(
    excluded=st.none() | st.sets(st.sampled_from("abcdx")),
    candidates=st.none() | st.sets(st.sampled_from("abcdx")),
    target=st.sampled_from("abcd"),
)
def test_lists_say_what_a_slow_loop_says(excluded, candidates, target):
    index = {item: i for i, item in enumerate("abcd")}
    found = competing_items(index, target, excluded, candidates)
    left = [item for item in "abcd" if item == target or item not in (excluded or ())]
    competing = [item for item in left if candidates is None or item in candidates]
    assert [found.has(i) for i in range(4)] == [item in competing for item in "abcd"] == found.mask(4).tolist()
    assert found.has_target == (target in competing)
    assert found.last_rank == len(competing if target in competing else left)
