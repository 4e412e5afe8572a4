"""Checks before training, columns from the training split, and weights that change."""

import functools
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.sequences import training_sequences
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.students.popularity import propensities
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.rewards.check import RewardError
from anyo_rl.training.rewards.schedule import RewardSchedules, Schedule, parse_schedules
from anyo_rl.training.rewards.setup import check_rewards, prepare_rewards
from reward.cf import CfReward
from reward.rank import RankReward


@pytest.fixture(scope="module")
def toy():
    """A small task, its catalog, and its training rows."""
    task = load_task(DataArguments(toy_users=60, toy_categories=4))
    tokens = Tokens.of(train_tokenizer(sample_texts(task), 400))
    catalog = build_catalog(task.interactions.items, tokens)
    return task, catalog, make_rows(task, task.split("train")[:8], catalog, tokens)


def settings(scale="group", aggregation="sum_then_normalize"):
    return SimpleNamespace(scale_rewards=scale, multi_objective_aggregation=aggregation)


def test_a_weight_that_would_cancel_is_refused():
    rewards = [RankReward("mrr"), RankReward(propensity_power=0.5)]
    for cancels in (settings(), settings("batch", "normalize_then_sum")):
        with pytest.raises(
            ValueError, match=r"'ndcg_ips' weighs each prompt.*where that weight cancels: set scale_rew"
        ):
            check_rewards(rewards, cancels)
        check_rewards(rewards[:1], cancels)
    for scale in ("batch", "none"):
        check_rewards(rewards, settings(scale))
    with pytest.raises(ValueError, match="cancels"):
        check_rewards([functools.partial(rewards[1], k=1)], settings())


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20))
def test_propensities_are_in_their_range_and_follow_popularity(counts):
    found = propensities(np.array(counts, dtype=float))
    assert ((found > 0) & (found <= 1)).all()
    assert found.max() == 1
    order = np.argsort(counts, kind="stable")
    assert (np.diff(found[order]) >= 0).all()


def test_rows_get_the_propensity_of_their_target(toy):
    task, catalog, rows = toy
    found = prepare_rewards([RankReward(propensity_power=1.0)], rows, task, catalog, seed=0)
    users = {}
    for sequence in training_sequences(task, catalog.index)[0]:
        for item in set(sequence):
            users[item] = users.get(item, 0) + 1
    for row, before in zip(found, rows, strict=True):
        n = users.get(catalog.index[before.target_id], 1)
        assert row == before.columns() | {"propensity": n / max(users.values())}
    assert list(prepare_rewards([RankReward()], rows, task, catalog, seed=0)) == [row.columns() for row in rows]


def test_rewards_are_fitted_with_the_task(toy):
    task, catalog, rows = toy
    reward = CfReward()
    prepare_rewards([reward], rows, task, catalog, seed=0)
    (value,) = reward(item_id=[rows[0].target_id], history=[rows[0].history])
    assert 0 <= value <= 1


def test_a_reward_that_exits_in_its_fit_has_failed(toy):
    task, catalog, rows = toy

    def mine(completions, **kwargs):
        return [0.0] * len(completions)

    mine.fit = lambda *_: sys.exit(0)
    with pytest.raises(RewardError, match=r"reward 'mine' called sys.exit\(0\) in its fit"):
        prepare_rewards([mine], rows, task, catalog, seed=0)


def test_schedules_by_hand():
    assert [Schedule(1.0, 0.2, 4).at(step) for step in (0, 2, 4, 100)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert parse_schedules(None, ["ndcg"]) == {}
    found = parse_schedules({"b": {"from": 0, "to": 1, "steps": 10}}, ["a", "b"])
    assert found == {1: Schedule(0.0, 1.0, 10)}


@pytest.mark.parametrize(
    ("schedules", "message"),
    [
        ({"c": {"from": 0, "to": 1, "steps": 1}}, "'c', which is not among reward_funcs: a, b"),
        ({"a": 3}, "expected {from: 0.0, to: 1.0, steps: 100}"),
        ({"a": {"from": 0, "to": 1}}, "expected {from: 0.0, to: 1.0, steps: 100}"),
        ({"a": {"from": 0, "to": 1, "steps": 0}}, "a whole number of steps of 1 or more"),
        ({"a": {"from": 0, "to": 1, "steps": 1.5}}, "a whole number of steps"),
        ({"a": {"from": float("nan"), "to": 1, "steps": 1}}, "expected two numbers"),
    ],
)
def test_schedules_that_are_none(schedules, message):
    with pytest.raises(ValueError, match=message):
        parse_schedules(schedules, ["a", "b"])


def test_the_trainer_scores_with_the_scheduled_weight(make_reasoner):
    trainer = make_reasoner(
        reward=[lambda prompts, **_: [1.0] * len(prompts), lambda prompts, **_: [10.0] * len(prompts)],
        settings={"max_steps": 3, "reward_weights": [1.0, 7.0]},
    )
    trainer.add_callback(RewardSchedules(trainer, {1: Schedule(0.0, 1.0, 2)}))
    trainer.train()
    steps = [row for row in trainer.state.log_history if "reward" in row]
    assert [row["reward"] for row in steps] == [1.0, 6.0, 11.0]
    assert [row["rewards/<lambda>/weight"] for row in steps] == [0.0, 0.5, 1.0]
