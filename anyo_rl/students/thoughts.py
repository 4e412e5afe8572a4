"""Thoughts without words of a student: its last state is fed back as an input, K times, before it answers.

ReaRec's progressive learning (Tang et al. 2025, arXiv 2503.22675). The state at the last item, with a vector of the
thought's own number added, goes through the same blocks again: it attends to all items so far and to the thoughts
before it, and its state answers, or is fed back once more. Every thought is trained to name the next item, the early
ones at a higher temperature, so that a student may also be asked to think less than it was trained to.

Departures: every position of a sequence thinks, in the one forward that a sequence takes, where the authors make a row
of each prefix. The loss is the mean over the answer at once and the thoughts, where the authors sum. Their contrastive
term, against thoughts with noise, and their ensemble over thoughts are left out.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyo_rl.run.settings import UsageError
from anyo_rl.students.sasrec import Heads, SASRec


def attend(query_B_H_T_d: Tensor, items: Heads, own: Sequence[Heads], mask_B_1_T_T: Tensor, dropout: float) -> Tensor:
    """Attention (B, H, T, d) of one thought at each position, to items up to there and to thoughts of that position.

    Args:
        query_B_H_T_d: of the thought, at all positions, or at the last one alone (T = 1).
        items: of the items.
        own: of the thoughts so far at the same positions, this one included.
        mask_B_1_T_T: which items a position sees.
        dropout: on the weights.
    """
    keys, values = items
    own_keys = torch.stack([key for key, _ in own], dim=3)  # (B, H, T, k, d)
    own_values = torch.stack([value for _, value in own], dim=3)
    to_items = (query_B_H_T_d @ keys.transpose(-1, -2)).masked_fill(~mask_B_1_T_T, -torch.inf)
    to_own = (query_B_H_T_d[:, :, :, None] * own_keys).sum(-1)
    logits = torch.cat([to_items, to_own], dim=-1) * query_B_H_T_d.shape[-1] ** -0.5
    weights = F.dropout(logits.softmax(-1), dropout, dropout > 0)
    n_items = keys.shape[2]
    return weights[..., :n_items] @ values + (weights[..., n_items:, None] * own_values).sum(3)


class ThinkingSASRec(SASRec):
    """A SASRec whose state is fed back before it answers.

    Args:
        n_items: Size N of the catalog.
        n_thoughts: How often.
        seed: Of the initial weights, which are those of a SASRec, and of the vectors of thoughts.
        **shape: What a SASRec takes besides.

    Attributes:
        thinking: How many thoughts it takes now, `n_thoughts` at most.
    """

    def __init__(self, n_items: int, *, n_thoughts: int = 2, seed: int = 0, **shape: Any) -> None:
        super().__init__(n_items, seed=seed, **shape)
        if n_thoughts < 1:
            raise ValueError(f"found n_thoughts={n_thoughts}, expected 1 or more: a SASRec takes none")
        self.settings["n_thoughts"] = n_thoughts
        self.n_thoughts = self.thinking = n_thoughts
        generator = torch.Generator().manual_seed(seed)
        self.thoughts = nn.Parameter(torch.randn(n_thoughts, self.items.embedding_dim, generator=generator) * 0.02)

    def think(self, n_thoughts: int) -> None:
        """Sets how many thoughts it takes from now on.

        Raises:
            UsageError: it was trained with fewer.
        """
        if not 0 <= n_thoughts <= self.n_thoughts:
            raise UsageError(
                f"found {n_thoughts} thoughts, expected 0 to {self.n_thoughts}, with which the student was trained"
            )
        self.thinking = n_thoughts

    def forward(self, items_B_T: Tensor) -> Tensor:
        """Hidden states (B, T, D) after the last thought of each position."""
        return self.states(items_B_T)[-1]

    def last_states(self, items_B_T: Tensor) -> Tensor:
        """States (B, D) of the last position, where alone it thinks."""
        return self.states(items_B_T, last=True)[-1][:, -1]

    def states(self, items_B_T: Tensor, last: bool = False) -> list[Tensor]:
        """States (B, T, D) at once and after each thought: `thinking` + 1 of them.

        Args:
            items_B_T: item indices; padding (index N) on the left, or on either side without `last`.
            last: those of the last position alone, (B, 1, D).
        """
        state_B_T_D, read, mask_B_1_T_T = self.read(items_B_T)
        if last:
            state_B_T_D, mask_B_1_T_T = state_B_T_D[:, -1:], mask_B_1_T_T[:, :, -1:]
        states = [state_B_T_D]
        thought: list[list[Heads]] = [[] for _ in read]  # keys and values of thoughts, of each block
        for k in range(self.thinking):
            hidden_B_T_D = self.dropout(states[-1] + self.thoughts[k])
            for block, items, own in zip(self.blocks, read, thought, strict=True):
                query, key, value = block.heads(hidden_B_T_D)  # type: ignore[operator]
                own.append((key, value))
                mixed = attend(query, items, own, mask_B_1_T_T, block.rate)  # type: ignore[arg-type]
                hidden_B_T_D = block.finished(hidden_B_T_D, mixed)  # type: ignore[operator]
            states.append(self.final_norm(hidden_B_T_D))
        return states
