"""Columns that the engine makes for rewards: who asks for them, and that they are what a slow computation gives."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from accelerate import Accelerator

from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.training.rewards.check import RewardError, wanted_columns
from anyo_rl.training.rewards.probes import Probes, Written, swap_partners
from reward.faithful import FaithfulReward
from reward.lift import LiftReward
from reward.rank import RankReward
from tests.training.helpers import ROWS, G

PROBES = "anyo_rl.training.rewards.probes"


def asks(direct_log_prob, swapped_gain=None, **columns):
    return [0.0] * len(direct_log_prob)


def test_a_reward_asks_by_a_parameter_or_an_attribute():
    assert wanted_columns([asks]) == {"direct_log_prob"}  # what has a default is taken as it comes
    assert wanted_columns([functools.partial(asks, swapped_gain=[1.0])]) == {"direct_log_prob"}
    assert wanted_columns([RankReward()]) == {"rank"}
    assert wanted_columns([RankReward(propensity_power=0.5), FaithfulReward()]) >= {"propensity", "swapped_gain"}
    assert Probes([RankReward()]).wanted == set()
    assert Probes([FaithfulReward(exchange="history")]).wanted == {"carried_gain"}
    assert Probes([LiftReward(), FaithfulReward()]).wanted == {"direct_log_prob", "swapped_gain"}


def test_the_partner_is_another_users_and_has_a_marker():
    def written(*marks):
        return [Written(mark[0], [i], mark[1:] != "-") for i, mark in enumerate(marks)]

    assert swap_partners(written("a", "a", "b", "b", "c", "c"), 2) == [2, 3, 4, 5, 0, 1]
    assert swap_partners(written("a", "a", "a", "a", "c-", "c"), 2) == [5, 5, 5, 5, 0, 1]  # two prompts of one user
    assert swap_partners(written("a", "a"), 2) == [None, None]
    assert swap_partners(written("a", "a", "b-", "b-"), 2) == [None, None, 0, 1]
    assert swap_partners([], 2) == []


def test_the_columns_are_those_of_a_slow_computation(make_reasoner):
    calls = []

    def recording(completions, direct_log_prob, swapped_gain, carried_gain, **columns):
        calls.append({"direct": direct_log_prob, "swapped": swapped_gain, "carried": carried_gain, **columns})
        return [0.0] * len(completions)

    settings = {"max_steps": 1, "learning_rate": 0.0, "per_device_train_batch_size": 4 * G}
    masked = [replace(row, excluded=row.history) for row in ROWS]
    trainer = make_reasoner(reward=recording, settings=settings, rows=masked)
    trainer.train()
    (call,) = calls
    tokens, slow = trainer.tokens, DistributionRanker(trainer.catalog, trainer.model)
    prompts = {row.user_id: tokens.context_ids(row.prompt) for row in ROWS}
    written = [
        Written(user, ids, tokens.marker_id in ids)
        for user, ids in zip(call["user_id"], call["completion_ids"], strict=True)
    ]
    partners = swap_partners(written, G)
    compared = 0
    for i, user in enumerate(call["user_id"]):
        target, history = [call["target_id"][i]], [call["history"][i]]
        alone = slow.rank([[*prompts[user], tokens.marker_id]], target)
        assert call["direct"][i] == pytest.approx(float(alone.log_probs_B[0]), abs=1e-4)
        if not written[i].marked or partners[i] is None:
            assert call["swapped"][i] is call["carried"][i] is None
            continue
        context = tokens.marked_context(prompts[user], call["completion_ids"][partners[i]])
        rank = slow.rank([context], target, excluded_B=history).ranks_B[0]
        assert call["swapped"][i] == pytest.approx(1 / np.log2(1 + rank))
        context = tokens.marked_context(prompts[call["user_id"][partners[i]]], call["completion_ids"][i])
        rank = slow.rank([context], target, excluded_B=history).ranks_B[0]
        assert call["carried"][i] == pytest.approx(1 / np.log2(1 + rank))
        compared += 1
    assert compared > 1
    assert trainer.state.log_history[0]["probes/seconds"] > 0


def test_nothing_is_computed_that_nobody_asks_for(make_reasoner, monkeypatch):
    monkeypatch.setattr(f"{PROBES}.LikelihoodRanker", lambda *_: pytest.fail("nothing is measured"))
    monkeypatch.setattr(f"{PROBES}.gather_object", lambda _: pytest.fail("nothing is shared"))
    trainer = make_reasoner(settings={"max_steps": 1})
    trainer.train()
    assert "probes/seconds" not in trainer.state.log_history[0]


def test_reasonings_are_swapped_over_processes(small_tokens, monkeypatch):
    marker = small_tokens.marker_id
    other = [Written("b", [7, marker], True), Written("b", [8, marker], True)]
    monkeypatch.setattr(f"{PROBES}.gather_object", lambda mine: [*other, *mine])

    class Second:
        num_processes, process_index = 2, 1

    probes = Probes([FaithfulReward()])
    rows = [Row("a:1", "a", [], "i1")] * 2
    assert probes.partners(rows, [[1, marker], [2]], marker, 2, Second()) == other
    alone = Probes([FaithfulReward()])
    assert alone.partners(rows, [[1, marker], [2]], marker, 2, Accelerator(cpu=True)) == [None, None]


def test_an_error_in_a_probe_stops_together(make_reasoner, monkeypatch):
    trainer = make_reasoner(reward=asks)

    def broken(*args, **kwargs):
        raise ValueError("no engine")

    monkeypatch.setattr(trainer._probes, "measure", broken)
    told = []
    monkeypatch.setattr("anyo_rl.training.reasoner.raise_together", lambda error, accelerator: told.append(str(error)))
    with pytest.raises(ValueError, match="no engine"):
        trainer.train()
    assert told == ["no engine"]


def test_written_items_have_no_such_columns():
    with pytest.raises(ValueError, match="a reward asks for swapped_gain, and an item that is written has none"):
        Probes([FaithfulReward()], written=True)


def test_a_column_that_is_not_made_is_named(make_reasoner):
    def my_reward(swaped_gain, **columns):
        return [0.0]

    with pytest.raises(RewardError, match="asks for column 'swaped_gain'"):
        make_reasoner(reward=my_reward).train()
