"""SASRec: a causal transformer over a user's items (Kang & McAuley 2018, arXiv 1808.09781).

Departures from the paper, each of which makes it stronger: softmax cross-entropy over the whole catalog in place of
one sampled negative, pre-norm blocks with GELU, and scores that are the product with the (tied) item embeddings.
Positions are counted from the start of the window, without the padding, so padding changes nothing.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyo_rl.students.training import FitReport, Histories, score_histories

Heads = tuple[Tensor, Tensor]  # keys and values (B, H, T, d)


class _Block(nn.Module):
    """Pre-norm causal self-attention and feed-forward."""

    def __init__(self, dim: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * dim, dim)
        )

    @property
    def rate(self) -> float:
        """Of dropout, now."""
        return self.dropout if self.training else 0.0

    def forward(self, hidden_B_T_D: Tensor, mask_B_1_T_T: Tensor) -> tuple[Tensor, Heads]:
        query, key, value = self.heads(hidden_B_T_D)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_B_1_T_T, dropout_p=self.rate)
        return self.finished(hidden_B_T_D, mixed), (key, value)

    def heads(self, hidden_B_T_D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, T, d) each."""
        n_batch, n_time, dim = hidden_B_T_D.shape
        qkv = self.qkv(self.attention_norm(hidden_B_T_D)).view(n_batch, n_time, 3, self.n_heads, dim // self.n_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        return query, key, value

    def finished(self, hidden_B_T_D: Tensor, mixed_B_H_T_d: Tensor) -> Tensor:
        """The block's output, from what its attention gave."""
        mixed_B_T_D = self.out(mixed_B_H_T_d.transpose(1, 2).reshape(hidden_B_T_D.shape))
        hidden_B_T_D = hidden_B_T_D + F.dropout(mixed_B_T_D, self.dropout, self.training)
        return hidden_B_T_D + F.dropout(self.feed_forward(hidden_B_T_D), self.dropout, self.training)


class SASRec(nn.Module):
    """A causal transformer that scores every item as the next one.

    Args:
        n_items: Size N of the catalog; items are 0..N-1 and N is the padding.
        dim: Width of the item vectors and the hidden states.
        n_layers: Blocks.
        n_heads: Attention heads; divides `dim`.
        dropout: On embeddings, attention and both branches of a block.
        max_length: Most recent items that are read; older ones are dropped.
        seed: Of the initial weights.
    """

    def __init__(
        self,
        n_items: int,
        *,
        dim: int = 64,
        n_layers: int = 2,
        n_heads: int = 2,
        dropout: float = 0.3,
        max_length: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if n_items < 1 or dim % n_heads:
            raise ValueError(
                f"found n_items={n_items}, dim={dim}, n_heads={n_heads}, expected an item and dim % n_heads == 0"
            )
        self.settings: dict[str, Any] = {
            "n_items": n_items, "dim": dim, "n_layers": n_layers, "n_heads": n_heads, "dropout": dropout,
            "max_length": max_length, "seed": seed,
        }  # fmt: skip
        self.n_items, self.max_length = n_items, max_length
        self.report = FitReport()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.items = nn.Embedding(n_items + 1, dim, padding_idx=n_items)
            self.positions = nn.Embedding(max_length, dim)
            self.dropout = nn.Dropout(dropout)
            self.blocks = nn.ModuleList(_Block(dim, n_heads, dropout) for _ in range(n_layers))
            self.final_norm = nn.LayerNorm(dim)
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear):
                    nn.init.zeros_(module.bias)
            with torch.no_grad():
                self.items.weight[n_items].zero_()

    def forward(self, items_B_T: Tensor) -> Tensor:
        """Hidden states (B, T, D); position t has seen items 0..t. Padding (index N) may be on either side."""
        return self.read(items_B_T)[0]

    def read(self, items_B_T: Tensor) -> tuple[Tensor, list[Heads], Tensor]:
        """Hidden states, the keys and values of each block, and what each position sees, (B, 1, T, T)."""
        real_B_T = items_B_T != self.n_items
        positions_B_T = (real_B_T.cumsum(1) - 1).clamp(min=0)
        hidden_B_T_D = self.dropout(self.items(items_B_T) + self.positions(positions_B_T))
        n_time = items_B_T.shape[1]
        causal_T_T = torch.ones(n_time, n_time, dtype=torch.bool, device=items_B_T.device).tril()
        # Each position sees itself, padding too: a row with nothing to attend to would be NaN.
        itself_T_T = torch.eye(n_time, dtype=torch.bool, device=items_B_T.device)
        mask_B_1_T_T = ((causal_T_T & real_B_T[:, None, :]) | itself_T_T)[:, None]
        read: list[Heads] = []
        for block in self.blocks:
            hidden_B_T_D, heads = block(hidden_B_T_D, mask_B_1_T_T)
            read.append(heads)
        return self.final_norm(hidden_B_T_D), read, mask_B_1_T_T

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
