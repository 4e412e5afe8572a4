"""Distances by hand, and their bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from anyo_rl.metrics.distances import NOISE, share_moved, share_of_change, total_variation

masses = arrays(np.float64, (3, 4), elements=st.floats(0.01, 1))


def test_total_variation_by_hand():
    found = total_variation([[0.5, 0.3, 0.2], [1, 0, 0]], [[0.2, 0.3, 0.5], [1, 0, 0]])
    assert found == pytest.approx([0.3, 0.0])
    assert total_variation(np.zeros((0, 3)), np.zeros((0, 3))).shape == (0,)
    with pytest.raises(ValueError, match=r"found distributions of shapes \(1, 2\) and \(1, 3\)"):
        total_variation([[1, 0]], [[1, 0, 0]])


@given(masses, masses)
def test_total_variation_is_a_distance_up_to_1(a, b):
    p, q = a / a.sum(axis=1, keepdims=True), b / b.sum(axis=1, keepdims=True)
    found = total_variation(p, q)
    assert ((found >= 0) & (found <= 1)).all()
    assert found == pytest.approx(total_variation(q, p))
    assert total_variation(p, p) == pytest.approx([0, 0, 0])


def test_whose_doing_a_change_is():
    found = share_of_change([0.3, 0.0, 0.2, 0.0, NOISE / 2], [0.1, 0.4, 0.0, 0.0, 0.4])
    assert found[:3] == pytest.approx([0.75, 0.0, 1.0])
    assert np.isnan(found[3])
    assert found[4] == 0.0


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_two_shares_are_all_of_it(own, other):
    one, two = share_of_change([own], [other])[0], share_of_change([other], [own])[0]
    assert np.isnan(one) == np.isnan(two)
    assert np.isnan(one) or one + two == pytest.approx(1)


def test_how_much_mass_goes_over():
    assert share_moved((0.7, 0.1), 0.4) == pytest.approx(0.5)
    assert share_moved((0.7, 0.1), 0.05) == 0.0  # it went elsewhere
    assert share_moved((0.7, 0.1), 0.9) == 1.0
    assert np.isnan(share_moved((0.2, 0.2), 0.4))
