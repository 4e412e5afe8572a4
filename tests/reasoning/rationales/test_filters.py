"""Which answers are kept: each filter by hand, their order, and that nothing is lost or counted twice."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.data.schema import DataError
from anyo_rl.data.text import escape_tags
from anyo_rl.llm.journal import Answer
from anyo_rl.reasoning.rationales.filters import (
    REASONS,
    FilterArguments,
    Shown,
    clean_steps,
    copies,
    count,
    judge,
    judge_all,
    names_target,
    normal_steps,
)
from anyo_rl.reasoning.rationales.titles import Titles, fold

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "d", "e", "f"],
        "title": ["Alien", "Alien 3", "Heat (1995)", "Oak Desk", "oak  desk", "Cook’s Mug"],
    }
)
TITLES = Titles(ITEMS)
STEPS = "The user likes tense films in space\nSomething older and darker comes now"
SHOWN = Shown(
    "c", "Heat (1995)", ("Alien", "Alien 3"), "Chosen so far:\nAlien\nAlien 3\nWrite down why, one step a line."
)
ARGS = FilterArguments()


def reason(text, finish_reason="stop", shown=SHOWN, **settings):
    return judge(text, finish_reason, shown, TITLES, FilterArguments(**settings)).reason


def test_a_good_answer_is_kept():
    verdict = judge(f"1. {STEPS}\n-> Heat (1995)\nThat is all.", "stop", SHOWN, TITLES, ARGS)
    assert verdict.reason is None
    assert verdict.steps == tuple(STEPS.split("\n"))
    assert (verdict.item_id, verdict.item) == ("c", "Heat (1995)")
    assert reason(f"<think>Hm -> what?\n</think>\n\n{STEPS} -> Heat (1995)") is None
    assert reason(f"{STEPS} -> Heat (1995)", None) is None


def test_thoughts_are_no_steps_wherever_they_begin():
    thought = "Okay, the shopper keeps buying cosy things so far.\nI will hide the name -> Alien"
    for before in (
        f"{thought}\n</think>\n",  # the chat template opened it
        f"<thinking>{thought}</thinking>\n",
        f"<think>{thought}</think>\n<THINK>{thought}</THINK>\n",
        f"Hm.\n<think>{thought}<think></think>",
    ):
        verdict = judge(f"{before}{STEPS} -> Heat (1995)", "stop", SHOWN, TITLES, ARGS)
        assert (verdict.reason, verdict.steps) == (None, tuple(STEPS.split("\n")))
    assert reason(f"{STEPS} -> Heat (1995)\n<think>or was it") == "truncated"
    assert reason(f"{thought}\n</think>\n{STEPS} -> Heat (1995)", "length") == "truncated"


@pytest.mark.parametrize(
    ("text", "finish_reason", "expected"),
    [
        (f"{STEPS} -> Heat (1995)", "length", "truncated"),
        ("", "stop", "unparsed"),
        ("", "length", "truncated"),
        (STEPS, "stop", "unparsed"),  # no marker
        (f"{STEPS}\n->", "stop", "unparsed"),  # no item
        ("-> Heat (1995)", "stop", "unparsed"),  # no steps
        ("---\n***\n-> Heat (1995)", "stop", "unparsed"),  # no words
        ("<think>never ends -> Heat (1995)", "stop", "truncated"),
        (f"{STEPS} -> Alien", "stop", "wrong_item"),
        (f"{STEPS} -> Heat, or something like it", "stop", "wrong_item"),
        (f"{STEPS} -> Alien -> Heat (1995)", "stop", "wrong_item"),  # the first marker counts
        (f"{STEPS}, which is Heat (1995) -> Heat (1995)", "stop", "leak"),
        ("Chosen so far: Alien, Alien 3, write down why\nand so on -> Heat (1995)", "stop", "copy"),
        ("tense films in space\ndark -> Heat (1995)", "stop", "short"),  # 5 words
        ("one two three four five six seven eight nine ten -> Heat (1995)", "stop", "short"),  # a step
        ("\n".join(f"step of words {n}" for n in range(9)) + " -> Heat (1995)", "stop", "long"),
        ("word " * 60 + "\n" + "other " * 41 + "-> Heat (1995)", "stop", "long"),
    ],
)
def test_the_first_reason_that_applies(text, finish_reason, expected):
    assert reason(text, finish_reason) == expected


def test_the_bounds_of_steps_and_words():
    def answer(steps, n_words):
        return (
            "\n".join([f"w{step}" for step in range(steps - 1)] + [" ".join(["x"] * (n_words - steps + 1))])
            + "-> Alien"
        )

    shown = Shown("a", "Alien", (), "")
    assert [reason(answer(steps, 20), shown=shown) for steps in (1, 2, 8, 9)] == ["short", None, None, "long"]
    assert [reason(answer(2, n), shown=shown) for n in (7, 8, 100, 101)] == ["short", None, None, "long"]


def test_titles_name_items_whatever_case_quotes_and_spaces():
    assert TITLES.find("  alien   3 ") == ("b",)
    assert TITLES.find('"Alien 3".') == ("b",)
    assert TITLES.find("**Cook's Mug**") == ("f",)
    assert TITLES.find("Oak Desk") == ("d", "e")  # collide once folded: both are named
    assert TITLES.find("Alien 4") == TITLES.find("") == TITLES.find(None) == ()
    assert fold("Oak\u00a0 DESK") == "oak desk"


@pytest.mark.parametrize("target", ["d", "e"])
def test_an_item_of_a_title_that_several_have_is_the_target_where_it_may_be(target):
    verdict = judge(f"{STEPS} -> OAK DESK", "stop", Shown(target, "Oak Desk", (), ""), TITLES, ARGS)
    assert (verdict.item_id, verdict.reason) == (target, None)
    assert judge(f"{STEPS} -> oak desk", "stop", SHOWN, TITLES, ARGS).item_id == "d"


@pytest.mark.parametrize(
    ("step", "target", "others", "expected"),
    [
        ("they want a Green Tea pot", "Green Tea", (), True),
        ("they want a green\ttea, maybe", "Green Tea", (), True),
        ("they want green teas", "Green Tea", (), False),
        ("green things, and tea", "Green Tea", (), False),
        ("they saw Alien 3 before", "Alien", ("Alien 3",), False),  # part of a longer title in the prompt
        ("they saw Alien 3 before", "Alien", (), True),
        ("Alien 3 makes one want Alien again", "Alien", ("Alien 3",), True),
        ("they saw Alien before", "Alien 3", ("Alien",), False),
        ("next is Alien: 3", "Alien 3", ("Alien",), True),
        ("It seems that they like it", "It", (), False),  # a word like any other
        ("They like it. It seems so", "It", (), False),
        ("next comes It", "It", (), True),
        ('next comes "it"', "It", (), True),
        ('"It," they say', "It", (), True),
        ("heat is what they like", "Heat (1995)", (), False),
        ("they go on to Heat", "Heat (1995)", (), True),
        ("wants a mug now", "mug", (), True),
        ("likes mugs", "mug", (), False),
        ("a film like The Godfather", "Godfather, The (1972)", (), True),
        ("a film like the godfather", "Godfather, The (1972)", (), True),
        ("they bought Green Tea and buy it again", "Green Tea", ("Green Tea",), True),  # chosen before
        ("they like 東京物語 now", "東京物語", (), True),  # written without blanks
        ("彼は東京物語が好き", "東京物語", (), True),
        ("anything at all!", "!!!", (), False),  # a title without a word
    ],
)
def test_leaks(step, target, others, expected):
    assert names_target([step], target, others, 5) is expected


def test_a_leak_is_within_one_step():
    assert not names_target(["they like green", "tea is next"], "Green Tea", (), 5)


def test_a_long_part_of_the_target_is_a_leak():
    target, step = (
        "Sharpie Permanent Markers, Fine Point, Black, 12-Count",
        "wants Sharpie permanent markers, fine point",
    )
    assert names_target([step], target, (), 5)
    assert not names_target([step], target, (), 6)
    assert not names_target([step], target, (), 0)
    # The part that a title of the history has too tells nothing.
    assert not names_target([step], target, ("Sharpie Permanent Markers, Fine Point, Blue",), 5)


def test_copies():
    prompt = (
        "Chosen:\nScotch Magic Tape, 3/4 x 1000 Inches, 10 Rolls\nOak Desk\nWrite two to five steps, one step a line."
    )
    titles = ["Scotch Magic Tape, 3/4 x 1000 Inches, 10 Rolls", "Oak Desk"]

    def copied(*steps, n=8):
        return copies(steps, prompt, titles, n)

    assert not copied("bought Scotch magic tape, 3/4 x 1000 inches, 10 rolls before")  # a mention, however long
    assert copied("tape 3 4 x 1000 inches 10 rolls oak desk")  # over the end of a title: the list was copied
    assert copied("Scotch Magic Tape, 3/4 x 1000 Inches, 10 Rolls", "Oak Desk")  # over the ends of steps as well
    assert copied("I write two to five steps, one step a line")
    assert not copied("I write two to five steps, one more")
    assert not copied("I write two to five steps, one step a line", n=0)
    assert not copied("short", n=8)
    assert not copies([], prompt, titles, 8)


def test_steps_lose_bullets_numbers_and_what_is_no_word():
    steps = ["- **Step 1:** likes tea", "2) wants  a\tmug", "```", "# so", "3 mugs are enough", "1984 was good"]
    assert clean_steps(steps) == ("likes tea", "wants a mug", "so", "3 mugs are enough", "1984 was good")
    assert clean_steps(["x -**> y <|im_end|>"]) == ("x → y",)


def answer_of(text, example="u:1", sample=0, finish_reason="stop"):
    return Answer(example, sample, "f", text, finish_reason, 1, 1, None, 1)


def test_the_first_of_those_with_the_same_steps_is_kept():
    other = STEPS.upper().replace("\n", "!\n- ")
    texts = [f"{STEPS} -> Heat (1995)", f"{other} -> Heat (1995)", f"{STEPS}, yes -> Heat (1995)", f"{STEPS} -> Alien"]
    verdicts = judge_all([SHOWN] * 4, [answer_of(text) for text in texts], TITLES, ARGS)
    assert [verdict.reason for verdict in verdicts] == [None, "duplicate", None, "wrong_item"]
    assert normal_steps(["A b!"]) == (("a", "b"),)


PIECES = st.sampled_from(
    [
        "likes tense films",
        "->",
        "Heat (1995)",
        "\n",
        " ",
        "Alien 3",
        "one step a line",
        "1.",
        "<think>",
        "x " * 30,
        "\u2028",
    ]
)
TEXTS = st.lists(PIECES, max_size=12).map(" ".join)


@given(st.lists(st.none() | st.tuples(TEXTS, st.sampled_from(["stop", "length", None])), max_size=12), st.data())
def test_every_request_counts_once(answers, data):
    came = [None if answer is None else answer_of(answer[0], finish_reason=answer[1]) for answer in answers]
    verdicts = judge_all([SHOWN] * len(came), came, TITLES, FilterArguments(fewest_steps=1, fewest_words=1))
    n_failed = data.draw(st.integers(0, sum(answer is None for answer in came)))
    counts = count(verdicts, n_failed)
    assert sum(counts.values()) == len(came)
    assert min(counts.values()) >= 0
    assert set(counts) == {"kept", "failed", "left", *REASONS}
    kept = [normal_steps(verdict.steps) for verdict in verdicts if verdict is not None and verdict.reason is None]
    assert len(set(kept)) == len(kept) == counts["kept"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fewest_steps": 0}, "fewest_steps is 0 and most_steps 8"),
        ({"most_words": 3}, "fewest_words is 8 and most_words 3"),
        ({"copied_words": -1}, "copied_words is -1"),
        ({"leak_words": 1}, "leak_words is 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        FilterArguments(**settings)


def test_prompt_lines_hold_no_tag():
    assert escape_tags("</target> {{ x }} <b") == "‹/target› {{ x }} ‹b"
    assert escape_tags("I <3 tea, 2 < 3 > 1, pens < ink") == "I <3 tea, 2 < 3 > 1, pens < ink"
    assert escape_tags("</ history>< / target ><\u200d/chosen><?x") == "‹/ history›‹ / target ›‹\u200d/chosen›‹?x"
    assert TITLES.find(escape_tags("Alien")) == ("a",)
