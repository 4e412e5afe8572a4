import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyo_rl.metrics import coverage, mean_metrics, per_user_metrics, target_ranks, top_items


def slow_rank(scores, target, excluded):
    """Sorts the row with the target behind whatever it ties with."""
    value = [-np.inf if np.isnan(s) else s for s in scores]
    order = [j for j in range(len(value)) if j == target or j not in excluded]
    return sorted(order, key=lambda j: (-value[j], j == target)).index(target) + 1


def random_case(seed, n_users=40, n_items=12):
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 6, size=(n_users, n_items)).astype(np.float32)  # few values: many ties
    scores[generator.random(scores.shape) < 0.1] = np.nan
    scores[generator.random(scores.shape) < 0.05] = -np.inf
    scores[generator.random(scores.shape) < 0.05] = np.inf
    excluded = [generator.integers(0, n_items, size=generator.integers(0, 5)).tolist() for _ in range(n_users)]
    return scores, generator.integers(0, n_items, size=n_users), excluded


def test_by_hand():
    scores = np.array([[0.1, 0.9, 0.5], [0.1, 0.9, 0.5], [0.1, 0.9, 0.5]])
    assert target_ranks(scores, [0, 1, 2]).tolist() == [3, 1, 2]
    assert target_ranks(scores, [0, 1, 2], excluded=[[1], [], [1, 1]]).tolist() == [2, 1, 1]
    assert target_ranks(scores, [0, 1, 2]).dtype == np.int64


def test_ties_count_against_the_target():
    assert target_ranks(np.zeros((1, 7)), [3]).tolist() == [7]
    assert target_ranks(np.array([[1.0, 2.0, 2.0, 2.0]]), [2]).tolist() == [3]


def test_the_target_is_never_excluded():
    scores = np.array([[3.0, 2.0, 1.0]])
    assert target_ranks(scores, [1], excluded=[[0, 1, 2]]).tolist() == [1]
    assert target_ranks(scores, [1], excluded=np.ones((1, 3), dtype=bool)).tolist() == [1]


def test_a_target_without_a_finite_score_is_last_of_those_ranked():
    for value in (np.nan, -np.inf):
        assert target_ranks(np.array([[1.0, value, np.nan, -np.inf]]), [1]).tolist() == [4]
        assert target_ranks(np.array([[1.0, value, np.nan, -np.inf]]), [1], excluded=[[0, 2]]).tolist() == [2]
    assert target_ranks(np.array([[np.inf, 1.0, np.nan]]), [1]).tolist() == [2]


@pytest.mark.parametrize("seed", range(5))
def test_ranks_against_a_sort(seed):
    scores, targets, excluded = random_case(seed)
    expected = [slow_rank(*row) for row in zip(scores, targets, excluded, strict=True)]
    mask = np.zeros(scores.shape, dtype=bool)
    for row, items in enumerate(excluded):
        mask[row, items] = True
    before = scores.copy(), mask.copy()
    assert target_ranks(scores, targets, excluded).tolist() == expected
    assert target_ranks(scores, targets, mask).tolist() == expected
    assert target_ranks(torch.tensor(scores), torch.tensor(targets), torch.tensor(mask)).tolist() == expected
    np.testing.assert_array_equal(scores, before[0])
    np.testing.assert_array_equal(mask, before[1])


def test_ndcg_and_ranks_against_scikit_learn():
    from sklearn.metrics import ndcg_score, top_k_accuracy_score

    generator = np.random.default_rng(0)
    scores = generator.permuted(np.tile(np.arange(30.0), (50, 1)), axis=1)  # no ties: there the conventions differ
    targets = generator.integers(0, 30, size=50)
    metrics = per_user_metrics(target_ranks(scores, targets))
    for k in (1, 5, 10, 20):
        assert metrics[f"ndcg@{k}"].mean() == pytest.approx(ndcg_score(np.eye(30)[targets], scores, k=k))
        accuracy = top_k_accuracy_score(targets, scores, k=k, labels=np.arange(30))
        assert metrics[f"hr@{k}"].mean() == pytest.approx(accuracy)


