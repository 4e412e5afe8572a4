import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward.rank import RankReward

COLUMNS = {"prompts": ["p"] * 3, "completions": ["c"] * 3, "completion_ids": [[1]] * 3, "user_id": ["u"] * 3}


@pytest.mark.parametrize(
    ("reward", "name", "expected"),
    [
        (RankReward(), "ndcg", [1.0, 0.5, 0.25]),
        (RankReward("mrr"), "mrr", [1.0, 1 / 3, 1 / 15]),
        (RankReward("hit", k=3), "hit@3", [1.0, 1.0, 0.0]),
        (RankReward("ndcg", k=3), "ndcg@3", [1.0, 0.5, 0.0]),
        (RankReward("mrr", k=1), "mrr@1", [1.0, 0.0, 0.0]),
        # 1 − ln(15)/ln(225) = 1/2
        (RankReward("log", n_items=225), "log", [1.0, 1 - math.log(3) / math.log(225), 0.5]),
    ],
)
def test_gains_by_hand(reward, name, expected):
    assert reward(rank=[1, 3, 15], **COLUMNS) == pytest.approx(expected)
    assert reward.__name__ == name
    assert all(type(value) is float for value in reward(rank=[1, 3, 15]))


@pytest.mark.parametrize("floor", [0.0, -0.5])
def test_no_rank_gets_the_floor(floor):
    assert RankReward(floor=floor)(rank=[None, 1, None]) == [floor, 1.0, floor]
    assert RankReward("log", floor=floor)(rank=[None], n_items=[10]) == [floor]


def test_log_reads_the_catalog_size_from_a_column_a_number_or_its_own_parameter():
    assert RankReward("log")(rank=[3, 3], n_items=[9, 81]) == pytest.approx([0.5, 0.75])
    assert RankReward("log")(rank=[3], n_items=9) == pytest.approx([0.5])
    assert RankReward("log", n_items=81)(rank=[3], n_items=[9]) == pytest.approx([0.75])
    assert RankReward("log")(rank=[1], n_items=[1]) == [1.0]
    with pytest.raises(ValueError, match="needs the catalog's size: a column n_items"):
        RankReward("log")(rank=[3])


def test_empty_batch_and_numpy_ranks():
    assert RankReward()(rank=[]) == []
    assert RankReward()(rank=[np.int64(3)]) == [0.5]


@pytest.mark.parametrize("wrong", [0, -1, float("nan")])
def test_an_impossible_rank_is_an_error(wrong):
    with pytest.raises(ValueError, match="1-based"):
        RankReward()(rank=[wrong])


@pytest.mark.parametrize("gain", ["ndcg", "mrr", "hit", "log"])
@given(ranks=st.lists(st.integers(1, 500), min_size=1, max_size=20), k=st.sampled_from([1, 10, 1000]))
def test_a_better_rank_never_gets_less(gain, ranks, k):
    values = RankReward(gain, k=k, n_items=500)(rank=sorted(ranks))
    assert values == sorted(values, reverse=True)
    assert all(0 <= value <= 1 for value in values)


def test_inverse_propensity_by_hand():
    ips = RankReward("ndcg", propensity_power=0.5, max_weight=3.0)
    # Half a gain for a quarter of the users counts double; a hundredth would count ten times, and is cut at 3.
    assert ips(rank=[3, 3, 3, None], propensity=[1.0, 0.25, 0.01, 0.01]) == [0.5, 1.0, 1.5, 0.0]
    assert ips.__name__ == "ndcg_ips"
    assert (ips.columns, ips.weighs_groups) == (("propensity",), True)
    assert (RankReward().columns, RankReward().weighs_groups) == ((), False)
    assert RankReward("hit", k=3, propensity_power=1.0)(rank=[2], propensity=[0.5]) == [2.0]
    assert RankReward(propensity_power=0.0)(rank=[3], propensity=[0.25]) == [0.5]


@given(st.integers(1, 100), st.floats(1e-6, 1), st.floats(0, 1), st.floats(1, 50))
def test_a_rarer_target_never_counts_less_and_weights_stay_in_their_range(rank, propensity, power, most):
    reward = RankReward(propensity_power=power, max_weight=most)
    plain, common, rare = (
        *RankReward()(rank=[rank]),
        *reward(rank=[rank] * 2, propensity=[propensity, propensity / 2]),
    )
    assert plain - 1e-12 <= common <= rare + 1e-12 <= plain * most + 2e-12


def test_a_propensity_that_is_missing_or_impossible_is_an_error():
    with pytest.raises(ValueError, match="needs the column propensity: recipes make it from the training split"):
        RankReward(propensity_power=1.0)(rank=[1])
    for wrong in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="expected above 0 and up to 1"):
            RankReward(propensity_power=1.0)(rank=[1], propensity=[wrong])


def test_pickle():
    copy = pickle.loads(pickle.dumps(RankReward("hit", k=10, floor=-1.0)))
    assert copy.__name__ == "hit@10"
    assert copy(rank=[10, 11, None]) == [1.0, 0.0, -1.0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"gain": "ndgc"}, r"unknown gain 'ndgc': choose one of ndcg, mrr, hit, log"),
        ({"gain": "hit"}, r"needs a cut-off: name it 'hit@10'"),
        ({"k": 0}, r"k must be 1 or more, found 0"),
        ({"floor": math.nan}, r"floor must be a finite number"),
        ({"propensity_power": 1.5}, r"propensity_power must be 0 to 1, found 1.5"),
        ({"max_weight": 0.5}, r"max_weight must be 1 or more, found 0.5"),
        ({"max_weight": math.inf}, r"max_weight must be 1 or more, found inf"),
    ],
)
def test_clear_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        RankReward(**kwargs)
