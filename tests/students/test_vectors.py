"""Students whose items begin as given vectors, or have these mixed in."""

import numpy as np
import pytest
import torch

from anyo_rl.students import FitSettings, GRU4Rec, SASRec, fit_student
from anyo_rl.students.fit import Help
from anyo_rl.students.training import fit_next_item
from anyo_rl.students.vectors import begin_with, fused, projected

SHAPE = {"dim": 8, "max_length": 4, "dropout": 0.0}
STUDENTS = pytest.mark.parametrize("kind", [SASRec, GRU4Rec])


@pytest.fixture
def vectors():
    return np.random.default_rng(0).normal(size=(12, 20)).astype(np.float32)


def test_projection_by_hand():
    """Points on a line through (1, 1): its one component, centred, and of standard deviation 1."""
    found = projected(np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]), 1)[:, 0]
    np.testing.assert_allclose(np.abs(found), [np.sqrt(1.5), 0, np.sqrt(1.5)], atol=1e-6)
    assert projected(np.eye(5), 3).shape == (5, 3)
    assert projected(np.eye(5), 9).shape == (5, 5)
    for wrong in (np.ones((4, 3)), np.full((4, 3), np.nan)):
        with pytest.raises(ValueError, match="all alike, or not finite"):
            projected(wrong, 2)


@STUDENTS
def test_items_begin_as_vectors_at_the_scale_of_the_table(kind, vectors):
    drawn, student = kind(12, seed=3, **SHAPE), kind(12, seed=3, **SHAPE)
    begin_with(student, vectors)
    scale = drawn.item_vectors.std()
    torch.testing.assert_close(student.item_vectors.std(), scale, rtol=0.01, atol=0)
    np.testing.assert_allclose(student.item_vectors.detach(), projected(vectors, 8) * scale.item(), rtol=1e-5)
    assert not student.items.weight[12].any()
    begin_with(student, vectors[:, :3])
    np.testing.assert_allclose(
        student.item_vectors.detach()[:, 3:], projected(vectors, 8)[:, 3:] * scale.item(), rtol=1e-5
    )


@STUDENTS
def test_fusion_is_written_into_the_table(kind, vectors):
    student = kind(12, seed=3, **SHAPE)
    own = student.items.weight.detach().clone()
    with fused(student, vectors, seed=0):
        project = student.items.parametrizations.weight[0].project.weight
        expected = own[:12] + torch.from_numpy(vectors / vectors.std()) @ project.T
        torch.testing.assert_close(student.item_vectors, expected)
        names = {name for name, _ in student.named_parameters()}
        assert {"items.parametrizations.weight.original", "items.parametrizations.weight.0.project.weight"} <= names
    torch.testing.assert_close(student.item_vectors, expected)
    assert not student.items.weight[12].any()
    assert set(student.state_dict()) == set(kind(12, **SHAPE).state_dict())  # a plain student, to be kept as one
    assert type(student.items) is torch.nn.Embedding
    assert student.items.weight.requires_grad


def test_the_projection_is_trained_with_the_student(vectors):
    """The vectors alone tell which item follows: without a gradient in the table it is learned all the same."""
    sequences = [[(start + step) % 12 for step in range(5)] for start in range(12)]
    settings = FitSettings(max_epochs=20, batch_size=6, learning_rate=3e-2)
    student = SASRec(12, seed=0, **SHAPE)
    with fused(student, vectors, seed=0):
        student.items.parametrizations.weight.original.requires_grad_(False)
        fit_next_item(student, sequences, settings)
    assert student.scores([[start, start + 1] for start in range(10)]).argmax(1).tolist() == list(range(2, 12))
    plain, mixed = (fit_student(SASRec, sequences, 12, FitSettings(max_epochs=1), given=given, **SHAPE) for given in
                    (Help(), Help(vectors, fuse=True)))  # fmt: skip
    assert plain.report.losses != mixed.report.losses


def test_wrong_input_is_an_error(vectors):
    with pytest.raises(ValueError, match="found 12 vectors, expected one for each of the 5 items"):
        begin_with(SASRec(5, **SHAPE), vectors)
    with pytest.raises(ValueError, match="found 12 vectors"), fused(SASRec(5, **SHAPE), vectors, 0):
        pass
