import pytest

from anyo_rl.data.names import ItemNames, UnknownItemError, named_items

NAMES = ItemNames(
    {
        "i0": "Alien",
        "i1": "Aliens",
        "i2": "Toy Story",
        "i3": "toy story",
        "i4": "Lamp",
        "i5": "Lamp",
        "Lamp": "Mug",
        "i7": "Straße  Blue",
    }
)


@pytest.mark.parametrize(
    ("name", "item"),
    [
        ("i1", "i1"),
        ("Alien", "i0"),
        ("ALIENS ", "i1"),
        ("Toy Story", "i2"),  # as it is written, before whatever its case
        ("toy story", "i3"),
        ("Lamp", "Lamp"),  # an id, before titles
        ("I4", "i4"),
        ("strasse blue", "i7"),
        ("mug", "Lamp"),
    ],
)
def test_ids_and_titles_are_found(name, item):
    assert NAMES.find(name) == item


@pytest.mark.parametrize(
    ("name", "told"), [("lAMP", "3 items"), ("TOY STORY", "2 items: give one of their ids, 'i2', 'i3'")]
)
def test_ambiguous_names_are_told_with_their_ids(name, told):
    with pytest.raises(UnknownItemError, match=told):
        NAMES.find(name)


def test_unknown_names_are_told_the_nearest():
    with pytest.raises(UnknownItemError, match=r"called 'Aleins'; the nearest are 'Aliens' \(i1\), 'Alien'"):
        NAMES.find("Aleins")
    with pytest.raises(UnknownItemError, match="the nearest are"):
        NAMES.find("")
    with pytest.raises(UnknownItemError, match="expected a title or an item id, as text"):
        NAMES.find(3)  # type: ignore[arg-type]
    with pytest.raises(UnknownItemError) as caught:
        NAMES.find("x" * 10**6)
    assert len(str(caught.value)) < 600


def test_a_text_is_no_list():
    assert named_items(NAMES, ("i0", "aliens"), "a history") == ["i0", "i1"]
    with pytest.raises(UnknownItemError, match="a history is 'i0': expected a list"):
        named_items(NAMES, "i0", "a history")


def test_search_has_the_best_first():
    assert NAMES.search("alien", 2) == ["i0", "i1"]
    assert NAMES.search("story", 2) == ["i2", "i3"]
    assert NAMES.search("tyo stori", 1) == ["i2"]
    assert NAMES.search("", 3) == ["i0", "i1", "i2"]
    assert NAMES.search("i5", 1) == ["i5"]
    assert len(NAMES.search("a", 100)) == 8


def test_no_letters_in_common():
    assert len(NAMES.nearest("ж", 3)) == 3
