"""The rule by which an opponent counts as trained to the end."""

import json

import pytest
from transformers import TrainerControl, TrainerState

from anyo_rl.evaluation.convergence import Rule, Training, not_converged, read_trainings
from anyo_rl.evaluation.summary import Summary
from anyo_rl.evaluation.table import console_table, markdown_table
from anyo_rl.metrics.intervals import Interval
from anyo_rl.training.loop.until import Until

RIVALS = {"sft": Training(800, 400, 1e12), "grpo": Training(200, 100, 2e12)}


@pytest.mark.parametrize(
    ("direct", "reasons"),
    [
        (Training(8000, 4000, 6e12), []),
        (Training(7000, 4000, 6e12), ["best at update 4,000 of 7,000, and has to stay below that for 3,500 more"]),
        (Training(5000, 2000, 6e12), []),  # 3,000 are enough where half is less
        (Training(4999, 2000, 6e12), ["for 3,000 more"]),
        (Training(1000, 1000, 1.5e12), ["best at update 1,000 of 1,000", "FLOPs are 0.5 times those of its rival"]),
        (Training(8000, 4000, None), ["FLOPs are unknown"]),
        (Training(8000, 0, 6e12), []),
        (Training(1000, None, 6e12), ["not on record"]),
    ],
)
def test_the_rule_by_hand(direct, reasons):
    found = not_converged({"direct": direct, **RIVALS})
    if not reasons:
        assert found is None
    for reason in reasons:
        assert reason in found


def test_controls_are_no_rivals():
    """A control has FLOPs of its own, which no opponent has to match twice."""
    assert not_converged({"direct": Training(8000, 4000, 6e12), **RIVALS, "filler": Training(1000, 500, 9e12)}) is None


@pytest.mark.parametrize(("updates", "flops", "stops"), [(600, 2e9, False), (800, 1e9, False), (800, 2e9, True)])
def test_training_ends_when_the_rule_is_met(updates, flops, stops):
    """Best at update 400 of 800, and twice the rival's FLOPs: only both end it."""
    history = [
        {"step": 400, "eval_ndcg@10": 0.3},
        {"step": 500, "loss": 1.0, "flops": flops},
        {"step": updates, "eval_ndcg@10": 0.2},
    ]
    control = TrainerControl()
    Until(Rule(100, 0.5, 2.0), 1e9).on_evaluate(None, TrainerState(log_history=history), control)
    assert control.should_training_stop is stops


def test_a_log_is_read_as_far_as_it_can_be(tmp_path):
    assert read_trainings(tmp_path / "none.jsonl") == {}
    rows = [
        {"stage": "direct", "step": 20, "loss": 1.0, "flops": 1e9},
        {"stage": "direct", "step": 100, "eval_ndcg@10": 0.3},
        {"stage": "direct", "step": 200, "eval_ndcg@10": 0.4},
        {"stage": "direct", "step": 300, "eval_ndcg@10": 0.4, "flops": 3e9},
        {"stage": "grpo", "step": 50, "flops": 2e9},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '[1]\n{"stage": "direct", "st')
    found = read_trainings(file)
    assert found == {"direct": Training(300, 200, 3e9, 0.4), "grpo": Training(50, None, 2e9)}
    assert "best at update 200 of 300" in not_converged(found)
    assert not_converged({}) == "its training is not on record"


def test_a_table_says_so():
    stages = {"direct": {"plain": {"ndcg@10": Interval(0.3)}}, "grpo": {"greedy": {"ndcg@10": Interval(0.4)}}}
    summary = Summary(stages=stages, not_converged={"direct": "validation was best at update 9 of 9"})
    for text in (markdown_table(summary), console_table(summary)):
        assert "direct (not converged)" in text
        assert "another is ahead of it says little: validation was best at update 9 of 9." in " ".join(text.split())
    assert Summary.from_json(summary.as_json()) == summary
    assert "converged" not in markdown_table(Summary(stages=stages))
