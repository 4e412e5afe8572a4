"""Objectives as pure tensor functions.

Axes: _B completions of a batch in groups of G, _L path tokens, _V vocabulary.
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

    >>> item_weights(torch.log(torch.tensor([0.1, 0.3, 0.2, 0.2])), 2, "mixture").tolist()
    [0.25, 0.75, 0.5, 0.5]
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


def path_log_prob(logits_B_L_V: torch.Tensor, path_B_L: torch.Tensor, allowed_B_L_V: torch.Tensor) -> torch.Tensor:
    """Log-probability of item paths under the constrained policy: what the engine ranks by.

    Args:
        logits_B_L_V: logits that predict each path token.
        path_B_L: (B, L) path tokens; -100 where there is none.
        allowed_B_L_V: the tree's children at each node of the path, True where allowed.

    Returns:
        (B,) sums over the path of log softmax over the allowed tokens; forced tokens add nothing.
    """
    there = path_B_L >= 0
    logits = logits_B_L_V.float().masked_fill(~allowed_B_L_V, -torch.inf)
    logits = torch.where(there[..., None], logits, 0.0)  # rows without a token must not make NaN gradients
    log_p = torch.log_softmax(logits, -1).gather(-1, path_B_L.clamp(min=0)[..., None])[..., 0]
    return torch.where(there, log_p, 0.0).sum(-1)
