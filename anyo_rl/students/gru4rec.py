"""GRU4Rec: a recurrent network over a user's items (Hidasi et al. 2016, arXiv 1511.06939).

Departures from the paper: softmax cross-entropy over the whole catalog in place of sampled ranking losses, each
user's sequence is a row of its own in place of session-parallel batches, and the item embeddings are tied.
"""

from typing import Any

import torch
from torch import Tensor, nn

from anyo_rl.students.training import FitReport, Histories, score_histories


class GRU4Rec(nn.Module):
    """A GRU that scores every item as the next one.

    Args:
        n_items: Size N of the catalog; items are 0..N-1 and N is the padding.
        dim: Width of the item vectors and the output.
        hidden: Width of the recurrent state.
        n_layers: Recurrent layers.
        dropout: On the embeddings and between layers.
        max_length: Most recent items that are read; older ones are dropped.
        seed: Of the initial weights.
    """

    def __init__(
        self,
        n_items: int,
        *,
        dim: int = 64,
        hidden: int = 128,
        n_layers: int = 1,
        dropout: float = 0.3,
        max_length: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if n_items < 1:
            raise ValueError(f"found n_items={n_items}, expected 1 or more")
        self.settings: dict[str, Any] = {
            "n_items": n_items, "dim": dim, "hidden": hidden, "n_layers": n_layers, "dropout": dropout,
            "max_length": max_length, "seed": seed,
        }  # fmt: skip
        self.n_items, self.max_length = n_items, max_length
        self.report = FitReport()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.items = nn.Embedding(n_items + 1, dim, padding_idx=n_items)
            self.dropout = nn.Dropout(dropout)
            self.gru = nn.GRU(dim, hidden, n_layers, batch_first=True, dropout=dropout if n_layers > 1 else 0.0)
            self.project = nn.Linear(hidden, dim)
            self.final_norm = nn.LayerNorm(dim)
            nn.init.normal_(self.items.weight, std=0.02)
            with torch.no_grad():
                self.items.weight[n_items].zero_()

    def forward(self, items_B_T: Tensor) -> Tensor:
        """Hidden states (B, T, D); position t has seen items 0..t. Padding (index N) is on the left."""
        n_time = items_B_T.shape[1]
        n_padding_B = (items_B_T == self.n_items).sum(1)
        # The state must start at the first real item, not carry what padding put into it: rows are rolled to the
        # left edge for the GRU, and their outputs rolled back.
        steps_T = torch.arange(n_time, device=items_B_T.device)
        to_left_B_T = (steps_T + n_padding_B[:, None]) % n_time
        to_right_B_T = (steps_T - n_padding_B[:, None]) % n_time
        hidden_B_T_H, _ = self.gru(self.dropout(self.items(items_B_T.gather(1, to_left_B_T))))
        index = to_right_B_T[:, :, None].expand(-1, -1, hidden_B_T_H.shape[2])
        # Padding leaves the state at its start: an empty history scores alike whatever it was padded to.
        hidden_B_T_H = hidden_B_T_H.gather(1, index) * (items_B_T != self.n_items)[:, :, None]
        return self.final_norm(self.project(self.dropout(hidden_B_T_H)))

    @property
    def item_vectors(self) -> Tensor:
        """(N, D): their product with a hidden state is the logit of each item."""
        return self.items.weight[: self.n_items]

    def item_logits(self, hidden_D: Tensor) -> Tensor:
        """Logits (…, N) of the next item for hidden states (…, D)."""
        return hidden_D @ self.item_vectors.T

    def scores(self, histories: Histories, batch_size: int = 256) -> Tensor:
        """Scores (B, N) float32 of every item after each history; see [`score_histories`]."""
        return score_histories(self, histories, batch_size)
