"""What is changed, and nothing else."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.reasoning.interventions import change_history, change_taste, derangement
from anyo_rl.reasoning.mentions import Names

ITEMS = pl.DataFrame(
    [
        {"item_id": f"{kind[0]}{style[0]}", "title": f"the {kind} of {style}", "kind": kind, "style": style}
        for kind in ("tea", "mug", "lamp")
        for style in ("oak", "blue")
    ]
)
NAMES = Names.of(ITEMS)


def draw(seed=0):
    return np.random.default_rng(seed)


@given(st.lists(st.sampled_from("abcd"), max_size=20), st.integers(0, 9))
def test_partners_are_other_users_each_once(users, seed):
    found = derangement(users, draw(seed))
    assert len(found) == len(users)
    there = [other for other in found if other is not None]
    assert len(set(there)) == len(there)
    assert all(other is None or users[other] != users[place] for place, other in enumerate(found))
    most = max((users.count(user) for user in users), default=0)
    if 2 * most <= len(users):
        assert len(there) == len(users)
    assert found == derangement(users, draw(seed))


def test_a_user_alone_has_no_partner():
    assert derangement(["a", "a"], draw()) == [None, None]
    assert derangement([], draw()) == []


def test_what_is_named_is_dropped_or_swapped_and_nothing_else():
    history = ["to", "mo", "tb", "mb", "mo"]
    for seed in range(8):
        found = change_history(history, ["next: tea"], NAMES, draw(seed))
        assert found.name.text == "tea"
        assert found.dropped == ["mo", "mb", "mo"]
        assert len(found.kept) == 3
        assert found.kept.count("to") == found.kept.count("tb") == 1
        assert found.other.text == "lamp"  # which the history does not have
        assert found.swapped == ["lo", "mo", "lb", "mb", "mo"]


def test_titles_come_before_attributes():
    found = change_history(["to", "mb"], ["tea, mug: the tea of oak"], NAMES, draw())
    assert (found.name.text, found.name.column) == ("the tea of oak", "title")
    assert found.dropped == ["mb"]
    assert found.swapped[0] in found.other.items
    assert found.swapped[1] == "mb"


def test_where_nothing_can_be_changed():
    assert change_history(["to"], ["next: lamp"], NAMES, draw()) is None  # nothing of the history is named
    found = change_history(["to", "tb"], ["tea, mug, lamp"], NAMES, draw())
    assert (found.dropped, found.kept) == (None, None)
    assert (found.other, found.swapped) == (None, None)


def test_another_taste_is_put_in_throughout():
    for seed in range(8):
        found = change_taste(["recent: tea, mug", "next: Tea"], "to", NAMES, draw(seed))
        assert (found.name.text, found.other.text) == ("tea", "lamp")
        assert found.steps == ["recent: lamp, mug", "next: lamp"]
    assert change_taste(["next: tea"], "mo", NAMES, draw()) is None
    assert change_taste(["tea mug lamp"], "to", NAMES, draw()) is None
    with pytest.raises(KeyError):
        NAMES.likest("nobody", ["to"])
