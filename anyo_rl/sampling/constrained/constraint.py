"""Holding what a teacher writes after the marker to the catalog: the mask, and log-probabilities under it.

What is sampled so is the distribution that `anyo_rl.ranking.distribution` computes: the next token's renormalised over
the children of the prefix tree's node.
"""

import numpy as np
import torch
from transformers import LogitsProcessor

from anyo_rl.catalog.tree import PrefixTree
from anyo_rl.sampling.constrained.mask import FREE, CatalogMask
from anyo_rl.teacher.tokens import Tokens


class CatalogConstraint(LogitsProcessor):
    """Holds what comes after the marker to the catalog, for one call of `generate`.

    Before the marker everything is free, unless `max_reasoning_tokens` is set. From the marker on only the children
    of the tree's node are possible, with their log-probabilities among themselves: beams add these up. After an item
    only end-of-sequence is.

    Args:
        tree: of the catalog whose items may be written.
        tokens: the tokenizer that it was made with, and the marker.
        prompt_width: width W of the padded prompts. A marker inside a prompt is no marker, except as the last token:
            then the item comes at once.
        max_reasoning_tokens: when set, every completion gets an item: the marker is forced after this many tokens,
            and the end of the sequence cannot come before it. The item takes up to `tree.depth.max()` tokens more.
    """

    def __init__(
        self, tree: PrefixTree, tokens: Tokens, prompt_width: int, max_reasoning_tokens: int | None = None
    ) -> None:
        self.mask = CatalogMask(tree, tokens.marker_id, tokens.eos_id, max_reasoning_tokens)
        self.start = prompt_width - 1
        self._seen: np.ndarray | None = None
        self._nodes: np.ndarray | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(R, V) scores of the next token, those that are not possible at minus infinity.

        Args:
            input_ids: (R, T) prompts and what was written so far.
            scores: (R, V) logits or log-probabilities.
        """
        nodes_R = self._walk(input_ids[:, self.start :].cpu().numpy())
        return self.mask(scores, nodes_R, np.full(len(nodes_R), input_ids.shape[1] - 1 - self.start))

    def _walk(self, written_R_T: np.ndarray) -> np.ndarray:
        """(R,) the node that each row is at, given everything from the prompt's last token on."""
        nodes = self._nodes_before(written_R_T[:, :-1])
        if nodes is None:
            nodes = self._walk_from_marker(written_R_T)
        else:
            nodes = self.mask.step(nodes, written_R_T[:, -1])
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
        is_marker_R_T = written_R_T == self.mask.marker_id
        marked_R, marker_R = is_marker_R_T.any(1), is_marker_R_T.argmax(1)
        nodes = np.where(marked_R, 0, FREE)
        width = written_R_T.shape[1]
        for offset in range(1, width - int(marker_R[marked_R].min(initial=width - 1))):
            rows = np.flatnonzero(marked_R & (marker_R + offset < width))
            nodes[rows] = self.mask.tree.step(nodes[rows], written_R_T[rows, marker_R[rows] + offset])
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
