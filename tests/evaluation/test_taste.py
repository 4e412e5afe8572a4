"""Whose taste has shifted, against numbers worked out by hand and a plain loop."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.evaluation.taste import taste_kept

# 0 and 1 are chosen by the same two users, 2 by another one and one of them, 3 by nobody.
TRAIN = [[0, 1], [1, 0, 2], [2]]


def test_the_mean_cosine_of_last_and_earlier_items():
    found = taste_kept(TRAIN, 4, [[0, 1], [0, 2], [2, 0, 1], [0, 0], [3, 0], [0], [], [0, 3]], last=1)
    half = 1 / np.sqrt(2 * 2)
    np.testing.assert_allclose(found, [1, half, (half + 1) / 2, 1, np.nan, np.nan, np.nan, np.nan])
    np.testing.assert_allclose(taste_kept(TRAIN, 4, [[2, 3, 0, 1]], last=2), [half])
    assert len(taste_kept(TRAIN, 4, [])) == 0


ITEMS = st.lists(st.integers(0, 5), max_size=7)


@given(st.lists(ITEMS, min_size=1, max_size=5), st.lists(ITEMS, min_size=1, max_size=4), st.integers(1, 3))
def test_as_a_plain_loop_has_it(train, pasts, last):
    users = [{n for n, row in enumerate(train) if item in row} for item in range(6)]

    def cosine(a, b):
        return len(users[a] & users[b]) / np.sqrt(len(users[a]) * len(users[b]))

    expected = []
    for past in pasts:
        now, before = ([i for i in part if users[i]] for part in (past[-last:], past[:-last]))
        pairs = [cosine(a, b) for a in now for b in before]
        expected.append(np.mean(pairs) if pairs else np.nan)
    np.testing.assert_allclose(taste_kept(train, 6, pasts, last), expected, atol=1e-12)