def test_reciprocal_rank_against_scikit_learn():
    from sklearn.metrics import label_ranking_average_precision_score

    scores, targets, _ = random_case(3)
    scores = np.nan_to_num(scores, nan=-9, neginf=-9, posinf=9)  # its ties count against the target too
    expected = label_ranking_average_precision_score(np.eye(scores.shape[1])[targets], scores)
    assert per_user_metrics(target_ranks(scores, targets))["mrr"].mean() == pytest.approx(expected)


def test_half_precision_and_whole_numbers():
    scores = torch.tensor([[1.0, 3.0, 2.0]])
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64):
        assert target_ranks(scores.to(dtype), [2]).tolist() == [2]
        assert top_items(scores.to(dtype), 2)[0] == [[1, 2]]
    close = torch.tensor([[1.0, 1.0 + 1e-12]], dtype=torch.float64)  # float32 would see a tie
    assert target_ranks(close, [1]).tolist() == [1]


def test_top_items_by_hand():
    scores = np.array([[0.5, 0.9, 0.5, 0.1], [np.nan, 1.0, -np.inf, 2.0]])
    assert top_items(scores, 2) == ([[1, 0], [3, 1]], [[0.9, 0.5], [2.0, 1.0]])
    assert top_items(scores, 99)[0] == [[1, 0, 2, 3], [3, 1]]
    assert top_items(scores, 3, excluded=[[1], [1, 3]])[0] == [[0, 2, 3], []]


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 15))
def test_top_items_agree_with_a_sort_and_with_the_ranks(seed, k):
    scores, targets, excluded = random_case(seed, n_users=5)
    items, values = top_items(scores, k, excluded)
    for row in range(len(scores)):
        value = np.nan_to_num(scores[row], nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        left = [j for j in range(len(value)) if j not in excluded[row] and value[j] > -np.inf]
        assert items[row] == sorted(left, key=lambda j: (-value[j], j))[:k]
        assert values[row] == [value[j] for j in items[row]]
    ranks = target_ranks(scores, targets, excluded)
    for row, target in enumerate(targets):  # whoever has rank k or better is shown, unless it was excluded
        if ranks[row] <= k and target not in excluded[row] and scores[row][target] > -np.inf:
            assert target in items[row]


def test_per_user_metrics_by_hand():
    metrics = per_user_metrics([1, 3, 11], cutoffs=(1, 10))
    assert list(metrics) == ["hr@1", "ndcg@1", "hr@10", "ndcg@10", "mrr"]
    assert metrics["hr@10"].tolist() == [1.0, 1.0, 0.0]
    assert metrics["ndcg@10"].tolist() == [1.0, 0.5, 0.0]
    assert metrics["mrr"].tolist() == [1.0, pytest.approx(1 / 3), pytest.approx(1 / 11)]
    assert mean_metrics(metrics)["ndcg@10"] == 0.5


def test_nobody_gives_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        means = mean_metrics(per_user_metrics([]))
        assert target_ranks(np.zeros((0, 5)), []).shape == (0,)
        assert top_items(np.zeros((0, 5)), 3) == ([], [])
        assert np.isnan(coverage([], 5))
    assert set(means) == {f"{name}@{k}" for name in ("hr", "ndcg") for k in (1, 5, 10, 20)} | {"mrr"}
    assert all(np.isnan(value) for value in means.values())


def test_coverage_by_hand():
    assert coverage([["a", "b"], ["b", "c"], []], n_items=6) == 0.5
    assert coverage([[]], n_items=6) == 0.0
    assert coverage(iter([["a"]]), n_items=1) == 1.0
    with pytest.raises(ValueError, match="at most n_items=1"):
        coverage([["a", "b"]], n_items=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros(3), [0]), "shape"),
        ((np.zeros((2, 3)), [0]), "one per row"),
        ((np.zeros((1, 3)), [3]), "index 3"),
        ((np.zeros((1, 3)), [-1]), "index -1"),
        ((np.zeros((1, 3)), [0], [[0], [1]]), "one per row"),
        ((np.zeros((1, 3)), [0], [[7]]), "index 7"),
        ((np.zeros((1, 3)), [0], np.zeros((1, 4), dtype=bool)), "mask"),
    ],
)
def test_wrong_input_is_an_error_that_says_what_was_found(arguments, message):
    with pytest.raises(ValueError, match=message):
        target_ranks(*arguments)
