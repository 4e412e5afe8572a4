"""The world of trips: drawn the same each time, every goal can be met, and taking the best first does not pay."""

from dataclasses import replace

import numpy as np
import pytest

from anyo_rl.data.goals import greedy_plan, violations
from anyo_rl.data.toy import goals
from anyo_rl.data.toy.goals import N_FREE, N_WANTED, GoalConfig, make_goal_world
from anyo_rl.run.settings import UsageError

SMALL = GoalConfig(n_offers=12, n_travellers=20, n_train=20, n_validation=5, n_test=30)


@pytest.fixture(scope="module")
def world():
    return make_goal_world(SMALL)


def test_the_same_seed_makes_the_same_world(world):
    assert make_goal_world(SMALL) == world
    assert make_goal_world(replace(SMALL, seed=1)) != world


def test_every_goal_can_be_met_and_is_in_one_split(world):
    asked = [goal for split in world.goals.values() for goal in split]
    assert [len(split) for split in world.goals.values()] == [20, 5, 30]
    assert len({replace(goal, goal_id="") for goal in asked}) == len(asked)
    for goal in asked:
        assert (len(goal.categories), len(goal.days)) == (N_WANTED, N_FREE)
        assert violations(goal, world.best(goal)) == ()
    liked = {goal.traveller: goal.liked for goal in asked}
    assert all(liked[goal.traveller] == goal.liked for goal in asked)


def test_whoever_takes_the_best_first_runs_out_of_money(world):
    plans = [world.judge(goal, greedy_plan(goal, world.offers)) for goal in world.goals["test"]]
    thrifty = [world.judge(goal, greedy_plan(goal, world.offers, for_price=True)) for goal in world.goals["test"]]
    assert np.mean([one.regret for one in plans]) > np.mean([one.regret for one in thrifty]) > 0.1


def test_related_offers_are_of_the_same_category(world):
    by_id = {offer.offer_id: offer for offer in world.offers}
    for offer in world.offers:
        related = world.related[offer.offer_id]
        assert len(related) == SMALL.n_offers - 1
        assert {by_id[other].category for other in related} == {offer.category}


def test_too_few_different_goals_are_refused(world, monkeypatch):
    monkeypatch.setattr(goals, "_goal", lambda *_: world.goals["test"][0])
    with pytest.raises(UsageError, match="found 1 different goals, expected 55: raise n_offers or n_travellers"):
        make_goal_world(SMALL)
