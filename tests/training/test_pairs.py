import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.training.pairs import PAIRS_SCHEMA, preference_pairs
from tests.tables import table_of

MARKER = 9
NO_REASON = dict.fromkeys(("one_path", "no_marker", "small_gap", "same_completion", "target_cap"), 0)


def group(example: str, *paths: tuple[list[int], int | None], target: str = "i1", policy: str = "sft") -> list[dict]:
    """Paths of one example as rows of the paths table: token ids and the target's rank."""
    return [
        {
            "example_id": example,
            "sample_index": index,
            "policy": policy,
            "prompt": f"prompt of {example}",
            "completion": " ".join(map(str, ids)),
            "token_ids": ids,
            "target_id": target,
            "rank": rank,
            "ranker": "likelihood",
        }
        for index, (ids, rank) in enumerate(paths)
    ]


def pairs_of(*groups: list[dict], least_gap: float = 0.1, **settings):
    return preference_pairs(
        table_of([row for rows in groups for row in rows]), MARKER, least_gap=least_gap, **settings
    )


def test_best_against_worst_by_hand():
    found = pairs_of(group("a", ([1, 9], 3), ([2, 9], 1), ([3, 9], 7)))
    assert found.frame.to_dicts() == [
        {
            "example_id": "a",
            "policy": "sft",
            "prompt": "prompt of a",
            "target_id": "i1",
            "chosen": "2 9",
            "chosen_ids": [2, 9],
            "chosen_gain": 1.0,
            "rejected": "3 9",
            "rejected_ids": [3, 9],
            "rejected_gain": pytest.approx(1 / 3),  # 1 / log2(8)
        }
    ]
    assert found.frame.schema == PAIRS_SCHEMA
    assert found.left_out == NO_REASON


@pytest.mark.parametrize(
    ("settings", "best", "worst"),
    [
        ({"gain": "ndcg"}, 1 / math.log2(3), 0.25),
        ({"gain": "mrr"}, 0.5, 1 / 15),
        ({"gain": "log", "n_items": 100}, 1 - math.log(2) / math.log(100), 1 - math.log(15) / math.log(100)),
    ],
)
def test_gains_by_hand(settings, best, worst):
    (pair,) = pairs_of(group("a", ([1, 9], 2), ([2, 9], 15)), **settings).frame.to_dicts()
    assert (pair["chosen_gain"], pair["rejected_gain"]) == pytest.approx((best, worst))


def test_the_gap_counts_from_least_gap_on():
    paths = group("a", ([1, 9], 1), ([2, 9], 3))  # gains 1 and 1/2
    assert len(pairs_of(paths, least_gap=0.5).frame) == 1
    found = pairs_of(paths, least_gap=0.501)
    assert found.frame.is_empty()
    assert found.left_out == {**NO_REASON, "small_gap": 1}


def test_of_equal_gains_the_first_paths_are_taken():
    paths = group("a", ([1, 9], 7), ([2, 9], 1), ([3, 9], 1), ([4, 9], 7))
    for rows in (paths, paths[::-1]):
        (pair,) = pairs_of(rows).frame.to_dicts()
        assert (pair["chosen_ids"], pair["rejected_ids"]) == ([2, 9], [1, 9])


def test_groups_without_a_preference_are_left_out_and_counted():
    found = pairs_of(
        group("alone", ([1, 9], 1)),
        group("equal", ([1, 9], 4), ([2, 9], 4)),
        group("twice", ([1, 9], 1), ([1, 9], 7)),  # one text, two ranks: noise
        group("endless", ([1], None), ([2], None)),
    )
    assert found.frame.is_empty()
    assert found.left_out == {**NO_REASON, "one_path": 1, "small_gap": 1, "same_completion": 1, "no_marker": 1}


def test_a_path_without_marker_is_rejected_and_never_chosen():
    # Its rank, as if it had been made to answer where it ended, does not count.
    (pair,) = pairs_of(group("a", ([1], 1), ([2, 9], 3), ([3, 9], 7))).frame.to_dicts()
    assert (pair["chosen_ids"], pair["chosen_gain"]) == ([2, 9], 0.5)
    assert (pair["rejected_ids"], pair["rejected_gain"]) == ([1], 0.0)


