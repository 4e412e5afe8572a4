import json
import math
from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.training.star import REASONS, Beyond, diversity, keep_paths, reasonings
from tests.tables import table_of


def path(example, index, steps, rank, *, target="i1", title="Toy Story", marker=True):
    text = "\n".join(steps)
    return {
        "example_id": example,
        "sample_index": index,
        "policy": "p",
        "completion": f"{text} ->" if marker else text,
        "steps": steps,
        "target_id": target,
        "target_title": title,
        "rank": rank,
        "rewards": json.dumps({"gain": 1 / math.log2(1 + rank)}),
    }


def keys(frame):
    return list(frame.select("example_id", "sample_index").iter_rows())


def test_what_is_kept_by_hand():
    table = table_of(
        [
            path("a", 0, ["likes tea"], 3),  # .5: just good enough, and third best of its example
            path("a", 1, ["likes cups"], 2),  # .63
            path("a", 2, ["likes cups"], 2),  # the same again
            path("a", 3, ["likes mugs"], 1),
            path("b", 0, ["likes tea"], 4),  # .43
            path("b", 1, ["likes it"], 1, marker=False),  # never came to an answer
            path("b", 2, [], 1),  # no reasoning
            path("c", 0, ["wants TOY  Story"], 1, target="i2"),  # not a leak: no hint was shown
        ]
    )
    kept = keep_paths(table, least_gain=0.5, most_per_example=2)
    assert keys(kept.paths) == [("a", 1), ("a", 3), ("c", 0)]
    assert kept.paths.schema == table.schema
    assert kept.reached == ["a", "c"]
    assert kept.counts == {
        "sampled": 8,
        "unfinished": 2,
        "leak": 0,
        "below": 1,
        "evidence": 0,
        "alone": 0,
        "duplicate": 1,
        "over_example": 1,
        "over_item": 0,
        "kept": 3,
        "examples": 3,
        "examples_kept": 2,
    }
    assert reasonings(kept.paths) == {"a": [("likes cups",), ("likes mugs",)], "c": [("wants TOY  Story",)]}
    assert diversity(table) == pytest.approx((3 / 4 + 3 / 3 + 1) / 3)


def test_what_is_kept_is_beyond_evidence():
    table = table_of([path("a", 0, ["tea"], 1), path("a", 1, ["cups"], 2), path("b", 0, ["mugs"], 1)])
    gains = {"a": 0.5, "b": 1.0}  # the evidence ranks the first target third, and the second first
    for least, expected, n_out in ((0.1, [("a", 0), ("a", 1)], 1), (0.2, [("a", 0)], 2), (0.0, keys(table), 0)):
        kept = keep_paths(table, least_gain=Beyond(0.5, least, gains), most_per_example=2)
        assert (keys(kept.paths), kept.counts["evidence"]) == (expected, n_out)


def test_a_hinted_path_that_names_the_target_is_a_leak():
    table = table_of([path("a", 0, ["wants TOY  Story"], 1), path("a", 1, ["wants a toy", "a story"], 1)])
    assert keys(keep_paths(table, least_gain=0.5, most_per_example=2, hinted=True).paths) == [("a", 1)]
    named = keep_paths(table[:1], least_gain=0.5, most_per_example=2, hinted=True)
    assert (named.counts["leak"], named.reached, len(named.paths)) == (1, [], 0)


def test_a_popular_target_gives_every_example_a_path_before_any_a_second():
    table = table_of([path(e, i, [f"{e} {i}"], 1 + i) for e in "abcd" for i in range(2)])
    for most, expected in ((0, 8), (8, 8), (6, 6), (4, 4), (3, 3)):
        kept = keep_paths(table, least_gain=0.1, most_per_example=2, most_per_item=most)
        assert len(kept.paths) == expected
        assert kept.counts["over_item"] == 8 - expected
        assert sum(i == 0 for _, i in keys(kept.paths)) == min(4, expected)
        assert kept.reached == list("abcd")  # they are not hinted for it
    chosen = {
        tuple(keys(keep_paths(table, least_gain=0, most_per_example=1, most_per_item=1, seed=s).paths))
        for s in range(20)
    }
    assert len(chosen) > 1  # the seed draws whose turn it is, not the order of the table


