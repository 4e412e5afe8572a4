"""Rewards on whether the reasoning is worth anything: lift, faithful, length, repetition; and valid_item."""

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.faithful import FaithfulReward
from reward.length import LengthReward
from reward.lift import LiftReward
from reward.load import load_reward
from reward.repetition import RepetitionReward
from reward.valid_item import ValidItemReward

OTHERS = {"prompts": ["p"], "rank": [1], "user_id": ["u"]}
log_probs = st.floats(-50, 0)
gains = st.floats(0, 1)


def test_lift_by_hand():
    reward = LiftReward(bound=math.log(4))
    # Twice, as, half and a hundred times as probable: ln 2 / ln 4 = 1/2.
    after = [math.log(p) for p in (0.2, 0.1, 0.05, 0.9)]
    assert reward(log_prob=after, direct_log_prob=[math.log(0.1)] * 3 + [math.log(0.009)], **OTHERS) == pytest.approx(
        [0.5, 0.0, -0.5, 1.0]
    )
    assert reward(log_prob=[None, -60.0], direct_log_prob=[-1.0, -1.0]) == [-1.0, -1.0]
    assert LiftReward(floor=-2.0)(log_prob=[None], direct_log_prob=[-1.0]) == [-2.0]
    assert reward(log_prob=[], direct_log_prob=[]) == []


@given(st.lists(st.tuples(log_probs, log_probs), max_size=8), st.floats(0.1, 20))
def test_lift_is_bounded_and_a_likelier_target_never_gets_less(pairs, bound):
    reward = LiftReward(bound)
    values = reward(log_prob=[a for a, _ in pairs], direct_log_prob=[b for _, b in pairs])
    assert all(-1 <= value <= 1 for value in values)
    better = reward(log_prob=[a / 2 for a, _ in pairs], direct_log_prob=[b for _, b in pairs])
    assert all(high >= low for high, low in zip(better, values, strict=True))
    flipped = reward(log_prob=[b for _, b in pairs], direct_log_prob=[a for a, _ in pairs])
    assert flipped == pytest.approx([-value for value in values])


def test_within_a_group_lift_is_log_prob_but_for_a_constant():
    log_prob = [-3.0, -2.0, -4.5]
    values = LiftReward(bound=10.0)(log_prob=log_prob, direct_log_prob=[-3.7] * 3)
    assert [v - values[0] for v in values] == pytest.approx([(p - log_prob[0]) / 10 for p in log_prob])


def test_faithful_by_hand():
    reward = FaithfulReward()
    found = reward(gain=[1.0, 0.5, 0.0, None, 0.5], swapped_gain=[0.5, 0.5, 1.0, 0.5, None], **OTHERS)
    assert found == [0.5, 0.0, -1.0, -1.0, None]
    assert FaithfulReward(floor=0.0)(gain=[None], swapped_gain=[None]) == [0.0]
    assert reward(gain=[], swapped_gain=[]) == []
    carried = FaithfulReward(exchange="history")
    assert carried(gain=[1.0, None, 0.5], carried_gain=[0.25, None, None], **OTHERS) == [0.25, 0.0, None]
    with pytest.raises(ValueError, match="needs the column carried_gain"):
        carried(gain=[1.0], swapped_gain=[0.5])
    with pytest.raises(ValueError, match="unknown exchange 'item'"):
        FaithfulReward(exchange="item")


@given(st.lists(st.tuples(gains, gains), max_size=8))
def test_faithful_is_bounded_and_turns_round_with_the_swap(pairs):
    own, other = [a for a, _ in pairs], [b for _, b in pairs]
    values = FaithfulReward()(gain=own, swapped_gain=other)
    assert all(value is not None and -1 <= value <= 1 for value in values)
    assert FaithfulReward()(gain=other, swapped_gain=own) == [-value for value in values]


def test_valid_item_by_hand():
    columns = {"item_id": ["a", "b", None, "c"], "history": [["b"], ["a", "b"], [], []]}
    assert ValidItemReward()(**columns, **OTHERS) == [1.0, 0.0, 0.0, 1.0]
    assert ValidItemReward(allow_history=True)(**columns) == [1.0, 1.0, 0.0, 1.0]
    assert ValidItemReward()(item_id=[], history=[]) == []


def test_length_by_hand():
    # Of 10 tokens the last 4 cost a quarter each.
    ids = [[0] * n for n in (0, 6, 7, 9, 10, 11)]
    reward = LengthReward(max_length=10, buffer=4)
    assert reward(completions=[""] * 6, completion_ids=ids) == [0.0, 0.0, -0.25, -0.75, -1.0, -1.0]
    words = LengthReward(max_length=4, buffer=2, unit="words")
    assert words(steps=[["wants tea"], ["wants green", "tea"], ["a b c d"], []]) == [0.0, -0.5, -1.0, 0.0]
    three = [["a", "b", "c"]]
    assert LengthReward(max_length=4, buffer=2, unit="steps")(steps=three, completion_ids=[[1]]) == [-0.5]
    assert LengthReward(max_length=2, buffer=0, unit="steps")(steps=[["a", "b"], *three]) == [0.0, -1.0]


