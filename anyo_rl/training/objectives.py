"""Objectives as pure tensor functions.

Axes: _B completions of a batch in groups of G, _T their tokens, _S steps of a reasoning or branchings of an item's
path, _C children of a node.
"""

from collections.abc import Callable
from typing import Literal

import torch

ItemLoss = Literal["none", "best", "all", "mixture"]
Scale = Literal["group", "batch", "none"]
ProcessReduction = Literal["sum", "mean"]

EPSILON = 1e-4  # TRL's, under a spread


def item_weights(log_probs_B: torch.Tensor, group_size: int, kind: ItemLoss) -> torch.Tensor:
    """How much each path of a group takes part in the item loss.

    The loss is the sum over the group of weight × −log p(target | path). `best` trains the answer after the path that
    gives the target most probability (R²ec, arXiv 2505.16994), `all` after each alike, and `mixture` is the gradient
    of −log of the mean probability over paths, whose weights are p_i / Σ p at the moment of sampling.

    Args:
        log_probs_B: (B,) log p(target | path); NaN for paths that do not parse. Groups of `group_size` in a row.
        group_size: paths of each prompt, G.
        kind: `none`, `best`, `all` or `mixture`.

    Returns:
        (B,) weights that sum to 1 over a group, or to 0 where no path parses or the kind is `none`.

    >>> item_weights(torch.log(torch.tensor([0.1, 0.3, 0.2, 0.2])), 2, "mixture")
    tensor([0.2500, 0.7500, 0.5000, 0.5000])
    """
    if kind == "none":
        return torch.zeros_like(log_probs_B)
    groups = log_probs_B.view(-1, group_size)
    valid = ~groups.isnan()
    scores = groups.masked_fill(~valid, -torch.inf)
    if kind == "best":
        weights = torch.zeros_like(groups).scatter(1, scores.argmax(1, keepdim=True), 1.0)
    elif kind == "all":
        weights = valid / valid.sum(1, keepdim=True).clamp(min=1)
    elif kind == "mixture":
        weights = torch.softmax(scores, dim=1)
    else:
        raise ValueError(f"item_loss is {kind!r}; expected one of none, best, all, mixture")
    return torch.where(valid, weights.nan_to_num(), 0.0).flatten()


def path_log_prob(logits_B_S_C: torch.Tensor, child_B_S: torch.Tensor) -> torch.Tensor:
    """Log-probability of item paths under the constrained policy: what the engine ranks by.

    Forced tokens add nothing, so only the nodes of a path with two children or more are steps here.

    Args:
        logits_B_S_C: (B, S, C) logits of the children at each branching of a path; -inf where a node has fewer.
        child_B_S: (B, S) which child the path goes to; -100 where the path has fewer branchings.

    Returns:
        (B,) float32 sums over the path of log softmax over the children.

    >>> path_log_prob(torch.log(torch.tensor([[[3.0, 1.0], [1.0, 1.0]]])), torch.tensor([[0, -100]])).exp()
    tensor([0.7500])
    """
    there = child_B_S >= 0
    logits = torch.where(there[..., None], logits_B_S_C.float(), 0.0)  # steps without a node must not make NaN
    log_p = torch.log_softmax(logits, -1).gather(-1, child_B_S.clamp(min=0)[..., None])[..., 0]
    return torch.where(there, log_p, 0.0).sum(-1)


