"""Losses of students against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from anyo_rl.students.losses import (
    alignment,
    binary_cross_entropy,
    dllm2rec_labels,
    inverse_propensity,
    listwise_kl,
    log_sum_by_sample,
    soft_labels,
    union_with_own,
    within,
)

NONE = -math.inf


def test_a_sum_by_sample_by_hand():
    """Two draws, 1 and 3, stand for four others beside the target's 1: 1 + 4/2 · (1 + 3) = 9; then one is left out."""
    others = tensor([[0.0, math.log(3)], [NONE, math.log(3)]])
    found = log_sum_by_sample(torch.zeros(2), others, n_items=5)
    assert found.tolist() == pytest.approx([math.log(9), math.log(7)])


def test_binary_losses_by_hand():
    """σ(0) = 1/2 and σ(log 3) = 3/4. BCE: −(log 3/4 + 2 · log 1/2) / 3."""
    target, others = tensor([math.log(3)]), torch.zeros(1, 2)
    plain = (math.log(4 / 3) + 2 * math.log(2)) / 3
    assert binary_cross_entropy(target, others, n_items=9).item() == pytest.approx(plain)
    # a = 2 / 8. t = 1: β = a. t = .5: β = .25 · (.5 · (1 − 4) + 4) = .625.
    for calibration, beta in ((0.0, 1.0), (1.0, 0.25), (0.5, 0.625)):
        found = binary_cross_entropy(target, others, 9, calibration).item()
        assert found == pytest.approx((beta * math.log(4 / 3) + 2 * math.log(2)) / 3)
    left_out = binary_cross_entropy(target, tensor([[0.0, NONE]]), 9).item()
    assert left_out == pytest.approx((math.log(4 / 3) + math.log(2)) / 3)


def test_weights_of_rare_targets():
    found = inverse_propensity(np.array([1.0, 0.25, 0.01]), 0.5)
    assert found.tolist() == pytest.approx([3 / 13, 6 / 13, 30 / 13])  # 1, 2, 10: a mean of 13 / 3
    clipped = inverse_propensity(np.array([1.0, 0.25, 0.01]), 0.5, most=3.0)
    assert clipped.tolist() == pytest.approx([0.5, 1.0, 1.5])
    assert inverse_propensity(np.array([1.0, 0.01]), 0.0).tolist() == [1.0, 1.0]


def test_labels_are_softened_within_the_list():
    log_probs = tensor([[0.4, 0.1, 0.0]]).log()
    assert soft_labels(log_probs)[0].tolist() == pytest.approx([0.8, 0.2, 0.0])
    assert soft_labels(log_probs, 2.0)[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0.0])
    assert soft_labels(log_probs, 0.5)[0].tolist() == pytest.approx([16 / 17, 1 / 17, 0.0])
    assert soft_labels(torch.full((1, 2), NONE)).tolist() == [[0.0, 0.0]]


def test_dllm2rec_by_hand():
    """Positions e^-1, e^-2 over their sum are .7311, .2689; confidences .6, .4; the student knows the second."""
    labels, known = tensor([[0.6, 0.4, 0.0]]), tensor([[False, True, True]])
    e = math.exp(-1) / (math.exp(-1) + math.exp(-2))
    first, second = 0.3 * e + 0.5 * 0.6, 0.3 * (1 - e) + 0.5 * 0.4 + 0.1
    found = dllm2rec_labels(labels, known, (0.3, 0.5, 0.1))[0].tolist()
    assert found == pytest.approx([first / (first + second), second / (first + second), 0.0])
    assert dllm2rec_labels(labels, known, (0.0, 1.0, 0.0))[0].tolist() == pytest.approx([0.6, 0.4, 0.0])
    assert dllm2rec_labels(labels, known, (1.0, 0.0, 0.0))[0].tolist() == pytest.approx([e, 1 - e, 0.0])


