import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.metrics import hit, log_gain, mrr, ndcg

ranks_and_size = st.integers(1, 5000).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(1, n), st.integers(1, n), st.none() | st.integers(1, 2 * n))
)


def test_by_hand():
    assert ndcg(1) == 1.0
    assert ndcg(2) == pytest.approx(0.6309297535714575)
    assert ndcg(3) == 0.5
    assert ndcg(7) == pytest.approx(1 / 3)
    assert mrr(4) == 0.25
    assert [hit(10, 10), hit(11, 10)] == [1.0, 0.0]
    # 100 items: rank 10 is half of the way from the first to the last on a log scale.
    assert [log_gain(1, 100), log_gain(100, 100)] == [1.0, 0.0]
    assert log_gain(10, 100) == pytest.approx(0.5)


def test_cut_off_includes_k_and_may_exceed_the_catalog():
    assert ndcg([10, 11], k=10).tolist() == [pytest.approx(1 / math.log2(11)), 0.0]
    assert mrr([2, 3], k=2).tolist() == [0.5, 0.0]
    assert log_gain([2, 3], n_items=8, k=2).tolist() == [pytest.approx(2 / 3), 0.0]
    assert hit([1, 3], k=1000).tolist() == [1.0, 1.0]


@given(ranks_and_size)
def test_a_better_rank_never_lowers_a_gain(case):
    n_items, first, second, k = case
    better, worse = min(first, second), max(first, second)
    gains = [lambda r: ndcg(r, k), lambda r: mrr(r, k), lambda r: hit(r, k or 1), lambda r: log_gain(r, n_items, k)]
    for gain in gains:
        assert 0.0 <= gain(worse) <= gain(better) <= 1.0


def test_scalars_give_floats_and_arrays_keep_their_shape():
    assert type(ndcg(np.int64(3))) is float
    assert type(hit(3, 5)) is float
    assert ndcg(np.ones((2, 3), dtype=np.int64)).shape == (2, 3)
    assert ndcg([]).shape == (0,)


def test_an_item_that_is_not_ranked_has_no_gain():
    assert [ndcg(math.inf), mrr(math.inf), hit(math.inf, 10), log_gain(math.inf, 50)] == [0.0] * 4
    assert log_gain(51, 50) == 0.0


def test_a_catalog_of_one_item():
    assert log_gain(1, 1) == 1.0
    assert log_gain(2, 1) == 0.0


@pytest.mark.parametrize("rank", [0, -1, float("nan"), [1, 0]])
def test_what_is_not_a_rank_is_an_error(rank):
    for gain in (ndcg, mrr, lambda r: hit(r, 5), lambda r: log_gain(r, 10)):
        with pytest.raises(ValueError, match="1-based"):
            gain(rank)


def test_settings_out_of_range_are_errors():
    with pytest.raises(ValueError, match="cut-off"):
        ndcg(1, k=0)
    with pytest.raises(ValueError, match="n_items=0"):
        log_gain(1, 0)
