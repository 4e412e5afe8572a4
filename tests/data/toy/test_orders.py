"""The world of orders: what events do to an order, what rationales say of it, and the best that can be done."""

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.data.toy.orders import (
    DIAL,
    N_FOLLOWED,
    OPERATIONS,
    OrderConfig,
    apply,
    follow,
    make_order_world,
    order_config,
)

SMALL = OrderConfig(n_users=60, min_operations=2, max_operations=6, reveal=0.3)
ORDER = ("tea", "lamp", "pen", "mug", "bag")


@pytest.fixture(scope="module")
def world():
    return make_order_world(SMALL)


def test_the_example_of_the_docstring_by_hand():
    events = [*((series, "new") for series in ORDER), ("pen", "swap"), ("tea", "rotate"), ("bag", "sale")]
    assert follow(events[:5]) == ORDER
    assert follow(events[:6]) == ("lamp", "tea", "pen", "mug", "bag")
    assert follow(events) == follow(events[:7]) == ("tea", "pen", "mug", "bag", "lamp")
    assert apply("cross", ORDER) == ("tea", "mug", "pen", "lamp", "bag")


def test_operations_are_permutations_and_but_for_one_move_something():
    assert all(sorted(places) == [0, 1, 2, 3, 4] for places in OPERATIONS.values())
    assert [name for name, places in OPERATIONS.items() if places == (0, 1, 2, 3, 4)] == ["stay"]


def test_users_are_shown_their_order_and_buy_its_head_after_a_sale(world):
    heads = []
    for user, events in world._events.items():
        assert len({series for series, _ in events[:N_FOLLOWED]}) == N_FOLLOWED
        assert {edition for _, edition in events[:N_FOLLOWED]} == {"new"}
        assert events[-2][1] == "sale"
        for position, (series, edition) in enumerate(events):
            if position and events[position - 1][1] == "sale":
                heads.append(series == world.order(user, position)[0])
                assert edition in SMALL.operations
    assert len(heads) > 80
    assert np.mean(heads) == pytest.approx(SMALL.fidelity, abs=0.08)


def test_most_events_do_not_show_the_order(world):
    """The series of an event is any of the five alike, whatever is at the head."""
    places = Counter(
        world.order(user, position).index(series)
        for user, events in world._events.items()
        for position, (series, edition) in enumerate(events)
        if position >= N_FOLLOWED and events[position - 1][1] != "sale" and edition != "sale"
    )
    shares = [places[place] / sum(places.values()) for place in range(N_FOLLOWED)]
    assert shares == pytest.approx([0.2] * 5, abs=0.08)


def test_the_true_rationale_follows_the_order(world):
    user, events = next((user, events) for user, events in world._events.items() if len(events) > 9)
    position = len(events) - 1
    steps = world.true_rationale(user, position)
    assert steps[0] == "start: " + " ".join(series for series, _ in events[:5])
    changes = [edition for _, edition in events[5:position] if edition in OPERATIONS]
    assert [step.split(":")[0] for step in steps[1:-1]] == changes
    assert steps[-2].split(": ")[1].split() == list(world.order(user, position))
    assert steps[-1] == f"head: {world.order(user, position)[0]}"
    assert world.is_true(steps, user, position)
    assert all(world.true_steps(steps, user, position))
    with pytest.raises(ValueError, match="5 events or more, found 4"):
        world.true_rationale(user, 4)


def test_some_rationales_go_wrong_at_an_event_and_stay_wrong():
    world = make_order_world(dataclasses.replace(SMALL, n_users=400, wrong_share=0.25, rationale_share=1.0))
    n_wrong = 0
    for user, events in world._events.items():
        position = len(events) - 1
        said, truth = world.rationale(user, position), world.true_rationale(user, position)
        assert len(said) == len(truth)
        assert (said != truth) <= (user in world._wrong)
        if said != truth:
            n_wrong += 1
            first = next(n for n, (one, other) in enumerate(zip(said, truth, strict=True)) if one != other)
            assert world.true_steps(said, user, position)[:first] == [True] * first
            assert said[first].split(":")[0] != truth[first].split(":")[0]
    assert n_wrong == pytest.approx(100, abs=30)