def test_what_comes_after_the_marker_is_not_part_of_a_pair():
    (pair,) = pairs_of(group("a", ([1, 9, 5, 9], 1), ([9, 4], 7))).frame.to_dicts()
    assert (pair["chosen_ids"], pair["rejected_ids"]) == ([1, 9], [9])


def test_each_policy_has_pairs_of_its_own():
    found = pairs_of(
        group("a", ([1, 9], 1), ([2, 9], 7)),
        group("a", ([3, 9], 2), ([4, 9], 9), policy="grpo"),
    )
    assert found.frame.select("policy", "chosen_ids").rows() == [("grpo", [3, 9]), ("sft", [1, 9])]


def test_a_target_has_at_most_its_cap_of_pairs_those_with_the_widest_gaps():
    found = pairs_of(
        group("a", ([1, 9], 1), ([2, 9], 3)),
        group("b", ([1, 9], 1), ([2, 9], 7)),
        group("c", ([1, 9], 1), ([2, 9], 3)),
        group("d", ([1, 9], 2), ([2, 9], 7), target="i2"),
        max_per_target=2,
    )
    assert found.frame["example_id"].to_list() == ["a", "b", "d"]  # of a and c, which are alike, the first
    assert found.left_out == {**NO_REASON, "target_cap": 1}


def test_a_table_without_paths_has_no_pairs():
    found = pairs_of()
    assert (len(found.frame), found.left_out) == (0, NO_REASON)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"least_gap": 0.0}, "least_gap is 0.0, expected above 0"),
        ({"least_gap": math.nan}, "least_gap is nan"),
        ({"max_per_target": 0}, "max_per_target is 0, expected 1 or more"),
        ({"gain": "hit"}, "gain is 'hit', expected one of ndcg, mrr, log"),
        ({"gain": "log"}, "the gain log needs n_items"),
    ],
)
def test_settings_out_of_range_are_refused(settings, expected):
    with pytest.raises(ValueError, match=expected):
        pairs_of(group("a", ([1, 9], 1), ([2, 9], 7)), **settings)


def test_paths_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="1 of 2 paths have no rank"):
        pairs_of(group("a", ([1, 9], 1), ([2, 9], None)))
    with pytest.raises(ValueError, match="2 of 2 paths share example_id, sample_index, policy"):
        pairs_of(group("a", ([1, 9], 1)), group("a", ([2, 9], 7)))
    written = table_of([{**row, "ranker": "match"} for row in group("a", ([1, 9], 1), ([2, 9], 7))])
    with pytest.raises(ValueError, match="ranked by match, expected likelihood"):
        preference_pairs(written, MARKER, least_gap=0.1)


one_path = st.tuples(
    st.lists(st.integers(0, 9), min_size=1, max_size=3), st.integers(1, 40)
)  # a marker here and there, and texts that come twice


@given(
    groups=st.lists(st.tuples(st.lists(one_path, min_size=1, max_size=5), st.integers(0, 2)), max_size=6),
    least_gap=st.floats(0.001, 1.0),
    cap=st.one_of(st.none(), st.integers(1, 2)),
    data=st.data(),
)
def test_pairs_of_any_table_are_what_they_say(groups, least_gap, cap, data):
    rows = [row for i, (paths, target) in enumerate(groups) for row in group(f"e{i}", *paths, target=f"i{target}")]
    found = pairs_of(rows, least_gap=least_gap, max_per_target=cap)
    frame = found.frame
    assert len(frame) + sum(found.left_out.values()) == len(groups)
    for pair in frame.iter_rows(named=True):
        assert MARKER in pair["chosen_ids"]
        assert pair["chosen_ids"] != pair["rejected_ids"]
        assert pair["chosen_gain"] - pair["rejected_gain"] >= least_gap
        mine = [row for row in rows if row["example_id"] == pair["example_id"]]
        gains = [1 / math.log2(1 + row["rank"]) if MARKER in row["token_ids"] else 0.0 for row in mine]
        assert pair["chosen_gain"] == pytest.approx(max(gains))
        others = [gain for gain, row in zip(gains, mine, strict=True) if row["completion"] != pair["chosen"]]
        assert pair["rejected_gain"] <= min(others) + 1e-12
    if cap is not None and not frame.is_empty():
        assert frame["target_id"].value_counts()["count"].max() <= cap
    shuffled = data.draw(st.permutations(rows))
    assert pairs_of(shuffled, least_gap=least_gap, max_per_target=cap).frame.equals(frame)
