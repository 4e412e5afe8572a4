"""The item loss: log p(target | path) with gradients, and how much each path of a group takes part in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.tree import PrefixTree

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


def unpadded(ids_B_T: torch.Tensor, mask_B_T: torch.Tensor) -> list[list[int]]:
    """Token ids of each row where its mask is not 0."""
    return [ids_T[mask_T.bool()].tolist() for ids_T, mask_T in zip(ids_B_T, mask_B_T, strict=True)]


def excluded_items(catalog: Catalog, excluded_B: Sequence[Sequence[str]]) -> torch.Tensor:
    """(B, E) int64 catalog indices of the items that rankings leave out, -1 where a row has fewer."""
    indices = [catalog.known(row) for row in excluded_B]
    width = max(map(len, indices), default=0)
    return torch.tensor([row + [-1] * (width - len(row)) for row in indices], dtype=torch.long).view(
        len(indices), width
    )


@dataclass(frozen=True)
class ItemChoices:
    """Where the paths of B items are a choice, and between which tokens.

    Attributes:
        depth_B_S: (B, S) int64 tokens of the path before each choice; 0 where a path has fewer.
        child_B_S: (B, S) int64 which of the tokens that can follow the path goes to; -100 where it has fewer choices.
        token_B_S_C: (B, S, C) int64 those tokens, -1 where there are fewer; `None` for the whole vocabulary.
    """

    depth_B_S: torch.Tensor
    child_B_S: torch.Tensor
    token_B_S_C: torch.Tensor | None = None

    @classmethod
    def of(cls, catalog: Catalog, items: Sequence[int], excluded: Sequence[np.ndarray]) -> "ItemChoices":
        """The choices of the constrained policy.

        A branch that leads to nothing but excluded items is no choice: a policy is not to spend its capacity on
        putting what no ranking holds behind. (The engine takes excluded items out of the ranking and leaves the
        others' probabilities as they are, which gives the same order where the tree has one level.)

        Args:
            catalog: the catalog.
            items: indices of the B items in the catalog.
            excluded: indices of the items that each ranking leaves out.
        """
        steps = [branchings(catalog.tree, item, out) for item, out in zip(items, excluded, strict=True)]
        n_steps = max(1, *map(len, steps))
        n_children = max([len(s.children) for of_row in steps for s in of_row] or [1])
        depth_B_S, child_B_S = np.zeros((len(steps), n_steps), np.int64), np.full((len(steps), n_steps), -100)
        token_B_S_C = np.full((len(steps), n_steps, n_children), -1)
        for b, of_row in enumerate(steps):
            for s, step in enumerate(of_row):
                depth_B_S[b, s] = step.depth
                token_B_S_C[b, s, : len(step.children)] = step.children
                child_B_S[b, s] = step.child
        return cls(*map(torch.from_numpy, (depth_B_S, child_B_S, token_B_S_C)))

    @classmethod
    def of_tokens(cls, paths: Sequence[Sequence[int]]) -> "ItemChoices":
        """Each token of some paths among the whole vocabulary: what a teacher chooses that writes them."""
        child_B_S = pad_sequence([torch.tensor(path) for path in paths], batch_first=True, padding_value=-100)
        depth_B_S = torch.arange(child_B_S.shape[1]).expand_as(child_B_S)
        return cls(depth_B_S.masked_fill(child_B_S < 0, 0), child_B_S)  # behind a short path there may be no place

    def log_prob(self, logits_B_S_V: torch.Tensor) -> torch.Tensor:
        """(B,) log-probabilities of the items, from the logits at each choice."""
        device = logits_B_S_V.device
        if self.token_B_S_C is None:
            return path_log_prob(logits_B_S_V, self.child_B_S.to(device))
        tokens = self.token_B_S_C.to(device)
        logits_B_S_C = logits_B_S_V.float().gather(-1, tokens.clamp(min=0)).masked_fill(tokens < 0, -torch.inf)
        return path_log_prob(logits_B_S_C, self.child_B_S.to(device))


def item_log_prob(
    model: torch.nn.Module,
    catalog: Catalog,
    contexts_B: Sequence[Sequence[int]],
    items_B: torch.Tensor,
    excluded_B_E: torch.Tensor,
    *,
    pad_id: int,
) -> torch.Tensor:
    """(B,) log-probabilities of items under the constrained policy, as the engine reads them, by one forward.

    Args:
        model: the teacher.
        catalog: the catalog.
        contexts_B: token ids of context, reasoning and marker.
        items_B: (B,) indices of the items in the catalog, where the model is.
        excluded_B_E: what `excluded_items` gave.
        pad_id: the padding token.
    """
    items, device = items_B.tolist(), items_B.device
    choices = ItemChoices.of(catalog, items, [row[row >= 0] for row in excluded_B_E.cpu().numpy()])
    # What comes after the last choice is forced. Positions are counted from the end, where the sequences meet.
    ends_B = choices.depth_B_S.amax(1).tolist()
    sequences = [[*c, *catalog.paths[item][:end]] for c, item, end in zip(contexts_B, items, ends_B, strict=True)]
    width = max(map(len, sequences))
    ids = torch.tensor([[pad_id] * (width - len(s)) + s for s in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
    place_B_S = width - 1 - torch.tensor(ends_B)[:, None] + choices.depth_B_S
    kept_K, index_B_S = place_B_S.unique(return_inverse=True)
    logits_B_K_V = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=kept_K.to(device),
        use_cache=False,
    ).logits
    return choices.log_prob(logits_B_K_V[torch.arange(len(items))[:, None], index_B_S])


class Branching(NamedTuple):
    """A node of an item's path with two children or more: its depth, its children's tokens, and which one is taken."""

    depth: int
    children: np.ndarray
    child: int


def branchings(tree: PrefixTree, item: int, excluded: np.ndarray | None = None) -> list[Branching]:
    """The branchings on the way to an item, from the root: the only places where its path is a choice.

    Args:
        tree: of the catalog.
        item: its index.
        excluded: indices of other items; a child below which there is nothing else is left out.
    """
    out = (
        np.zeros(0, np.int64) if excluded is None else np.sort(tree.leaf_start[tree.leaf[excluded[excluded != item]]])
    )
    found, node = [], int(tree.leaf[item])
    while node:
        parent = int(tree.parent[node])
        children = np.arange(tree.child_start[parent], tree.child_start[parent + 1])
        if len(out):
            first, end = tree.leaf_start[children], tree.leaf_end[children]
            children = children[np.searchsorted(out, end) - np.searchsorted(out, first) < end - first]
        if len(children) > 1:
            child = int(np.searchsorted(children, node))
            found.append(Branching(int(tree.depth[parent]), tree.token[children], child))
        node = parent
    return found[::-1]