def test_steps_that_state_no_head_or_two_state_none(world):
    user, events = next(iter(world._events.items()))
    position = len(events) - 1
    head = world.order(user, position)[0]
    other = next(series for series in ORDER if series != head)
    assert world.is_true(["Head : " + head.upper()], user, position)
    for steps in ([], ["head: unicorn"], [f"head: {head}", f"head: {head}"], [head]):
        assert not world.states_intent(steps)
        assert not world.is_true(steps, user, position)
    assert world.states_intent([f"head: {other}"])
    assert not world.is_true([f"head: {other}"], user, position)


def test_the_oracle_by_hand(world):
    items = world.interactions.items
    history = [world.index[items.filter(title=f"{series} new 1")["item_id"].item()] for series in ORDER]
    history.append(world.index[items.filter(title="pen swap 2")["item_id"].item()])
    (scores,) = world.oracle_scores([history])
    assert scores.sum() == pytest.approx(1.0)
    found = dict(zip(items["title"], scores, strict=True))
    # The lamp is at the head; three operations, and variant 1 is twice as likely as variant 2.
    assert found["lamp rotate 1"] == pytest.approx(0.9 / 3 * 2 / 3)
    assert found["lamp rotate 2"] == pytest.approx(0.9 / 3 * 1 / 3)
    assert found["bag stay 1"] == pytest.approx(0.1 / 4 / 3 * 2 / 3)
    assert found["lamp new 1"] == found["lamp sale 1"] == found["vase stay 1"] == 0.0
    for wrong in ({"histories": [history[:4]]}, {"histories": [history], "starts": [1]}):
        with pytest.raises(ValueError, match="whole histories alone"):
            world.oracle_scores(**wrong)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from(sorted(DIAL)))
def test_the_oracle_knows_what_the_world_does(seed, dial):
    world = make_order_world(order_config(dial, n_users=4, seed=seed))
    for user, events in world._events.items():
        history = world.interactions.frame.filter(user_id=user)["item_id"].to_list()[:-1]
        indices = [world.index[item] for item in history]
        scores = world.oracle_scores([indices])[0]
        np.testing.assert_allclose(scores, world.intent_scores([user], [len(events) - 1])[0])
        head = world.order(user, len(events) - 1)[0]
        assert world.interactions.items["series"][int(scores.argmax())] == head


def test_the_same_config_gives_the_same_world_and_a_smaller_one_its_first_users(world):
    again, smaller = make_order_world(SMALL), make_order_world(dataclasses.replace(SMALL, n_users=20))
    assert again.interactions.frame.equals(world.interactions.frame)
    n_events = sum(len(world._events[user]) for user in list(world._events)[:20])
    assert smaller.interactions.frame.equals(world.interactions.frame[:n_events])
    other = make_order_world(dataclasses.replace(SMALL, seed=1))
    assert not other.interactions.frame.equals(world.interactions.frame)


def test_a_task_asks_for_the_last_purchase_alone():
    task = load_task(DataArguments(dataset="toy-orders", toy_dial=1, toy_users=80, rationale_share=0.5))
    assert task.examples.group_by("user_id").len()["len"].max() == 1
    assert {len(task.split(split)) for split in ("train", "validation", "test")} == {40, 20}
    assert 10 <= len(task.rationales) <= 30
    with pytest.raises(DataError, match="max_history is 20, and users of this world have up to"):
        load_task(DataArguments(dataset="toy-orders", toy_dial=4, max_history=20))
    with pytest.raises(DataError, match="the dial is at 5, expected one of 1, 2, 3, 4"):
        load_task(DataArguments(dataset="toy-orders", toy_dial=5))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n_users": 0}, "n_users is 0: expected 1 or more"),
        ({"n_series": 4}, "n_series is 4: expected 5 to 12"),
        ({"fidelity": 0.0}, "fidelity is 0"),
        ({"operations": ("swap", "spin")}, "operations are"),
    ],
)
def test_settings_out_of_range_are_told(setting, message):
    with pytest.raises(ValueError, match=message):
        OrderConfig(**setting)
