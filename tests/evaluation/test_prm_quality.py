import json
import math
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.prm_quality import (
    auc,
    calibration,
    calibration_svg,
    markdown,
    quality,
    rank_correlation,
    states,
    within,
)
from anyo_rl.metrics.intervals import Interval
from anyo_rl.reasoning.rows import sample_texts
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens


@pytest.fixture
def labels(small_tokens) -> pl.DataFrame:
    """Two paths of one example that begin alike, and one of another."""
    texts = [["toys", "mug"], ["toys", "Alien"], ["lamp"]]
    return pl.DataFrame(
        {
            "example_id": ["u0:1", "u0:1", "u1:1"],
            "user_id": ["u0", "u0", "u1"],
            "steps": texts,
            "token_ids": [small_tokens.reasoning_ids(steps) for steps in texts],
            "step_values": [[0.2, 0.4, 1.0], [0.2, 0.4, 0.1], [0.3, 0.6]],
        }
    )


SCORES = [np.array([0.3, 0.5, 0.9]), np.array([0.3, 0.5, 0.2]), np.array([0.6, 0.7])]


def test_what_paths_have_in_common_counts_once(labels, small_tokens):
    found = states(labels, SCORES, small_tokens, None)
    assert [(s.example, s.step, s.value, s.score) for s in found] == [
        *(("u0:1", 0, 0.2, 0.3), ("u0:1", 1, 0.4, 0.5), ("u0:1", 2, 1.0, 0.9), ("u0:1", 2, 0.1, 0.2)),
        *(("u1:1", 0, 0.3, 0.6), ("u1:1", 1, 0.6, 0.7)),
    ]
    assert {(s.example, s.first_value, s.first_score) for s in found} == {("u0:1", 0.2, 0.3), ("u1:1", 0.3, 0.6)}


def test_quality_by_hand(labels, small_tokens):
    found = quality(labels, SCORES, small_tokens, None)
    assert (found.n_examples, found.n_paths, found.n_states) == (2, 3, 6)
    values, scores = [0.2, 0.4, 1.0, 0.1, 0.3, 0.6], [0.3, 0.5, 0.9, 0.2, 0.6, 0.7]
    assert found.agreement.spearman == pytest.approx(spearmanr(values, scores).statistic)
    assert found.mse == pytest.approx((4 * 0.01 + 0.09 + 0.01) / 6)
    # Both examples' states are in the right order.
    within_example, within_step = found.agreement.within_example, found.agreement.within_step
    assert within_example.spearman.mean == pytest.approx(1.0)
    u0 = np.subtract([0.2, 0.4, 1.0, 0.1], 0.425) - np.subtract([0.3, 0.5, 0.9, 0.2], 0.475)
    u1 = np.array([-0.15, 0.15]) - np.array([-0.05, 0.05])
    assert within_example.mse == pytest.approx((np.sum(u0**2) + np.sum(u1**2)) / 6)
    # After the same number of steps only u0's second ones differ: 1.0 and 0.1.
    assert within_step.spearman == Interval(pytest.approx(1.0), n=1)
    assert within_step.variance == pytest.approx(2 * 0.45**2 / 4)
    # Above V_0: .4, 1.0 and .6, by .2, .6 and .1; below: .1, by −.1.
    assert found.auc_above_start == 1.0
    assert found.auc_true_intent is None
    assert found.n_intents == 0
    assert "| Spearman within an example | 1.0000 | 2 groups" in markdown(found)
    assert "the intent is true" not in markdown(found)
    ElementTree.fromstring(calibration_svg(found))


def test_quality_is_written_with_an_agreement_beside_its_errors(labels, small_tokens):
    found = quality(labels, SCORES, small_tokens, None)
    written = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert written == found.as_json()
    assert list(written) == [
        *("n_examples", "n_paths", "n_states", "mse", "variance", "spearman", "within_example", "within_step"),
        *("true_value", "auc_above_start", "n_intents", "true_intents", "auc_true_intent"),
        *("auc_true_intent_of_values", "auc_true_intent_of_world"),
        *("n_intent_lines", "auc_true_line", "auc_true_line_of_values", "calibration"),
    ]
    assert written["within_step"]["spearman"] == {"mean": pytest.approx(1.0), "low": None, "high": None, "n": 1}
    assert len(written["calibration"]["deciles"]) == 6
    assert list(written["calibration"]["deciles"][0]) == ["n", "score", "value"]