def test_nothing_sampled_keeps_nothing():
    kept = keep_paths(table_of([]), least_gain=0.5, most_per_example=2)
    assert (len(kept.paths), kept.reached, kept.counts["kept"]) == (0, [], 0)
    assert diversity(table_of([])) is None
    assert reasonings(kept.paths) == {}


@pytest.mark.parametrize(
    "wrong", [{"least_gain": 1.1}, {"most_per_example": 0}, {"most_per_item": -1}, {"least_agreement": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="expected 0 to 1, at least 1, at least 0, and at least 1"):
        keep_paths(table_of([]), **({"least_gain": 0.5, "most_per_example": 1} | wrong))


def test_a_lucky_reasoning_is_alone():
    table = table_of(
        [
            path("a", 0, ["likes tea"], 1),  # the best, but no other path says so
            path("a", 1, ["likes cups"], 2),
            path("a", 2, ["likes cups"], 3),
            path("b", 0, ["likes tea"], 1),  # agrees with another example's alone
            path("b", 1, ["likes mugs"], 2),
            path("b", 2, ["likes mugs"], 9),  # not good enough to agree with
        ]
    )
    kept = keep_paths(table, least_gain=0.5, most_per_example=2, least_agreement=2)
    assert keys(kept.paths) == [("a", 1)]
    assert {name: count for name, count in kept.counts.items() if count} == {
        "sampled": 6,
        "below": 1,
        "alone": 3,
        "duplicate": 1,
        "kept": 1,
        "examples": 2,
        "examples_kept": 1,
    }
    assert kept.reached == ["a"]


def slow_keep(rows, least_gain, most_per_example, least_agreement):
    """The rule as it is told, a path at a time."""
    found = []
    for example in sorted({row["example_id"] for row in rows}):
        seen = []
        own = [row for row in rows if row["example_id"] == example and row["steps"] and "->" in row["completion"]]
        good = [row for row in own if 1 / math.log2(1 + row["rank"]) >= least_gain]
        for row in sorted(good, key=lambda row: (row["rank"], row["sample_index"])):
            agreeing = sum(other["steps"] == row["steps"] for other in good)
            if agreeing >= least_agreement and row["steps"] not in seen:
                seen.append(row["steps"])
                found += [row] if len(seen) <= most_per_example else []
    return sorted((row["example_id"], row["sample_index"]) for row in found)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 6), st.integers(0, 3), st.booleans(), st.sampled_from("xyz")),
        max_size=25,
    ),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_against_a_slow_loop(drawn, least_gain, most_per_example, most_per_item, least_agreement):
    rows = [
        path(example, index, [f"step {text}"] if text else [], rank, target=target, marker=marker)
        for index, (example, rank, text, marker, target) in enumerate(drawn)
    ]
    settings = {
        "least_gain": least_gain,
        "most_per_example": most_per_example,
        "least_agreement": least_agreement,
    }
    plain = keep_paths(table_of(rows), **settings)
    assert keys(plain.paths) == slow_keep(rows, **settings)
    capped = keep_paths(table_of(rows), **settings, most_per_item=most_per_item)
    assert set(keys(capped.paths)) <= set(keys(plain.paths))
    if most_per_item:
        by_target = Counter(plain.paths["target_id"])
        assert Counter(capped.paths["target_id"]) == {t: min(n, most_per_item) for t, n in by_target.items()}
    assert sum(capped.counts[name] for name in ("kept", *REASONS)) == len(rows)
    shuffled = keep_paths(table_of(rows[::-1]), **settings, most_per_item=most_per_item)
    assert shuffled.paths.equals(capped.paths)
    assert set(capped.reached) >= set(pl.Series(capped.paths["example_id"]).unique())


def test_a_leak_is_told_as_in_rationales():
    long = "Sharpie Permanent Markers, Fine Point, Black, 12-Count"
    table = table_of(
        [
            path("a", 0, ["wants Sharpie permanent markers, fine point"], 1, title=long),  # a long part of it
            {
                **path("b", 0, ["saw Toy Story 2 before"], 1),
                "history": ["Toy Story 2"],
            },  # another one
            {**path("c", 0, ["saw Toy Story 2 before"], 1), "history": ["Alien"]},
        ]
    )
    kept = keep_paths(table, least_gain=0.5, most_per_example=2, hinted=True)
    assert keys(kept.paths) == [("b", 0)]
    assert kept.counts["leak"] == 2
