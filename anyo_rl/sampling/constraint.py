"""Holding what a teacher writes after the marker to the catalog: the mask, and log-probabilities under it.

What is sampled so is the distribution that `anyo_rl.ranking.distribution` computes: the next token's renormalised over
the children of the prefix tree's node.
"""

import numpy as np
import torch
from transformers import LogitsProcessor

from anyo_rl.catalog.tree import PrefixTree
from anyo_rl.tokens import Tokens

LEFT, FREE = -1, -2  # in place of a node: the item is written or was never one; no marker yet


class CatalogConstraint(LogitsProcessor):
    """Holds what comes after the marker to the catalog, for one call of `generate`.

    Before the marker everything is free, unless `max_reasoning_tokens` is set. From the marker on only the children
    of the tree's node are possible, with their log-probabilities among themselves: beams add these up. After an item
    only end-of-sequence is.

    Args:
        tree: the catalog's prefix tree.
        tokens: the tokenizer that it was made with, and the marker.
        prompt_width: width W of the padded prompts. A marker inside a prompt is no marker, except as the last token:
            then the item comes at once.
        max_reasoning_tokens: when set, every completion gets an item: the marker is forced after this many tokens,
            and the end of the sequence cannot come before it. The item takes up to `tree.depth.max()` tokens more.
    """

    def __init__(
        self, tree: PrefixTree, tokens: Tokens, prompt_width: int, max_reasoning_tokens: int | None = None
    ) -> None:
        self.tree = tree
        self.marker_id, self.eos_id = tokens.marker_id, tokens.eos_id
        self.start = prompt_width - 1
        self.max_reasoning_tokens = max_reasoning_tokens
        self._seen: np.ndarray | None = None
        self._nodes: np.ndarray | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(R, V) scores of the next token, those that are not possible at minus infinity.

        Args:
            input_ids: (R, T) prompts and what was written so far.
            scores: (R, V) logits or log-probabilities.
        """
        nodes_R = self._walk(input_ids[:, self.start :].cpu().numpy())
        if self.max_reasoning_tokens is None and (nodes_R == FREE).all():
            return scores
        n_children_R = np.where(nodes_R >= 0, self.tree.child_start[nodes_R + 1] - self.tree.child_start[nodes_R], 0)

        def rows(where_R: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.flatnonzero(where_R)).to(scores.device)

        limited = torch.full_like(scores, -torch.inf)
        limited[rows((nodes_R != FREE) & (n_children_R == 0)), self.eos_id] = 0.0
        self._put_reasoning(scores, limited, rows(nodes_R == FREE), input_ids.shape[1] - 1 - self.start)
        self._put_first(scores, limited, rows(nodes_R == 0))
        self._put_children(scores, limited, np.where(nodes_R > 0, nodes_R, 0), np.where(nodes_R > 0, n_children_R, 0))
        return limited

    def _put_reasoning(self, scores: torch.Tensor, limited: torch.Tensor, rows: torch.Tensor, n_written: int) -> None:
        """Before the marker: everything, or under a budget everything but the end, and at last the marker alone."""
        if len(rows) == 0:
            return
        if self.max_reasoning_tokens is None:
            limited[rows] = scores[rows]
        elif n_written >= self.max_reasoning_tokens:
            limited[rows, self.marker_id] = 0.0
        else:
            going_on = scores[rows]
            going_on[:, self.eos_id] = -torch.inf
            limited[rows] = going_on.log_softmax(-1)

    def _put_first(self, scores: torch.Tensor, limited: torch.Tensor, rows: torch.Tensor) -> None:
        """At the root, where all rows come by and have the most children: the same columns for all of them."""
        if len(rows) == 0:
            return
        tokens = torch.from_numpy(self.tree.token[self.tree.children(0)]).to(scores.device)
        log_probs = scores[rows].index_select(1, tokens).log_softmax(-1)
        limited[rows] = limited[rows].index_copy(1, tokens.long(), log_probs)

    def _put_children(
        self, scores: torch.Tensor, limited: torch.Tensor, nodes_R: np.ndarray, n_children_R: np.ndarray
    ) -> None:
        """Further down: the children of each row's node, as E (row, token) pairs one row after the other."""
        row_E = np.repeat(np.arange(len(nodes_R)), n_children_R)
        place_E = np.arange(len(row_E)) - np.repeat(np.cumsum(n_children_R) - n_children_R, n_children_R)
        token_E = self.tree.token[self.tree.child_start[nodes_R][row_E] + place_E]
        row, token = torch.from_numpy(row_E).to(scores.device), torch.from_numpy(token_E).to(scores.device)
        chosen = scores[row, token]
        highest = chosen.new_full((len(scores),), -torch.inf).scatter_reduce(0, row, chosen, "amax")
        shifted = chosen - highest[row]
        total = torch.zeros_like(highest).scatter_add(0, row, shifted.exp())
        limited[row, token] = shifted - total.log()[row]

    def _walk(self, written_R_T: np.ndarray) -> np.ndarray:
        """(R,) the node that each row is at, given everything from the prompt's last token on."""
        nodes = self._nodes_before(written_R_T[:, :-1])
        if nodes is None:
            nodes = self._walk_from_marker(written_R_T)
        else:
            last_R = written_R_T[:, -1]
            marked_R = np.where(last_R == self.marker_id, 0, FREE)
            nodes = np.where(nodes == FREE, marked_R, self.tree.step(nodes, last_R))
        self._seen, self._nodes = written_R_T.copy(), nodes
        return nodes

    def _nodes_before(self, before_R_T: np.ndarray) -> np.ndarray | None:
        """(R,) the nodes at the last call, where beams have moved to since; `None` when a row is new."""
        if self._seen is None or self._nodes is None or before_R_T.shape[1] != self._seen.shape[1]:
            return None
        if np.array_equal(before_R_T, self._seen):
            return self._nodes
        place = {row.tobytes(): i for i, row in enumerate(self._seen)}
        moved_R = [place.get(row.tobytes(), -1) for row in before_R_T]
        return None if -1 in moved_R else self._nodes[moved_R]

    def _walk_from_marker(self, written_R_T: np.ndarray) -> np.ndarray:
        is_marker_R_T = written_R_T == self.marker_id
        marked_R, marker_R = is_marker_R_T.any(1), is_marker_R_T.argmax(1)
        nodes = np.where(marked_R, 0, FREE)
        width = written_R_T.shape[1]
        for offset in range(1, width - int(marker_R[marked_R].min(initial=width - 1))):
            rows = np.flatnonzero(marked_R & (marker_R + offset < width))
            nodes[rows] = self.tree.step(nodes[rows], written_R_T[rows, marker_R[rows] + offset])
        return nodes


