import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.training.loop import guard_rails
from anyo_rl.training.loop.guard_rails import (
    EVALUATION,
    GuardRails,
    flat_groups,
    reward_correlations,
    stretches,
    watching,
)
from tests.training.helpers import G

NAN = math.nan
HEALTHY = {"entropy": 2.0, "guard/flat_groups": 0.1, "parsed_share": 0.9, "reward": 0.3}


def run(rails, rows, step=0):
    """Logs rows as a trainer does; returns what each was logged as."""
    state = SimpleNamespace(log_history=[], global_step=step, is_world_process_zero=True)
    rails.on_train_begin(None, state, None)
    seen = []
    for row in rows:
        state.global_step += 1
        state.log_history.append(dict(row))
        logs = dict(row)
        rails.on_log(None, state, None, logs=logs)
        seen.append(logs)
    return seen


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_correlations_by_hand():
    rewards = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 1.0], [2.0, 1.0, 1.0], [NAN, 9.0, 1.0]])
    # Without the last row: (0, 1, 2) and (0, 2, 1) have covariance 1 over variances 2 and 2.
    found = reward_correlations(rewards, ["a", "b", "c"])
    assert list(found) == ["rewards/corr/a~b", "rewards/corr/a~c", "rewards/corr/b~c"]
    assert found["rewards/corr/a~b"] == pytest.approx(0.5)
    assert math.isnan(found["rewards/corr/a~c"])
    assert reward_correlations(rewards[:, :1], ["a"]) == {}
    assert math.isnan(reward_correlations(torch.full((3, 2), NAN), ["a", "b"])["rewards/corr/a~b"])


def test_groups_without_spread_by_hand():
    rewards = torch.tensor([0.5, 0.5, 0.5, 0.4, NAN, NAN, NAN, 1.0])
    assert flat_groups(rewards, 2) == 0.75
    assert flat_groups(rewards, 4) == 0.5
    assert flat_groups(torch.tensor([0.1 + 0.2, 0.3]), 2) == 1.0  # rounding is no spread


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=3, max_size=12))
def test_correlations_are_numpys(pairs):
    rewards = np.array(pairs)
    (value,) = reward_correlations(torch.tensor(pairs, dtype=torch.float64), ["a", "b"]).values()
    if rewards.std(0).min() > 1e-3:
        assert value == pytest.approx(np.corrcoef(rewards.T)[0, 1], abs=1e-6)
    assert math.isnan(value) or -1 <= value <= 1


def test_a_healthy_run_says_nothing(caplog):
    run(GuardRails(), [HEALTHY] * 20 + [{EVALUATION: 0.1}] + [HEALTHY] * 20)
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"entropy": 0.1}, "the policy has stopped exploring: its entropy is 0.1, and was 2 at the start"),
        ({"guard/flat_groups": 0.95}, "there is nothing to learn from 95% of the prompts"),
        ({"parsed_share": 0.3}, "of the completions have no marker"),
    ],
)
def test_each_collapse_is_told_once_in_words(caplog, bad, words):
    rows = [HEALTHY] * 5 + [HEALTHY | bad] * 2
    run(GuardRails(), rows)
    assert warnings(caplog) == []  # two bad steps are chance
    run(GuardRails(), [*rows, *[HEALTHY | bad] * 10])
    (told,) = warnings(caplog)
    assert words in told


def test_the_limits_are_exclusive(caplog):
    run(GuardRails(), [{"guard/flat_groups": 0.9, "parsed_share": 0.5, "entropy": 0.0}] * 10)
    assert warnings(caplog) == []


def test_reward_up_and_validation_down(caplog):
    def evaluations(rewards, scores):
        rows = [{EVALUATION: 0.9}]  # before training: no reward led to it
        for reward, score in zip(rewards, scores, strict=True):
            rows += [{"reward": reward - 0.01}, {"reward": reward + 0.01}, {EVALUATION: score}]
        return rows

    assert stretches(evaluations([0.2], [0.5])) == [(None, 0.9), (pytest.approx(0.2), 0.5)]
    run(GuardRails(), evaluations([0.1, 0.2, 0.3], [0.5, 0.4, 0.4]))  # no fall the second time
    run(GuardRails(), evaluations([0.1, 0.2, 0.2], [0.5, 0.4, 0.3]))  # no rise
    run(GuardRails(), evaluations([0.1, 0.2], [0.5, 0.4]))  # too few
    assert warnings(caplog) == []
    seen = run(GuardRails(), evaluations([0.5, 0.1, 0.2, 0.3, 0.4], [0.3, 0.5, 0.4, 0.3, 0.2]))
    (told,) = warnings(caplog)
    assert "reward rises and validation falls, over the last 3 evaluations: reward 0.1000 to 0.3000" in told
    gaps = [row["guard/reward_gap"] for row in seen if "guard/reward_gap" in row]
    assert gaps == pytest.approx([0.2, -0.4, -0.2, 0.0, 0.2])


def test_the_drift_of_the_length():
    seen = run(GuardRails(), [{"completions/mean_length": value} for value in (20.0, 10.0, 50.0)])
    assert [row["guard/length_ratio"] for row in seen] == [1.0, 0.5, 2.5]


def test_warnings_are_kept_for_the_report_and_not_repeated(tmp_path, caplog):
    file = tmp_path / "warnings.txt"
    bad = [HEALTHY | {"parsed_share": 0.1}] * 6
    run(GuardRails(file), bad)
    assert file.read_text().startswith("unparseable step 5: 90% of the completions")
    caplog.clear()
    run(GuardRails(file), bad, step=50)  # goes on from a checkpoint
    assert warnings(caplog) == []
    run(GuardRails(file), [HEALTHY])  # starts anew
    assert not file.exists()


def test_other_processes_are_silent(caplog):
    rails = GuardRails()
    state = SimpleNamespace(log_history=[{"parsed_share": 0.0}] * 9, global_step=9, is_world_process_zero=False)
    rails.on_log(None, state, None, logs={"parsed_share": 0.0})
    assert warnings(caplog) == []


def test_a_trainer_logs_correlations_and_drifts(make_reasoner, tmp_path):
    trainer = make_reasoner(
        reward=[
            lambda completion_ids, **_: [float(len(ids)) for ids in completion_ids],
            lambda completion_ids, **_: [-2.0 * len(ids) for ids in completion_ids],
        ],
        settings={"max_steps": 1, "per_device_train_batch_size": 4 * G},
        callbacks=watching(tmp_path, "metrics.jsonl", "grpo"),
    )
    trainer.train()
    first = trainer.state.log_history[0]
    names = trainer.reward_func_names
    assert first[f"rewards/corr/{names[0]}~{names[1]}"] == pytest.approx(-1.0)
    assert 0 <= first["ungrounded_share"] < 1
    assert 0 <= first["guard/flat_groups"] < 1
    assert '"guard/length_ratio": 1.0' in (tmp_path / "metrics.jsonl").read_text()


def test_names_that_the_checks_read_are_logged():
    assert guard_rails.EVALUATION == "eval_ndcg@10"
