import json
import warnings

import numpy as np
import pytest

from anyo_rl.metrics import Interval, bootstrap_interval, paired_interval


def test_against_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).random(300)
    ours = bootstrap_interval(values, resamples=5000)
    theirs = bootstrap((values,), np.mean, n_resamples=5000, method="percentile", rng=0).confidence_interval
    spread = values.std() / np.sqrt(300)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.n == 300
    assert abs(ours.low - theirs.low) < 0.1 * spread
    assert abs(ours.high - theirs.high) < 0.1 * spread


def test_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        interval = bootstrap_interval(generator.random(60), seed=trial, resamples=300)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_same_seed_same_interval_whatever_the_chunks(monkeypatch):
    values = np.random.default_rng(1).random(50)
    whole = bootstrap_interval(values, seed=3)
    assert whole == bootstrap_interval(values, seed=3)
    assert whole != bootstrap_interval(values, seed=4)
    monkeypatch.setattr("anyo_rl.metrics.intervals._CHUNK", 7)
    assert whole == bootstrap_interval(values, seed=3)


def test_a_wider_level_gives_a_wider_interval():
    values = np.random.default_rng(1).random(50)
    narrow, wide = bootstrap_interval(values, level=0.5), bootstrap_interval(values, level=0.99)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_pairing_sees_what_separate_intervals_hide():
    b = np.random.default_rng(1).random(200)
    a = b + 0.01  # a is always better, by far less than the spread over users
    paired = paired_interval(a, b)
    assert paired.mean == pytest.approx(0.01)
    assert paired.low > 0
    assert bootstrap_interval(b).high > bootstrap_interval(a).low
    assert paired_interval(b, b) == Interval(0.0, 0.0, 0.0, 200)


def test_few_users():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nobody, one = bootstrap_interval([]), bootstrap_interval([0.25])
    assert nobody.n == 0
    assert np.isnan(nobody.mean)
    assert nobody.as_json() == {"mean": None, "low": None, "high": None, "n": 0}  # JSON knows no NaN
    assert one == Interval(0.25, None, None, 1)
    assert bootstrap_interval([1.0, 1.0]) == Interval(1.0, 1.0, 1.0, 2)


def test_it_reads_well():
    interval = Interval(0.5, 0.25, 0.75, 4)
    assert str(interval) == "0.5000 [0.2500, 0.7500]"
    assert json.loads(json.dumps(interval.as_json())) == {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 4}


def test_wrong_input_is_an_error():
    with pytest.raises(ValueError, match="1 of 2 values"):
        bootstrap_interval([0.1, float("nan")])
    with pytest.raises(ValueError, match="same users"):
        paired_interval([0.1], [0.1, 0.2])
    with pytest.raises(ValueError, match="level=95"):
        bootstrap_interval([0.1, 0.2], level=95)
    with pytest.raises(ValueError, match="resamples=0"):
        bootstrap_interval([0.1, 0.2], resamples=0)
    with pytest.raises(ValueError, match="one value per user"):
        bootstrap_interval([[0.1, 0.2]])


def test_users_are_drawn_with_all_their_values():
    """Ten copies of each user's value are no more evidence than one."""
    values = np.random.default_rng(1).random(80)
    users = np.arange(80)
    once = bootstrap_interval(values, users)
    ten = bootstrap_interval(np.tile(values, 10), np.tile(users, 10))
    assert once == bootstrap_interval(values)
    assert (ten.mean, ten.low, ten.high) == pytest.approx((once.mean, once.low, once.high))
    assert ten.n == 800
    alone = bootstrap_interval(np.tile(values, 10))
    assert alone.high - alone.low < 0.5 * (ten.high - ten.low)


def test_the_mean_weighs_every_value_alike_however_users_are_drawn():
    # u0 has 1, 1, 0 and u1 has 0: two draws of u0 give 2/3, of u1 0, one of each 2/4.
    found = bootstrap_interval([1, 1, 0, 0], ["u0", "u0", "u0", "u1"])
    assert found.mean == 0.5
    assert (found.low, found.high) == (0.0, pytest.approx(2 / 3))
    assert paired_interval([1, 1, 0, 0], [0, 0, 0, 0], ["u0", "u0", "u0", "u1"]) == found
    with pytest.raises(ValueError, match="4 values of 2 users"):
        bootstrap_interval([1, 1, 0, 0], ["u0", "u1"])


def test_what_a_file_says_is_read_as_far_as_it_is_a_number():
    assert Interval.from_json(0.5) == Interval(0.5)
    assert Interval.from_json({"mean": 0.5, "low": None, "high": float("nan"), "n": 3}) == Interval(0.5, n=3)
    for nothing in ({"mean": float("nan")}, None, {}, True, "1", float("inf"), json.loads("NaN")):
        assert Interval.from_json(nothing) is None
    for value in (Interval(0.5), Interval(0.5, 0.25, 0.75, 4), Interval(0.5, 0.4, 0.6, 4, (0.4, 0.6))):
        assert Interval.from_json(json.loads(json.dumps(value.as_json()))) == value
    assert Interval(0.5).as_json() == 0.5