def test_kl_by_hand():
    student = tensor([[0.5, 0.25, NONE], [0.5, 0.25, NONE]])
    student[:, :2] = student[:, :2].log()
    labels = tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    # ½ log(½ / ½) + ½ log(½ / ¼); and log 1 − log ½.
    assert listwise_kl(student, labels).tolist() == pytest.approx([math.log(2) / 2, math.log(2)])
    assert listwise_kl(labels.clamp(min=1e-30).log(), labels).tolist() == pytest.approx([0.0, 0.0])


def test_what_is_not_in_the_list_has_no_gradient_and_no_nan():
    student = tensor([[-1.0, NONE]], requires_grad=True)
    listwise_kl(student, tensor([[1.0, 0.0]])).sum().backward()
    assert student.grad.tolist() == [[-1.0, 0.0]]


def test_within_a_list_by_hand():
    log_probs = tensor([[0.2, 0.3, 0.5]]).log()
    found = within(log_probs, tensor([[True, True, False]]))
    assert found.exp()[0].tolist() == pytest.approx([0.4, 0.6, 0.0])


def test_the_union_counts_each_item_once():
    items, labels, there = union_with_own(
        tensor([[7, 3, -1]]), tensor([[0.7, 0.3, 0.0]]), own_items_R_K=tensor([[3, 5, 7]])
    )
    assert items.tolist() == [[7, 3, 0, 0, 5, 0]]
    assert there.tolist() == [[True, True, False, False, True, False]]
    assert labels[0].tolist() == pytest.approx([0.7, 0.3, 0.0, 0.0, 0.0, 0.0])


def test_the_union_pushes_down_what_the_student_wants_and_the_teacher_does_not():
    """Within the teacher's list such an item has no gradient."""
    logits = tensor([[1.0, 0.0, 4.0]], requires_grad=True)  # the teacher names 0 and 1; the student wants 2
    items, labels, there = union_with_own(tensor([[0, 1]]), tensor([[0.9, 0.1]]), tensor([[2, 0]]))
    log_probs = logits.log_softmax(1).gather(1, items)
    (of_union,) = torch.autograd.grad(listwise_kl(within(log_probs, there), labels).sum(), logits, retain_graph=True)
    teacher_only = listwise_kl(within(log_probs[:, :2], there[:, :2]), labels[:, :2]).sum()
    (of_list,) = torch.autograd.grad(teacher_only, logits)
    assert of_union[0, 2] > 0.5
    assert of_list[0, 2] == pytest.approx(0, abs=1e-6)


def test_alignment_by_hand():
    ours, theirs = tensor([[3.0, 4.0], [1.0, 0.0]]), tensor([[4.0, 3.0], [0.0, 2.0]])
    assert alignment(ours, theirs, "cosine").tolist() == pytest.approx([1 - 24 / 25, 1.0])
    assert alignment(ours, theirs, "mse").tolist() == pytest.approx([1.0, 2.5])
    # Cosines of the first row: .96 with its own, .8 with the other; of the second 0 with its own, .8 with the other.
    expected = [math.log(1 + math.exp((0.8 - 0.96) / 0.5)), math.log(1 + math.exp(0.8 / 0.5))]
    assert alignment(ours, theirs, "infonce", 0.5).tolist() == pytest.approx(expected)


def test_the_same_vector_in_another_row_is_no_negative():
    ours, theirs = torch.eye(2), tensor([[1.0, 1.0], [2.0, 2.0]])
    assert alignment(ours, theirs, "infonce").tolist() == pytest.approx([0.0, 0.0], abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-20, 5), min_size=1, max_size=6), st.floats(0.1, 5))
def test_a_teacher_is_never_further_from_itself(log_probs, temperature):
    labels = soft_labels(tensor([log_probs]), temperature)
    assert labels.sum().item() == pytest.approx(1, abs=1e-4)
    own = listwise_kl(labels.clamp(min=1e-30).log(), labels)
    other = listwise_kl(torch.full_like(labels, 1 / len(log_probs)).log(), labels)
    assert own.item() == pytest.approx(0, abs=1e-4)
    assert other.item() >= -1e-5
