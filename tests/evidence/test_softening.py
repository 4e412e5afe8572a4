"""Scores become probabilities by a temperature that makes validation targets likely."""

import numpy as np
import pytest

from anyo_rl.evidence.softening import Softening, choose_softening, log_softmax

ITEMS = np.tile(np.arange(20, dtype=np.int32), (4000, 1))


def drawn(scores_R_K, generator):
    """A target of each row from the softmax of its scores."""
    noise_R_K = generator.gumbel(size=scores_R_K.shape)
    return np.argmax(scores_R_K + noise_R_K, axis=1)


def test_log_probs_by_hand():
    # (7, 5) over their spread of 2 is (3.5, 2.5); over .5 it is (7, 5): 1 / (1 + e^-2) = .881
    found = Softening(0.5, by_spread=True).log_probs(np.array([[7.0, 5.0, -np.inf], [3.0, 3.0, 3.0]]))
    assert np.exp(found[0]) == pytest.approx([0.8808, 0.1192, 0.0], abs=1e-4)
    assert np.exp(found[1]) == pytest.approx([1 / 3] * 3)  # no spread to divide by
    assert np.exp(Softening(2.0).log_probs(np.array([[7.0, 5.0]]))[0]) == pytest.approx([0.7311, 0.2689], abs=1e-4)
    assert np.isneginf(Softening().log_probs(np.full((1, 2), -np.inf))).all()  # nothing to name


@pytest.mark.parametrize("temperature", [0.2, 3.0])
def test_the_temperature_that_targets_were_drawn_by_is_found(temperature):
    generator = np.random.default_rng(0)
    scores_R_K = generator.normal(size=ITEMS.shape)
    found = choose_softening(scores_R_K, ITEMS, drawn(scores_R_K / temperature, generator))
    assert not found.by_spread
    assert found.temperature == pytest.approx(temperature, rel=0.15)
    log_p_R_K = found.log_probs(scores_R_K)
    assert found.nll <= -log_p_R_K.max(axis=1).mean() + np.log(20)


def test_rows_of_other_sizes_are_divided_by_their_spread():
    generator = np.random.default_rng(1)
    shares_R_K = generator.random(ITEMS.shape)
    shares_R_K[:, 0], shares_R_K[:, 1] = 0.0, 1.0
    targets_R = drawn(shares_R_K / 0.25, generator)
    found = choose_softening(shares_R_K * generator.lognormal(0, 2, (len(ITEMS), 1)), ITEMS, targets_R)
    assert found.by_spread
    assert found.temperature == pytest.approx(0.25, rel=0.15)


def test_targets_that_are_in_no_list_say_nothing():
    scores_R_K, items_R_K = np.array([[2.0, 0.0], [2.0, 0.0], [1.0, 0.5]]), np.array([[4, 3], [3, 4], [1, 2]])
    asked = choose_softening(scores_R_K, items_R_K, np.array([3, 3, 9]))
    assert asked.temperature > 100  # first once, second once: nothing is known
    assert asked.nll == pytest.approx(np.log(2), abs=1e-3)
    assert choose_softening(scores_R_K, items_R_K, np.array([9, 9, 9])).temperature == 1


def test_log_softmax_by_hand():
    found = log_softmax(np.array([[np.log(3.0), 0.0, -np.inf], [-np.inf, -np.inf, -np.inf]]))
    np.testing.assert_allclose(np.exp(found), [[0.75, 0.25, 0], [0, 0, 0]], rtol=1e-6)
