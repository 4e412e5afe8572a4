"""Items that training hardly met, by numbers."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict

from anyo_rl.students.cold import RIDGES, predicted, warm_up
from anyo_rl.students.sasrec import SASRec


def test_the_strength_is_the_best_by_leave_one_out():
    rng = np.random.default_rng(0)
    given, known = rng.normal(size=(30, 6)), np.arange(30) < 24
    items = given @ rng.normal(size=(6, 3)) + rng.normal(size=(30, 3)) + 2.0
    scale = ((given[known] - given[known].mean(0)) ** 2).sum() / 24
    tried = [Ridge(alpha=ridge * scale) for ridge in RIDGES]
    errors = [
        ((cross_val_predict(one, given[known], items[known], cv=LeaveOneOut()) - items[known]) ** 2).mean()
        for one in tried
    ]
    best = tried[int(np.argmin(errors))].fit(given[known], items[known])
    assert 0 < np.argmin(errors) < len(RIDGES) - 1
    np.testing.assert_allclose(predicted(given, items, known), best.predict(given), atol=1e-8)


def test_items_without_events_get_what_their_vectors_say_and_others_stay():
    torch.manual_seed(0)
    student = SASRec(4, dim=4)
    before = student.items.weight.detach().clone()
    given = np.array([[0.0], [1.0], [2.0], [1.0]])
    assert warm_up(student, given, [[0, 1, 2], [0, 1, 2]], 0) == 0
    torch.testing.assert_close(student.items.weight, before)
    assert warm_up(student, given, [[0, 1, 2], [0, 1, 2]], 1) == 1
    torch.testing.assert_close(student.items.weight[[0, 1, 2, 4]], before[[0, 1, 2, 4]])
    expected = predicted(given, before[:4].numpy(), np.array([True, True, True, False]))[3]
    np.testing.assert_allclose(student.items.weight[3].detach().numpy(), expected, rtol=1e-6)


def test_one_known_item_is_too_few():
    with pytest.raises(ValueError, match="found 1 items with enough training events, expected two or more"):
        predicted(np.zeros((3, 2)), np.zeros((3, 2)), np.array([True, False, False]))