def progress_advantages(
    rewards_B: torch.Tensor, values_B_S: torch.Tensor, group_size: int, scale: Scale = "group"
) -> torch.Tensor:
    """GRPO's advantage, less the progress that a path had already made when a step began.

    The tokens of step j get (R − mean R of the group) − (V_{j−1} − V_0): the return to go against the value of the
    state as its baseline, which is potential-based shaping with γ = 1 and V = 0 at the end (Ng, Harada and Russell,
    1999), so the best policy is the same. What a step cannot take credit for is what came before it. Paths with equal
    rewards begin with equal advantages, whatever their number of steps.

    Args:
        rewards_B: (B,) rewards, groups of `group_size` in a row; NaN where there is none, whose advantages are 0.
        values_B_S: (B, S) V_0, V_1, … before each step, on the scale of the rewards; NaN where a path has fewer
            steps. V_0 is the same for a group.
        group_size: paths of each prompt, G.
        scale: `group` or `batch` divides by the root mean square over the steps, each path counting alike, which
            without progress is the standard deviation of the rewards; `none` leaves the advantages as they are.

    Returns:
        (B, S) advantages; 0 where a path has fewer steps.

    >>> rewards, values = torch.tensor([1.0, 0.0]), torch.tensor([[0.2, 0.8], [0.2, torch.nan]])
    >>> progress_advantages(rewards, values, 2, scale="none")
    tensor([[ 0.5000, -0.1000],
            [-0.5000,  0.0000]])
    """
    groups = rewards_B.view(-1, group_size)
    centred_B = (groups - groups.nanmean(1, keepdim=True)).flatten()
    there = ~values_B_S.isnan()
    raw = centred_B[:, None] - (values_B_S - values_B_S[:, :1])
    raw = torch.where(there & ~raw.isnan(), raw, 0.0)
    square_B = raw.square().sum(1) / there.sum(1).clamp(min=1)
    return _scaled(raw, square_B, group_size, scale)


def process_advantages(
    step_rewards_B_S: torch.Tensor, group_size: int, reduction: ProcessReduction = "mean"
) -> torch.Tensor:
    """Process-supervised GRPO (DeepSeekMath, arXiv 2402.03300 §4.1.3): rewards of steps, normalised over the group.

    The tokens of a step get the sum of the normalised rewards r̃ of this step and those after it.

    Args:
        step_rewards_B_S: (B, S) a reward for each step; NaN where a path has fewer.
        group_size: paths of each prompt, G.
        reduction: `sum` is the paper's, which pays for steps: those that are better than the mean by anything make a
            path better the more there are of them. `mean` divides the sum by the number of steps in it, and padding
            a path with steps like its others gains nothing.

    Returns:
        (B, S) advantages; 0 where a path has fewer steps.

    >>> process_advantages(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), 2, "sum").round(decimals=2)
    tensor([[ 1.7300,  0.8700],
            [-1.7300, -0.8700]])
    """
    there = ~step_rewards_B_S.isnan()
    groups, there_G = (
        step_rewards_B_S.nan_to_num().view(-1, group_size * there.shape[1]),
        there.view(-1, group_size * there.shape[1]),
    )
    n = there_G.sum(1, keepdim=True).clamp(min=1)
    mean = groups.sum(1, keepdim=True) / n
    centred = torch.where(there_G, groups - mean, 0.0)
    std = (centred.square().sum(1, keepdim=True) / (n - 1).clamp(min=1)).sqrt()
    normal = (centred / (std + EPSILON)).view_as(step_rewards_B_S)
    to_go = normal.flip(1).cumsum(1).flip(1)
    if reduction == "mean":
        to_go = to_go / there.flip(1).cumsum(1).flip(1).clamp(min=1)
    elif reduction != "sum":
        raise ValueError(f"the reduction is {reduction!r}; expected sum or mean")
    return torch.where(there, to_go, 0.0)


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


def whiten(
    values_B_T: torch.Tensor, mask_B_T: torch.Tensor, add_up: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
) -> torch.Tensor:
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


def _scaled(raw_B_S: torch.Tensor, square_B: torch.Tensor, group_size: int, scale: Scale) -> torch.Tensor:
    if scale == "none":
        return raw_B_S
    if scale not in ("group", "batch"):
        raise ValueError(f"scale_rewards is {scale!r}; expected group, batch or none")
    size = group_size if scale == "group" else len(square_B)
    spread = square_B.view(-1, size).mean(1).sqrt().repeat_interleave(size)
    return raw_B_S / (spread[:, None] + EPSILON)
