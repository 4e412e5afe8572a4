"""Generalised advantage estimation and what PPO needs beside it, as pure functions of (B, T) arrays."""

import torch

from anyo_rl.training.advantages.batch import EPSILON, AddUp


def gae(
    rewards_B_T: torch.Tensor, values_B_T: torch.Tensor, mask_B_T: torch.Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation (Schulman et al., 2016, arXiv 1506.02438); a completion is an episode.

    δ_t = r_t + γ V(s_{t+1}) − V(s_t), A_t = δ_t + γλ A_{t+1}, and the returns that the values are fitted to are A + V.
    A completion that was cut off ends too, for it never gets to answer.

    Args:
        rewards_B_T: (B, T) rewards, each where its token was written.
        values_B_T: (B, T) V of the states before each token.
        mask_B_T: (B, T) which tokens there are: the first ones of each row.
        gamma: discount, in [0, 1].
        lam: λ, in [0, 1]; 1 has no bias by the values, 0 looks one token ahead.

    Returns:
        (B, T) advantages and (B, T) returns; 0 where there is no token.

    >>> one = torch.ones(1, 2)
    >>> gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.8]]), one, gamma=1.0, lam=0.5)
    (tensor([[0.4000, 0.2000]]), tensor([[0.9000, 1.0000]]))
    """
    there = mask_B_T.to(values_B_T.dtype)
    values, rewards = values_B_T * there, rewards_B_T * there
    advantages, to_go = torch.zeros_like(values), torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        after = values[:, t + 1] if t + 1 < values.shape[1] else torch.zeros_like(to_go)
        to_go = there[:, t] * (rewards[:, t] + gamma * after - values[:, t] + gamma * lam * to_go)
        advantages[:, t] = to_go
    return advantages, advantages + values


def potential_shaping(potentials_B_T: torch.Tensor, mask_B_T: torch.Tensor, gamma: float = 1.0) -> torch.Tensor:
    """Rewards γ Φ(s′) − Φ(s) for each token (Ng, Harada and Russell, 1999): the best policy stays the best.

    Args:
        potentials_B_T: (B, T) Φ of the states before each token; after the last token it is 0.
        mask_B_T: (B, T) which tokens there are: the first ones of each row.
        gamma: the discount of the returns.

    Returns:
        (B, T) rewards; with γ = 1 those of a row add up to −Φ of its first state.

    >>> potential_shaping(torch.tensor([[0.2, 0.2, 0.7]]), torch.ones(1, 3))
    tensor([[ 0.0000,  0.5000, -0.7000]])
    """
    there = mask_B_T.to(potentials_B_T.dtype)
    potentials = potentials_B_T * there
    after = torch.cat([potentials[:, 1:], torch.zeros_like(potentials[:, :1])], 1)
    return there * (gamma * after - potentials)


def whiten(values_B_T: torch.Tensor, mask_B_T: torch.Tensor, add_up: AddUp = lambda x: x) -> torch.Tensor:
    """Values less their mean, over their standard deviation.

    Args:
        values_B_T: (B, T) numbers.
        mask_B_T: (B, T) which of them count.
        add_up: sums over all processes, element by element; this process alone by default.

    Returns:
        (B, T) numbers; 0 where they do not count, or are all the same.

    >>> whiten(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[1, 1, 0]])).round(decimals=3)
    tensor([[-1.,  1.,  0.]])
    """
    there = mask_B_T.bool()
    total, n = add_up(torch.stack([values_B_T[there].sum(), there.sum().to(values_B_T.dtype)]))
    centred = torch.where(there, values_B_T - total / n.clamp(min=1), 0.0)
    square = add_up(centred.square().sum()[None])[0]
    return centred / ((square / n.clamp(min=1)).sqrt() + EPSILON)


def clipped_value_loss(
    values_B_T: torch.Tensor, old_values_B_T: torch.Tensor, returns_B_T: torch.Tensor, clip_range: float
) -> torch.Tensor:
    """Half the squared error of values, or of values held to within `clip_range` of the old ones where that is more.

    Args:
        values_B_T: (B, T) values, with gradients.
        old_values_B_T: (B, T) those that the completions were sampled with.
        returns_B_T: (B, T) what they should be.
        clip_range: above 0.

    Returns:
        (B, T) losses, as in Schulman's PPO implementation (arXiv 1707.06347 has no clipping of values).

    >>> clipped_value_loss(torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]), 0.2)
    tensor([[0.3200]])
    """
    near = torch.clamp(values_B_T, old_values_B_T - clip_range, old_values_B_T + clip_range)
    return 0.5 * torch.maximum((values_B_T - returns_B_T).square(), (near - returns_B_T).square())
