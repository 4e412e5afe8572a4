import pickle

import pytest

from anyo_rl.data.completion import parse
from anyo_rl.training.rewards.check import RewardError, guard
from reward.format import FormatReward


def score(text, **kwargs):
    columns = {"prompts": ["p"], "completions": [text], "completion_ids": [[1]], "rank": [1]}
    return FormatReward(**kwargs)(steps=[list(parse(text).steps)], **columns)[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wants tea ->", 1.0),
        ("wants tea -> Mug", 1.0),
        ("likes tea\n\n  wants a mug\n-> Mug", 1.0),
        ("wants tea", 0.0),  # no marker
        ("", 0.0),
        ("->", 0.0),  # no step
        ("\n \n -> Mug", 0.0),
        ("wants tea\nwants tea ->", 0.0),  # said twice
        ("wants tea\nWants  TEA ->", 0.0),  # the same in other clothes
        ("wants tea -> Mug -> Lamp", 1.0),  # the first marker ends the reasoning
    ],
)
def test_format(text, expected):
    assert score(text) == expected


def test_limits_are_inclusive():
    assert score("a\nb ->", min_steps=2, max_steps=2) == 1.0
    assert score("a ->", min_steps=2, max_steps=2) == 0.0
    assert score("a\nb\nc ->", min_steps=2, max_steps=2) == 0.0
    assert score("abcd ->", max_step_chars=4) == 1.0
    assert score("a\nabcde ->", max_step_chars=4) == 0.0
    assert score("->", min_steps=0) == 1.0


def test_item_can_be_asked_for():
    assert score("wants tea ->", item=True) == 0.0
    assert score("wants tea -> Mug", item=True) == 1.0


def test_messages_and_empty_batch():
    message = [{"role": "assistant", "content": "wants tea ->"}]
    assert FormatReward()(completions=[message, message[:0]], steps=[["wants tea"], []]) == [1.0, 0.0]
    assert FormatReward()(completions=[], steps=[]) == []


def test_outside_of_the_trainer_the_missing_column_is_named():
    with pytest.raises(RewardError, match="reward 'format' asks for column 'steps'; the columns are completions"):
        guard(FormatReward())(completions=["a ->"])


def test_name_and_pickle():
    reward = pickle.loads(pickle.dumps(FormatReward(min_steps=2)))
    assert reward.__name__ == "format"
    assert reward(completions=["a ->", "a\nb ->"], steps=[["a"], ["a", "b"]]) == [0.0, 1.0]


def test_clear_errors():
    with pytest.raises(ValueError, match=r"0 <= min_steps <= max_steps, found 3 and 2"):
        FormatReward(min_steps=3, max_steps=2)
    with pytest.raises(ValueError, match=r"max_step_chars must be 1 or more, found 0"):
        FormatReward(max_step_chars=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Profile: tea\nIntention: mug ->", 1.0),
        ("profile : tea\n\nIntention: mug -> Mug", 1.0),
        ("Intention: mug\nProfile: tea ->", 0.0),  # in another order
        ("Profile: tea ->", 0.0),  # one is missing
        ("Profile: tea\nProfile: lamp\nIntention: mug ->", 0.0),  # one twice
        ("Profile: tea\nMood: good\nIntention: mug ->", 0.0),  # an unknown one
        ("Profile:\nIntention: mug ->", 0.0),  # says nothing
        ("Profile: tea\nIntention: mug", 0.0),  # cut before the marker
        ("", 0.0),
    ],
)
def test_typed_steps(text, expected):
    assert score(text, step_names=["Profile", "Intention"]) == expected


@pytest.mark.parametrize("names", ["Profile", ["Profile", "Profile"], ["a", "b", "c"]])
def test_names_that_cannot_be_are_refused(names):
    with pytest.raises(ValueError, match="step_names"):
        FormatReward(max_steps=2, step_names=names)
