"""Objectives as pure tensor functions.

Axes: _B completions of a batch in groups of G, _S branchings of an item's path, _C children of a node.
"""

from typing import Literal

import torch

ItemLoss = Literal["none", "best", "all", "mixture"]


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
