import polars as pl
import pytest

from anyo_rl.data.attributes import attribute_steps, item_attributes
from anyo_rl.data.schema import DataError

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "title": ["Green Tea", "Oak Mug", "", "The 3"],
        "genres": [["Drama", " Film  Noir ", "Drama"], [], None, ["", "Drama"]],
        "brand": ["Lipton", None, " ", "Drama"],
        "year": ["1994", "19", None, "2001"],
    }
)


def test_columns_by_hand():
    assert item_attributes(ITEMS, ["genres"]) == {"a": ("Drama", "Film Noir"), "b": (), "c": (), "d": ("Drama",)}
    assert item_attributes(ITEMS, ["brand", "genres"])["a"] == ("Lipton", "Drama", "Film Noir")
    assert item_attributes(ITEMS, ["brand", "genres"])["d"] == ("Drama",)  # one value once
    assert item_attributes(ITEMS, ["decade"]) == {"a": ("1990s",), "b": (), "c": (), "d": ("2000s",)}
    assert item_attributes(ITEMS, []) == {"a": (), "b": (), "c": (), "d": ()}


def test_keywords_are_rare_but_shared():
    titles = [f"Red Pen {i}" for i in range(5)] + ["Red and Blue Pen"] * 5 + ["Red", "Unique Pen pen", "of 12 ab", ""]
    items = pl.DataFrame({"item_id": [str(i) for i in range(len(titles))], "title": titles})
    found = item_attributes(items, ["keywords"])
    # red is in 11 titles, pen in 11, blue in 5, unique in 1; "and" says nothing; equal counts go by the alphabet.
    assert found["0"] == ("pen", "red")
    assert found["5"] == ("blue", "pen")
    assert found["10"] == ("red",)
    assert found["11"] == ("pen",)
    assert found["12"] == found["13"] == ()


def test_a_column_that_is_not_there_is_refused():
    with pytest.raises(DataError, match="'colour' needs item column 'colour'; the item table has"):
        item_attributes(ITEMS, ["colour"])
    with pytest.raises(DataError, match="'decade' needs item column 'year'"):
        item_attributes(ITEMS.drop("year"), ["decade"])


def test_steps_by_hand():
    attributes = {"a": ("tea", "mug"), "b": ("mug",), "c": ("oak",), "d": (), "e": tuple("pqrs")}
    assert attribute_steps(attributes, ["a", "b", "c"], "c") == ("recent: mug, oak, tea", "wants: oak")
    assert attribute_steps(attributes, ["a", "b", "c"], "c", recent=1) == ("recent: oak", "wants: oak")
    assert attribute_steps(attributes, [*"aaa", *"ccccc"], "e") == ("recent: oak", "wants: p, q, r")  # the last five
    assert attribute_steps(attributes, ["d", "d"], "d") == ("recent: nothing", "wants: anything")
    assert attribute_steps(attributes, [], "a", most=1) == ("recent: nothing", "wants: tea")
    assert attribute_steps(attributes, ["a", "e"], "a")[0] == "recent: p, q, r"  # a tie: newest first
