import numpy as np
import pytest

from anyo_rl.encoders.collaborative import collaborative_vectors


def test_items_of_the_same_users_lie_close_together():
    sequences = [[0, 1, 2, 0], [1, 2], [0, 2], [3, 4], [4, 3, 3], []]
    vectors = collaborative_vectors(sequences, 6, dim=2)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors[:5], axis=1), 1, atol=1e-6)
    assert not vectors[5].any()  # nobody chose it
    cosines = vectors[:5] @ vectors[:5].T
    assert cosines[:3, :3].min() > 0.5 > 0 > cosines[:3, 3:].max()
    np.testing.assert_array_equal(vectors, collaborative_vectors(sequences, 6, dim=2))


def test_a_cut_off_decomposition_is_the_best_of_the_whole_one():
    random = np.random.default_rng(0)
    sequences = [random.choice(20, size=random.integers(2, 8)).tolist() for _ in range(30)]
    chosen = np.zeros((30, 20))
    for user, items in enumerate(sequences):
        chosen[user, items] = 1
    chosen /= np.sqrt(np.maximum(chosen.sum(1, keepdims=True), 1) * np.maximum((chosen > 0).sum(0), 1))
    _, values, right = np.linalg.svd(chosen, full_matrices=False)
    for dim in (3, 20):
        expected = right[:dim].T * values[:dim]
        expected -= expected.mean(0)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        found = collaborative_vectors(sequences, 20, dim)
        assert found.shape == (20, dim)
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


def test_without_events_there_is_nothing_to_learn():
    with pytest.raises(ValueError, match="no training event"):
        collaborative_vectors([[], []], 3)
