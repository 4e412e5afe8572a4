"""AUC against scikit-learn's, by hand, and at its edges."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from anyo_rl.metrics.auc import auc, bootstrap_auc

ROWS = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=40)


def test_pairs_are_counted_by_hand():
    # Liked .9 and .4, not liked .2 and .4: (.9, .2), (.9, .4), (.4, .2) in order, and half of (.4, .4).
    assert auc([0.9, 0.2, 0.4, 0.4], [1, 0, 1, 0]) == 3.5 / 4
    assert auc([0.1, 0.9], [True, False]) == 0.0
    assert auc([0.5] * 6, [True, False] * 3) == 0.5


@given(ROWS)
def test_it_is_that_of_scikit_learn(rows):
    scores, liked = [row[0] for row in rows], [row[1] for row in rows]
    if len(set(liked)) < 2:
        assert np.isnan(auc(scores, liked))
    else:
        assert auc(scores, liked) == pytest.approx(roc_auc_score(liked, scores))


def test_users_are_drawn_with_all_of_their_rows():
    scores, liked = [0.9, 0.1, 0.8, 0.2], [True, False, True, False]
    assert bootstrap_auc(scores, liked, ["a", "a", "b", "b"], n_draws=50) == (1.0, 1.0)
    rng = np.random.default_rng(0)
    noise, labels = rng.random(400), rng.random(400) < 0.5
    low, high = bootstrap_auc(noise, labels, [f"u{i}" for i in range(400)], n_draws=200)
    assert low < auc(noise, labels) < high
    assert high - low < 0.15
    assert all(map(np.isnan, bootstrap_auc([], [], [], n_draws=5)))
    assert all(map(np.isnan, bootstrap_auc([1.0], [True], ["a"], n_draws=5)))


def test_scores_must_be_numbers_one_for_each_row():
    with pytest.raises(ValueError, match="NaN"):
        auc([np.nan, 1.0], [True, False])
    with pytest.raises(ValueError, match="one of each"):
        auc([1.0], [True, False])