def constrained_log_probs(
    logits_B_T_V: torch.Tensor, sequences_B_W: torch.Tensor, constraint: CatalogConstraint, temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of what was written under the constraint it was written under: the ratio to sampling is 1.

    Args:
        logits_B_T_V: logits for the last T tokens of the sequences, at the positions before them.
        sequences_B_W: prompts padded on the left to the constraint's width, W − T, and T tokens of completions.
        constraint: a new one, as `generate` had it.
        temperature: at which the tokens were sampled.

    Returns:
        (B, T) log-probabilities of the tokens, with gradients, and the entropies they were drawn with, without.
        Padding after the end counts as impossible (minus infinity): mask it.
    """
    start = sequences_B_W.shape[1] - logits_B_T_V.shape[1]
    log_probs, entropies = [], []
    for t in range(logits_B_T_V.shape[1]):
        allowed = constraint(sequences_B_W[:, : start + t], logits_B_T_V[:, t].float())
        log_p = (allowed / temperature).log_softmax(-1)
        log_probs.append(log_p.gather(1, sequences_B_W[:, start + t, None])[:, 0])
        of_each = log_p.detach()
        entropies.append(-(of_each.exp() * of_each.clamp(min=torch.finfo(of_each.dtype).min)).sum(-1))
    return torch.stack(log_probs, 1), torch.stack(entropies, 1)
