"""log p(target | path) with gradients: what an item loss trains the answer by."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.tree import PrefixTree
from anyo_rl.training.objectives import path_log_prob


def item_log_prob(
    model: torch.nn.Module,
    catalog: Catalog,
    contexts_B: Sequence[Sequence[int]],
    items_B: Sequence[int],
    *,
    pad_id: int,
    device: torch.device,
) -> torch.Tensor:
    """(B,) log-probabilities of items under the constrained policy, as the engine reads them, by one forward.

    Args:
        model: the teacher.
        catalog: the catalog.
        contexts_B: token ids of context, reasoning and marker.
        items_B: indices of the items in the catalog.
        pad_id: the padding token.
        device: where the model is.
    """
    sequences, steps = [], []
    for context, item in zip(contexts_B, items_B, strict=True):
        steps.append(branchings(catalog.tree, item))
        end = steps[-1][-1].depth if steps[-1] else 0  # what comes after the last branching is forced
        sequences.append([*context, *catalog.paths[item][:end]])
    width = max(map(len, sequences))
    ids = torch.tensor([[pad_id] * (width - len(s)) + s for s in sequences], device=device)
    mask = torch.tensor([[0] * (width - len(s)) + [1] * len(s) for s in sequences], device=device)
    # Positions are counted from the end, where the sequences meet.
    places = [[width - 1 - of_row[-1].depth + step.depth for step in of_row] for of_row in steps]
    kept = sorted({place for of_row in places for place in of_row}) or [width - 1]
    logits_B_K_V = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        logits_to_keep=torch.tensor(kept, device=device),
        use_cache=False,
    ).logits
    n_steps, n_children = max(1, *map(len, steps)), max([len(s.children) for of_row in steps for s in of_row] or [1])
    place_B_S, child_B_S = np.zeros((len(steps), n_steps), np.int64), np.full((len(steps), n_steps), -100)
    token_B_S_C = np.full((len(steps), n_steps, n_children), -1)
    for b, of_row in enumerate(steps):
        for s, step in enumerate(of_row):
            place_B_S[b, s] = kept.index(places[b][s])
            token_B_S_C[b, s, : len(step.children)] = step.children
            child_B_S[b, s] = step.child
    tokens = torch.from_numpy(token_B_S_C).to(device)
    row_B = torch.arange(len(steps), device=device)[:, None, None]
    logits = logits_B_K_V[row_B, torch.from_numpy(place_B_S).to(device)[..., None], tokens.clamp(min=0)]
    logits = logits.float().masked_fill(tokens < 0, -torch.inf)
    return path_log_prob(logits, torch.from_numpy(child_B_S).to(device))


class Branching(NamedTuple):
    """A node of an item's path with two children or more: its depth, its children's tokens, and which one is taken."""

    depth: int
    children: np.ndarray
    child: int


def branchings(tree: PrefixTree, item: int) -> list[Branching]:
    """The branchings on the way to an item, from the root: the only places where its path is a choice."""
    found, node = [], int(tree.leaf[item])
    while node:
        parent = int(tree.parent[node])
        children = tree.children(parent)
        if children.stop - children.start > 1:
            found.append(Branching(int(tree.depth[parent]), tree.token[children], node - children.start))
        node = parent
    return found[::-1]