@given(st.integers(0, 40), st.integers(1, 20), st.integers(0, 20))
def test_longer_never_gets_more(n, most, buffer):
    reward = LengthReward(most, min(buffer, most))
    values = reward(completions=["", ""], completion_ids=[[0] * n, [0] * (n + 1)])
    assert 0 >= values[0] >= values[1] >= -1


def test_repetition_by_hand():
    reward = RepetitionReward(ngram=2, penalty=2.0)
    # a b, b a, a b, b a: 2 of 4 are distinct. Upper case and steps make no difference, the item does not count.
    assert reward(completions=["a B\nA b a -> a b a b"], steps=[["a B", "A b a"]], **OTHERS) == [-1.0]
    assert reward(steps=[["a b c d"], ["a"], [], []]) == [0.0] * 4
    assert RepetitionReward(ngram=1)(steps=[["tea tea tea tea"]]) == [-0.75]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 4), st.floats(0, 3))
def test_repetition_is_bounded_and_saying_it_again_never_helps(words, ngram, penalty):
    reward = RepetitionReward(ngram, penalty)
    once, again = reward(steps=[[" ".join(words)], [" ".join(words * 2)]])
    assert -penalty <= again <= 0
    if len(words) >= ngram:
        assert again <= once + 1e-9 or ngram > 1  # new n-grams may come where the two meet


@pytest.mark.parametrize(
    ("name", "kwargs", "columns"),
    [
        ("lift", {"bound": 2.0}, {"log_prob": [-1.0], "direct_log_prob": [-2.0]}),
        ("faithful", {}, {"gain": [1.0], "swapped_gain": [0.5]}),
        ("faithful", {"exchange": "history"}, {"gain": [1.0], "carried_gain": [0.5]}),
        ("valid_item", {"allow_history": True}, {"item_id": ["a"], "history": [["b"]]}),
        ("length", {"max_length": 4, "buffer": 2}, {"completions": ["c"], "completion_ids": [[1, 2, 3]]}),
        ("repetition", {"ngram": 1}, {"steps": [["a a"]]}),
    ],
)
def test_names_parameters_and_pickle(name, kwargs, columns):
    reward = load_reward({"name": name, "kwargs": kwargs})
    assert reward.__name__ == name
    (value,) = pickle.loads(pickle.dumps(reward))(**columns)
    assert abs(value) in (0.5, 1.0)
    assert type(value) is float


@pytest.mark.parametrize(
    ("reward", "kwargs", "message"),
    [
        (LiftReward, {"bound": 0.0}, "bound must be a number above 0, found 0.0"),
        (LiftReward, {"bound": math.inf}, "bound must be a number above 0"),
        (LiftReward, {"floor": math.nan}, "floor must be a finite number"),
        (FaithfulReward, {"floor": math.inf}, "floor must be a finite number"),
        (LengthReward, {"max_length": 0, "buffer": 0}, "found 0 and 0"),
        (LengthReward, {"max_length": 3, "buffer": 4}, "found 3 and 4"),
        (LengthReward, {"max_length": 3, "buffer": 1, "unit": "lines"}, "choose one of tokens, words, steps"),
        (RepetitionReward, {"ngram": 0}, "ngram must be 1 or more"),
        (RepetitionReward, {"penalty": -1.0}, "penalty must be 0 or more"),
    ],
)
def test_clear_errors(reward, kwargs, message):
    with pytest.raises(ValueError, match=message):
        reward(**kwargs)


def test_what_is_counted_has_to_be_there():
    with pytest.raises(ValueError, match="the unit tokens needs the column completion_ids"):
        LengthReward(max_length=3, buffer=1)(completions=["a"])
    with pytest.raises(ValueError, match="the unit words needs the column steps"):
        LengthReward(max_length=3, buffer=1, unit="words")(completions=["a"])


def test_what_is_older_than_the_history_shown_is_no_valid_item_where_it_is_masked():
    asked = {"item_id": ["a", "b", None], "history": [["c"], ["c"], ["c"]]}
    assert ValidItemReward()(**asked, excluded=[["a", "c"], ["a", "c"], []]) == [0.0, 1.0, 0.0]
    assert ValidItemReward()(**asked) == [1.0, 1.0, 0.0]
    assert ValidItemReward(allow_history=True)(**asked, excluded=[["a"]] * 3) == [1.0, 1.0, 0.0]
