"""The share of what a reasoning names that the history has."""

import pickle

import polars as pl
import pytest

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.mentions import Names
from reward.grounded import GroundedReward
from reward.load import load_reward

NAMES = Names.of(pl.DataFrame({"item_id": ["a", "b"], "title": ["Tea", "Mug"], "colour": ["red", "blue"]}))


def given(**settings):
    reward = GroundedReward(**settings)
    reward.use(NAMES)
    return reward


def test_grounded_by_hand():
    steps = [["recent: tea, red", "next: mug"], ["recent: mug"], ["wants something"], []]
    found = given()(steps=steps, history=[["a"], ["a"], ["a"], []], rank=[1, 1, 1, 1])
    assert found == [pytest.approx(2 / 3), 0.0, 0.0, 0.0]
    assert given(step_names=["recent"])(steps=steps, history=[["a"], ["b"], ["a"], []]) == [1.0, 1.0, 0.0, 0.0]
    assert given(floor=-0.5)(steps=[["nothing"]], history=[["a"]]) == [-0.5]
    assert given()(steps=[], history=[]) == []


def test_a_recipe_gives_it_the_names_of_the_catalog():
    reward = load_reward({"name": "grounded", "kwargs": {"step_names": ["next"]}})
    with pytest.raises(ValueError, match="knows no names yet"):
        reward(steps=[["next: tea"]], history=[[]])
    task = load_task(DataArguments(toy_users=5, toy_categories=4))
    reward.fit(task, None)
    tea = task.interactions.items.filter(pl.col("category") == "tea")["item_id"][0]
    again = pickle.loads(pickle.dumps(reward))
    assert again(steps=[["next: tea", "style: oak"], ["next: mug"]], history=[[tea], [tea]]) == [1.0, 0.0]


@pytest.mark.parametrize("wrong", [{"step_names": "recent"}, {"floor": float("nan")}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GroundedReward(**wrong)