def test_states_without_a_value_are_left_out(labels, small_tokens):
    """A judge gave them none."""
    gaps = labels.with_columns(step_values=pl.Series([[math.nan, 0.4, 1.0], [math.nan, 0.4, 0.1], [0.3, 0.6]]))
    found = quality(gaps, SCORES, small_tokens, None)
    assert found.n_states == 5
    assert found.auc_above_start is None  # u1:1 alone has a first value
    assert json.loads(json.dumps(found.as_json(), allow_nan=False)) == found.as_json()


def slow_auc(scores, positive) -> float:
    above = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    return float(np.mean(above))


@pytest.mark.parametrize("seed", range(3))
def test_auc_is_that_of_pairs_and_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(0, 6, 40) / 5, rng.random(40) < 0.3
    assert auc(scores, positive) == pytest.approx(slow_auc(scores, positive))
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))


def test_nobody_can_tell_where_there_is_nothing_to_tell():
    assert auc([0.1, 0.2], [True, True]) is None
    assert auc([], []) is None
    assert rank_correlation([0.5, 0.5], [0.1, 0.2]) is None
    assert rank_correlation([0.5, 0.6], [0.1, 0.1]) == 0.0
    assert rank_correlation([0.5], [0.1]) is None


def test_within_groups_only_their_own_order_counts(labels, small_tokens):
    """A PRM that knows the example and nothing of its steps has no rank correlation there, however good overall."""
    flat = [np.full(3, 0.1), np.full(3, 0.1), np.full(2, 0.9)]
    found = within(states(labels, flat, small_tokens, None), same_step=False, seed=0)
    assert found.spearman.mean == 0.0
    assert found.mse == pytest.approx(found.variance)


def test_calibration_by_hand():
    values, scores = [0.0, 1.0, 1.0, 0.5], [0.1, 0.3, 0.8, 0.6]
    found = calibration(values, scores, n_bins=2)
    assert [row.n for row in found.deciles] == [2, 2]
    assert [row.score for row in found.deciles] == pytest.approx([0.2, 0.7])
    assert [row.value for row in found.deciles] == pytest.approx([0.5, 0.75])
    assert found.ece == pytest.approx((0.3 + 0.05) / 2)
    assert len(calibration([0.5], [0.4]).deciles) == 1


def test_the_toy_world_knows_which_intents_are_true():
    task = load_task(DataArguments(toy_users=120, toy_categories=5))
    tokens = Tokens.of(train_tokenizer(sample_texts(task), 400))
    row = task.split("validation").row(0, named=True)
    true = list(task.world.rationale(row["user_id"], task.position(row["example_id"])))
    wrong = [*true[:-1], "style: coral" if true[-1] != "style: coral" else "style: oak"]
    silent = true[:2]
    paths = [true, wrong, silent]
    labels = pl.DataFrame(
        {
            **{name: [row[name]] * 3 for name in ("example_id", "user_id")},
            "steps": paths,
            "token_ids": [tokens.reasoning_ids(steps) for steps in paths],
            "step_values": [[0.1, 0.2, 0.3, 0.4, 0.5, 0.9], [0.1, 0.2, 0.3, 0.4, 0.5, 0.2], [0.1, 0.2, 0.2]],
        }
    )
    scores = [np.array(values) for values in labels["step_values"].to_list()]
    found = states(labels, scores, tokens, task)
    # An intent is stated with the last of its three lines.
    assert [(s.step, s.true_intent) for s in found if s.true_intent is not None] == [(5, True), (5, False)]
    assert [(s.step, s.true_line) for s in found if s.true_line is not None] == [
        *((3, True), (4, True), (5, True)),
        (5, False),
    ]
    result = quality(labels, scores, tokens, task)
    assert (result.n_intents, result.true_intents) == (2, 0.5)
    assert (result.auc_true_intent, result.auc_true_intent_of_values) == (1.0, 1.0)
    assert not math.isnan(result.auc_true_line)
    assert "| AUC: the intent is true | 1.0000 | 2 stated, 50% true |" in markdown(result)
