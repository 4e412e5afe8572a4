"""What a reasoning names, word by word."""

import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.reasoning.mentions import Names, grounded_share

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d", "e"],
        "title": ["Alien", "Alien 3", "Up (2009)", "What? [.*]", "42"],
        "genres": [["Horror", "Sci-Fi"], ["Horror"], ["Family"], [], ["Horror", "1990"]],
        "brand": ["fox", "fox", None, "a description that is much too long for a name", "Up"],
    }
)
NAMES = Names.of(ITEMS)


def said(*steps):
    return [(name.text, sorted(name.items)) for name in NAMES.said(steps)]


def test_names_are_found_by_hand():
    assert said("recent: alien 3, ALIEN; then Up (2009)") == [
        ("Alien 3", ["b"]),
        ("Alien", ["a"]),
        ("Up (2009)", ["c"]),
    ]
    assert said("likes horror and sci-fi", "horror, by Fox") == [
        ("Horror", ["a", "b", "e"]),
        ("Sci-Fi", ["a"]),
        ("fox", ["a", "b"]),
    ]
    assert said("aliens, foxes, horrors", "42 in 1990", "a description") == []  # whole words, and not a number alone
    assert said() == []


def test_patterns_in_titles_are_text():
    assert said("anything at all, what then") == [("What? [.*]", ["d"])]  # of its signs nothing but the word counts


def test_a_name_is_replaced_as_a_whole():
    horror, family = (
        next(one for one in NAMES.by_words.values() if one.text == text) for text in ("Horror", "Family")
    )
    assert NAMES.replaced(["Horror: horror, horrors", "x"], horror, family) == ["Family: Family, horrors", "x"]
    alien = NAMES.by_words["alien",]
    assert NAMES.replaced(["alien 3 and alien"], alien, family) == ["alien 3 and Family"]


def test_the_likest_item_shares_most_values():
    assert NAMES.likest("a", ["c", "e", "b"]) == "b"
    assert NAMES.likest("d", ["e", "c"]) == "c"  # nothing is shared: the first


def test_the_grounded_share_by_hand():
    assert grounded_share(NAMES.said(["alien, horror, family, up (2009)"]), ["b", "x"]) == pytest.approx(1 / 4)
    assert grounded_share(NAMES.said(["alien"]), []) == 0.0
    assert math.isnan(grounded_share([], ["a"]))


@given(st.text(st.sampled_from("alien 3UpHor-,\nüİ"), max_size=20))
def test_no_text_breaks_it(text):
    for found in NAMES.places(text):
        assert 0 <= found.start < found.end <= len(text)
