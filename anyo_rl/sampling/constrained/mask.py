"""Which tokens may come next when what follows the marker must be an item: the rule, for any decoder.

A sequence is at a *node* of the catalog's prefix tree once it has written the marker, at `FREE` before that, and at
`LEFT` after an item.
"""

from collections.abc import Sequence

import numpy as np
import torch

from anyo_rl.catalog.tree import PrefixTree
from anyo_rl.ranking.engine.context import check_room, check_vocabulary
from anyo_rl.teacher.tokens import Tokens

LEFT, FREE = -1, -2  # in place of a node: the item is written or was never one; no marker yet


class CatalogMask:
    """Leaves the children of each sequence's node, with their log-probabilities among themselves: beams add these up.

    Before the marker everything is free, unless `max_reasoning_tokens` is set. After an item only end-of-sequence is.

    Args:
        tree: of the catalog whose items may be written.
        marker_id: the token after which an item follows.
        eos_id: the token that ends an item.
        max_reasoning_tokens: when set, the marker is forced after this many tokens, and the end of the sequence
            cannot come before it. It is the marker alone, without the line break that ends a thought of a chat model.
    """

    def __init__(self, tree: PrefixTree, marker_id: int, eos_id: int, max_reasoning_tokens: int | None = None) -> None:
        self.tree = tree
        self.first = int(tree.chain_end[0])
        self.marker_id, self.eos_id = marker_id, eos_id
        self.max_reasoning_tokens = max_reasoning_tokens

    def step(self, nodes_R: np.ndarray, tokens_R: np.ndarray) -> np.ndarray:
        """(R,) where sequences are after one more token; FREE is where they start, before the prompt's last token."""
        marked_R = np.where(tokens_R == self.marker_id, 0, FREE)
        return np.where(nodes_R == FREE, marked_R, self.tree.step(nodes_R, tokens_R))

    def __call__(self, scores: torch.Tensor, nodes_R: np.ndarray, n_written_R: np.ndarray) -> torch.Tensor:
        """(R, V) scores of the next token, those that are not possible at minus infinity.

        Args:
            scores: (R, V) logits or log-probabilities.
            nodes_R: where each sequence is.
            n_written_R: tokens written so far, the prompt left aside.
        """
        free_R = nodes_R == FREE
        if self.max_reasoning_tokens is None and free_R.all():
            return scores
        n_children_R = np.where(nodes_R >= 0, self.tree.child_start[nodes_R + 1] - self.tree.child_start[nodes_R], 0)

        def rows(where_R: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.flatnonzero(where_R)).to(scores.device)

        limited = torch.full_like(scores, -torch.inf)
        limited[rows(~free_R & (n_children_R == 0)), self.eos_id] = 0.0
        if self.max_reasoning_tokens is None:
            limited[rows(free_R)] = scores[rows(free_R)]
        else:
            out_R = free_R & (n_written_R >= self.max_reasoning_tokens)
            limited[rows(out_R), self.marker_id] = 0.0
            going_on = scores[rows(free_R & ~out_R)]
            going_on[:, self.eos_id] = -torch.inf
            limited[rows(free_R & ~out_R)] = going_on.log_softmax(-1)
        further_R = (nodes_R >= 0) & (nodes_R != self.first)
        self._put_first(scores, limited, rows(nodes_R == self.first))
        self._put_children(scores, limited, np.where(further_R, nodes_R, 0), np.where(further_R, n_children_R, 0))
        return limited

    def _put_first(self, scores: torch.Tensor, limited: torch.Tensor, rows: torch.Tensor) -> None:
        """At the first choice, where all rows come by and have the most children: the same columns for all of them."""
        if len(rows) == 0:
            return
        tokens = torch.from_numpy(self.tree.token[self.tree.children(self.first)]).to(scores.device)
        log_probs = scores[rows].index_select(1, tokens).log_softmax(-1)
        limited[rows] = limited[rows].index_copy(1, tokens.long(), log_probs)

    def _put_children(
        self, scores: torch.Tensor, limited: torch.Tensor, nodes_R: np.ndarray, n_children_R: np.ndarray
    ) -> None:
        """Anywhere else: the children of each row's node, as E (row, token) pairs one row after the other."""
        row_E = np.repeat(np.arange(len(nodes_R)), n_children_R)
        place_E = np.arange(len(row_E)) - np.repeat(np.cumsum(n_children_R) - n_children_R, n_children_R)
        token_E = self.tree.token[self.tree.child_start[nodes_R][row_E] + place_E]
        row, token = torch.from_numpy(row_E).to(scores.device), torch.from_numpy(token_E).to(scores.device)
        chosen = scores[row, token]
        highest = chosen.new_full((len(scores),), -torch.inf).scatter_reduce(0, row, chosen, "amax")
        shifted = chosen - highest[row]
        total = torch.zeros_like(highest).scatter_add(0, row, shifted.exp())
        limited[row, token] = shifted - total.log()[row]


def items_written(tree: PrefixTree, written_R_T: np.ndarray) -> np.ndarray:
    """(R,) the item that each row of (R, T) tokens begins with; -1 where it is none."""
    nodes, items = np.zeros(len(written_R_T), dtype=np.int64), np.full(len(written_R_T), -1)
    for tokens_R in written_R_T.T:
        nodes = tree.step(nodes, tokens_R)
        items = np.where(items < 0, tree.items_at(nodes), items)
    return items


def check_fit(
    tree: PrefixTree, tokens: Tokens, contexts: Sequence[Sequence[int]], *, n_tokens: int, max_length: int
) -> None:
    """Refuses contexts after which no item can be written.

    Args:
        tree: of the catalog whose items may be written.
        tokens: has the marker.
        contexts: token ids that must end with the marker.
        n_tokens: tokens that the model knows.
        max_length: longest sequence of the model, in tokens.

    Raises:
        ValueError: a context does not end with the marker or is too long, or the model knows fewer tokens than the
            catalog.
    """
    check_vocabulary(tree, n_tokens)
    unmarked = sum(not context or context[-1] != tokens.marker_id for context in contexts)
    if unmarked:
        raise ValueError(
            f"{unmarked} of {len(contexts)} contexts do not end with the marker; make them with Tokens.marked_context"
        )
    check_room(contexts, int(tree.depth.max()), max_length)
