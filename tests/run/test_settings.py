"""Types and bounds of settings, each with what is allowed, what is not, and the line that says so."""

import enum
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from anyo_rl.run.settings import Bounds, UsageError, check_bounds, fits, fitted


class Colour(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (None, int, False),
        (None, int | None, True),
        (1, float, True),
        (True, float, False),
        (math.nan, float, False),
        (math.inf, float, True),
        (1, bool, False),
        ("1", str, True),
        (1, str, False),
        ([1, 2], list[int], True),
        ([1, None], list[int], False),
        ([], list[str], True),
        ({"a": 1}, dict[str, Any], True),
        ({1: 1}, dict[str, Any], False),
        ({"a": 1}, dict[str, str] | str | None, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (True, Literal[1], False),
        ("red", Colour, True),
        ("blue", Colour, False),
        ("anything", Any, True),
    ],
)
def test_types_are_as_written(value, annotation, expected):
    assert fits(value, annotation) is expected


def test_a_single_value_stands_for_a_list_of_it():
    assert fitted("reward_funcs", "ndcg", list[str]) == ["ndcg"]
    assert fitted("reward_funcs", ["ndcg"], list[str]) == ["ndcg"]
    assert fitted("report_to", "none", str | list[str]) == "none"


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (None, int, "n is null; expected a whole number"),
        (True, int | None, "n is true; expected a whole number or null"),
        ([1], int, "n is [1]; expected a whole number"),
        ({"key": "sentinel"}, float, "n is a mapping; expected a number"),
        ('{"key": "sentinel"', dict[str, Any] | None, "n is a text; expected a mapping or null"),
        (2, Literal["a", "b"], "n is 2; expected one of a, b"),
        (["a"], list[float], "n is ['a']; expected a list, each a number"),
    ],
)
def test_a_wrong_type_is_told_in_one_line(value, annotation, message):
    with pytest.raises(UsageError) as told:
        fitted("n", value, annotation)
    assert str(told.value) == message


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "words"),
    [
        (Bounds(0), [0, 1e9], [-1e-9, math.nan, math.inf], "0 or more"),
        (Bounds(0, 1), [0, 0.5, 1], [-0.1, 1.1], "0 to 1"),
        (Bounds(above=0), [1e-9], [0, -1], "above 0"),
        (Bounds(above=0, most=1), [1e-9, 1], [0, 1.1], "above 0 and up to 1"),
    ],
)
def test_bounds(bounds, inside, outside, words):
    assert all(value in bounds for value in inside)
    assert not any(value in bounds for value in outside)
    assert str(bounds) == words


@dataclass
class Some:
    share: float = field(default=0.5, metadata={"bounds": Bounds(0, 1)})
    rates: list[float] | None = field(default=None, metadata={"bounds": Bounds(above=0)})
    free: int = -5


def test_bounds_stand_with_their_field():
    check_bounds(Some())
    check_bounds(Some(rates=[0.1]))
    with pytest.raises(UsageError, match=r"^share is 2: expected 0 to 1$"):
        check_bounds(Some(share=2))
    with pytest.raises(UsageError, match=r"^rates is \[0.1, 0\]: expected above 0$"):
        check_bounds(Some(rates=[0.1, 0]))
    with pytest.raises(UsageError, match=r"^world: free is -5: expected 1 or more$"):
        check_bounds(Some(), {"free": Bounds(1), "not_there": Bounds(1)}, "world: ")
