import numpy as np
import pytest

from anyo_rl.data.sequences import HeldOut
from anyo_rl.students import ease
from anyo_rl.students.ease import Ease, EaseGram, EaseSettings, choose_ease


@pytest.fixture
def sequences():
    generator = np.random.default_rng(0)
    return [generator.integers(0, 12, size=generator.integers(1, 9)).tolist() for _ in range(40)]


def test_weights_are_those_of_ridge_regressions_without_the_item_itself(sequences):
    """Column j of EASE is the ridge regression of item j on all others."""
    users = np.zeros((40, 12))
    for row, items in enumerate(sequences):
        users[row, items] = 1.0
    found = EaseGram.of(sequences, 12).fit(EaseSettings(l2=3.0)).weights
    for j in range(12):
        others = [i for i in range(12) if i != j]
        x = users[:, others]
        expected = np.linalg.solve(x.T @ x + 3.0 * np.eye(11), x.T @ users[:, j])
        np.testing.assert_allclose(found[others, j], expected, atol=1e-6)
    assert not np.diag(found).any()


def test_scores_by_hand():
    weights = np.array([[0, 2, 0], [1, 0, 4], [0, 0, 0]], dtype=np.float32)
    assert Ease(weights, 1.0).scores([[0, 1], [], [1, 1]]).tolist() == [[1, 2, 4], [0, 0, 0], [1, 0, 4]]
    assert Ease(weights, 0.5).scores([[0, 1], [0, 1, 0]]).tolist() == [[1, 1, 4], [0.5, 2, 2]]


def test_one_inverse_for_each_l2(sequences, monkeypatch):
    made = []
    inverse = ease.linalg.inv
    monkeypatch.setattr(ease.linalg, "inv", lambda *args, **settings: made.append(1) or inverse(*args, **settings))
    grid = [EaseSettings(l2, decay) for l2 in (1.0, 10.0) for decay in (0.5, 1.0)]
    gram, validation = EaseGram.of(sequences, 12), HeldOut(sequences[:9], [0] * 9, [[]] * 9)
    choice = choose_ease(gram, grid, validation)
    assert len(made) == 2
    assert [settings for settings, _ in choice.trials] == grid
    np.testing.assert_array_equal(choice.fitted.scores(sequences), gram.fit(choice.settings).scores(sequences))


def test_wrong_input_is_an_error(monkeypatch):
    with pytest.raises(ValueError, match="l2=0"):
        EaseSettings(l2=0)
    with pytest.raises(ValueError, match=r"history_decay=1\.5"):
        EaseSettings(history_decay=1.5)
    monkeypatch.setattr(ease, "MOST_ITEMS", 3)
    with pytest.raises(ValueError, match="found 4 items, expected at most 3"):
        EaseGram.of([[0]], 4)
