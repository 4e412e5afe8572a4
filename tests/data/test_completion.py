import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.data.completion import MARKER, Completion, parse, render, split_steps

# One line as a step or an item may be: not empty, stripped, no line break, no marker.
lines = st.text(min_size=1).filter(lambda s: s == s.strip() and s.splitlines() == [s] and MARKER not in s)


@given(st.lists(lines, max_size=4), st.none() | lines)
def test_parse_reads_back_what_render_wrote(steps, item):
    assert parse(render(steps, item)) == Completion(tuple(steps), item, marked=True)


@given(st.text() | st.lists(st.sampled_from(["->", "-", ">", "\n", " ", "a", "\x85", "\u2028"])).map("".join))
def test_parse_never_raises_and_keeps_its_promises(text):
    parsed = parse(text)
    assert parsed.marked == (MARKER in text)
    assert parsed.steps == split_steps(text.split(MARKER)[0])
    assert all(step and step == step.strip() and step.splitlines() == [step] for step in parsed.steps)
    assert parsed.item is None or (parsed.marked and parsed.item == parsed.item.strip() != "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Completion((), None, False)),
        (" \n\n ", Completion((), None, False)),
        ("->", Completion((), None, True)),
        ("a ->", Completion(("a",), None, True)),
        ("a -> \n \n", Completion(("a",), None, True)),
        ("a -> b -> c", Completion(("a",), "b -> c", True)),  # the first marker ends the reasoning
        ("a\n-> b\nc", Completion(("a",), "b", True)),  # the item ends with its line
        ("a ->\nb", Completion(("a",), "b", True)),
        ("a->b", Completion(("a",), "b", True)),
        ("a --> b", Completion(("a -",), "b", True)),
        ("a\r\n\r\nb -> c", Completion(("a", "b"), "c", True)),
        ("a - > b", Completion(("a - > b",), None, False)),
        ("a → b", Completion(("a → b",), None, False)),
    ],
)
def test_parse_by_hand(text, expected):
    assert parse(text) == expected


def test_render_by_hand():
    assert render(["a", "b"], "c") == "a\nb -> c"
    assert render(["a"]) == "a ->"
    assert render([], "c") == "-> c"
    assert render([]) == "->"
    assert render((step for step in "ab"), "c") == "a\nb -> c"  # any iterable, read once


@pytest.mark.parametrize("bad", ["a -> b", "->", "a\nb", "\na", "a\n", "\n", "a\r", "a\u2028b", "a\x85"])
def test_render_refuses_what_would_be_read_back_as_something_else(bad):
    for steps, item in (([bad], "c"), (["a"], bad)):
        with pytest.raises(ValueError, match="holds the marker '->' or a line break"):
            render(steps, item)
