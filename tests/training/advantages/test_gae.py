"""Advantages, shaping and the critic's loss, against hand-computed numbers and slow loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.training.advantages.gae import clipped_value_loss, gae, potential_shaping, whiten


def slow_gae(rewards, values, gamma, lam):
    """One row without padding: the sum of (γλ)^k δ_{t+k}, each term anew."""
    after = [*values[1:], 0.0]
    deltas = [r + gamma * n - v for r, v, n in zip(rewards, values, after, strict=True)]
    return [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


rows = st.lists(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=6), min_size=1, max_size=4
)


def padded(rows, place):
    width = max(map(len, rows))
    numbers = [[cell[place] for cell in row] + [9.0] * (width - len(row)) for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    return torch.tensor(numbers, dtype=torch.float64), torch.tensor(mask)


def test_gae_by_hand():
    """γ = .9, λ = .5: δ = .9·.4 − .2, .9·.6 − .4, 1 − .6 and A_t = δ_t + .45 A_{t+1}."""
    values, mask = torch.tensor([[0.2, 0.4, 0.6, 7.0]]), torch.tensor([[1, 1, 1, 0]])
    advantages, returns = gae(torch.tensor([[0.0, 0.0, 1.0, 5.0]]), values, mask, 0.9, 0.5)
    expected = [0.16 + 0.45 * 0.32, 0.14 + 0.45 * 0.4, 0.4, 0]
    assert advantages[0].tolist() == pytest.approx(expected)
    assert returns[0].tolist() == pytest.approx([expected[0] + 0.2, expected[1] + 0.4, 1.0, 0])


@given(rows, st.floats(0, 1), st.floats(0, 1))
def test_gae_is_the_slow_loop(rows, gamma, lam):
    (rewards, mask), (values, _) = padded(rows, 0), padded(rows, 1)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b, row in enumerate(rows):
        expected = slow_gae([r for r, _ in row], [v for _, v in row], gamma, lam)
        assert advantages[b, : len(row)].tolist() == pytest.approx(expected, abs=1e-9)
        assert advantages[b, len(row) :].abs().sum() == 0
        assert returns[b, len(row) :].abs().sum() == 0
        assert returns[b, : len(row)].tolist() == pytest.approx(
            [a + v for a, (_, v) in zip(expected, row, strict=True)], abs=1e-9
        )


@given(rows)
def test_without_discount_and_with_lambda_one_it_is_the_return_less_the_value(rows):
    (rewards, mask), (values, _) = padded(rows, 0), padded(rows, 1)
    _, returns = gae(rewards, values, mask, 1.0, 1.0)
    for b, row in enumerate(rows):
        to_go = [sum(r for r, _ in row[t:]) for t in range(len(row))]
        assert returns[b, : len(row)].tolist() == pytest.approx(to_go, abs=1e-9)


@given(rows, st.floats(0.1, 1))
def test_shaping_changes_a_return_by_the_potential_of_its_state_alone(rows, gamma):
    """Σ γ^k F_{t+k} = −Φ(s_t), whatever happens in between: so no policy gains by it."""
    potentials, mask = padded(rows, 1)
    given_B_T = potential_shaping(potentials, mask, gamma)
    for b, row in enumerate(rows):
        for t, (_, potential) in enumerate(row):
            total = sum(gamma**k * given_B_T[b, t + k].item() for k in range(len(row) - t))
            assert total == pytest.approx(-potential, abs=1e-9)
        assert given_B_T[b, len(row) :].abs().sum() == 0


def test_with_the_potential_as_the_value_shaping_and_critic_agree():
    """Advantages with Φ in the rewards and V − Φ as the critic are those with V and no shaping."""
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.3, 0.5, 0.4]])
    phi, mask = torch.tensor([[0.2, 0.6, 0.1]]), torch.ones(1, 3)
    plain, _ = gae(rewards, values, mask, 0.9, 0.7)
    shaped, _ = gae(rewards + potential_shaping(phi, mask, 0.9), values - phi, mask, 0.9, 0.7)
    torch.testing.assert_close(plain, shaped)


def test_whitening_counts_what_is_there_on_all_processes():
    values, mask = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1, 1, 0]])
    other = torch.tensor([[4.0, 5.0]])
    everyone = torch.tensor([1.0, 2, 4, 5])
    sums = [torch.tensor([other.sum(), 2.0]), (other - everyone.mean()).square().sum()[None]]
    found = whiten(values, mask, lambda own: own + sums.pop(0))
    std = everyone.std(correction=0)
    assert found[0, :2].tolist() == pytest.approx(((everyone - everyone.mean()) / std)[:2].tolist(), abs=1e-3)
    assert found[0, 2] == 0
    assert whiten(torch.full((2, 2), 3.0), torch.ones(2, 2)).tolist() == [[0, 0], [0, 0]]
    assert whiten(torch.ones(1, 1), torch.zeros(1, 1)).tolist() == [[0]]


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "slope"),
    [
        (0.1, 0.0, 1.0, 0.5 * 0.81, -0.9),  # near the old value: the squared error
        (0.5, 0.0, 1.0, 0.5 * 0.64, 0.0),  # too far towards the target: no more of it
        (0.5, 0.0, -1.0, 0.5 * 2.25, 1.5),  # too far from it: back
        (-0.5, 0.0, 1.0, 0.5 * 2.25, -1.5),
    ],
)
def test_values_move_no_farther_than_the_range(value, old, target, loss, slope):
    values = torch.tensor([[value]], requires_grad=True)
    found = clipped_value_loss(values, torch.tensor([[old]]), torch.tensor([[target]]), 0.2)
    assert found.item() == pytest.approx(loss)
    found.sum().backward()
    assert values.grad.item() == pytest.approx(slope)
    assert math.isfinite(found.item())
