"""Fusion by hand, and against a slow loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.evidence.candidates import NONE, ranks_at
from anyo_rl.evidence.fusion import choose_alpha, fuse

INF = np.inf


def slowly(log_p_G_K, log_scores_K, alpha):
    """The same, candidate by candidate and path by path."""
    total = [0.0] * len(log_scores_K)
    for log_p_K in log_p_G_K:
        weights = [
            0.0 if s == -INF else np.exp(s + (alpha * p if alpha else 0.0))
            for p, s in zip(log_p_K, log_scores_K, strict=True)
        ]
        for k, weight in enumerate(weights):
            total[k] += weight / (sum(weights) or 1.0) / len(log_p_G_K)
    return total


@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from([0.0, 0.3, 1.0, 2.0]), st.integers(0, 2**16))
def test_a_slow_loop_says_the_same(n_paths, n_candidates, alpha, seed):
    rng = np.random.default_rng(seed)
    log_p = rng.normal(size=(4, n_paths, n_candidates))
    log_scores = np.where(rng.random((4, n_candidates)) < 0.3, -INF, rng.normal(size=(4, n_candidates)))
    found = fuse(log_p, log_scores, alpha)
    for row in range(4):
        np.testing.assert_allclose(np.exp(found[row]), slowly(log_p[row], log_scores[row], alpha), atol=1e-12)
    # A constant for each path is none of the candidates' business: they compete among themselves.
    np.testing.assert_allclose(fuse(log_p + rng.normal(size=(4, n_paths, 1)), log_scores, alpha), found, atol=1e-9)


def test_two_paths_by_hand():
    evidence = np.log([[0.5, 0.3, 0.2]])
    paths = np.log([[[0.2, 0.4, 0.1], [0.1, 0.1, 0.1]]])
    # The first path: .10, .12, .02 of .24; the second says nothing: .5, .3, .2.
    expected = [(0.10 / 0.24 + 0.5) / 2, (0.12 / 0.24 + 0.3) / 2, (0.02 / 0.24 + 0.2) / 2]
    np.testing.assert_allclose(np.exp(fuse(paths, evidence, 1.0))[0], expected)
    np.testing.assert_allclose(np.exp(fuse(paths, evidence, 0.0)), np.exp(evidence))
    ruled_out = np.array([[[-INF, 0.0, 0.0]]])
    np.testing.assert_allclose(np.exp(fuse(ruled_out, evidence, 0.0)), np.exp(evidence))
    np.testing.assert_allclose(np.exp(fuse(ruled_out, evidence, 0.5))[0], [0.0, 0.6, 0.4])


def test_equal_candidates_stand_as_evidence_named_them():
    log_p = np.array([[0.0, 1.0, 1.0, -INF]])
    assert [int(ranks_at(log_p, np.array([place]))[0]) for place in range(4)] == [3, 1, 2, 4]


def test_alpha_is_the_smallest_of_the_best():
    evidence = np.log(np.array([[0.5, 0.3, 0.2]] * 3))
    # The teacher knows better in the first example, and the third target is no candidate.
    teacher = np.log(np.array([[[0.01, 0.98, 0.01]], [[0.4, 0.3, 0.3]], [[0.3, 0.4, 0.3]]]))
    place = np.array([1, 0, NONE])
    choice = choose_alpha(teacher, evidence, place, [1.0, 0.0, 0.5])
    assert [alpha for alpha, _, _ in choice.trials] == [0.0, 0.5, 1.0]
    assert [value for _, value, _ in choice.trials] == pytest.approx([(1 / np.log2(3) + 1) / 3, 2 / 3, 2 / 3])
    # At 0 the targets have .3 and .5; at 1 .294 of .301 and .2 of .35.
    nats = [nll for _, _, nll in choice.trials]
    assert nats[0] == pytest.approx(-np.log([0.3, 0.5]).mean())
    assert nats[2] == pytest.approx(-np.log([0.294 / 0.301, 0.2 / 0.35]).mean())
    assert choice.alpha == 0.5
    assert choose_alpha(teacher[2:], evidence[2:], place[2:]).alpha == 0.0


def test_alpha_is_no_larger_than_is_the_likeliest():
    """A teacher that is right in two of three examples, and in the third as sure of the wrong item."""
    evidence = np.log(np.full((3, 2), 0.5))
    sure = [0.999, 0.001]
    teacher = np.log(np.array([[sure], [sure], [sure[::-1]]]))
    evidence[:2] = np.log([0.2, 0.8])
    choice = choose_alpha(teacher, evidence, np.zeros(3, int), [0.0, 0.2, 0.5])
    values, nats = ([trial[column] for trial in choice.trials] for column in (1, 2))
    assert values[2] == max(values)  # only with .5 are the first two brought up
    assert nats[1] == min(nats)
    assert choice.alpha == 0.0
