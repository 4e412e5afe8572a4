"""What one ranking of a sampled batch gives to rewards, losses and logs."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from anyo_rl.evidence.fusion import FusedRanking
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.orders import OrderRanking
from anyo_rl.ranking.protocol import Ranking


@dataclass
class Scored:
    """A batch of this process's completions, ranked.

    Attributes:
        ranking: where each puts its target.
        marked_B: whether each has a marker; one without was ranked as if it had ended where it ends.
        probes: columns that a reward asked for (`anyo_rl.training.rewards.probes`).
        step_values_B: V_0 … V_{T−1} of each, where steps are credited or rewarded; else empty.
        rewards_A: weighted rewards of the completions of all processes, NaN where none applies; there once the
            rewards were called.
    """

    ranking: Ranking
    marked_B: list[bool]
    probes: dict[str, list[float | None]] = field(default_factory=dict)
    step_values_B: list[np.ndarray] = field(default_factory=list)
    rewards_A: torch.Tensor | None = None

    @classmethod
    def of_written(cls, ranking: Ranking, marked_B: list[bool]) -> "Scored":
        """The same of what was written: an order that names no candidate counts as one without a marker."""
        if isinstance(ranking, OrderRanking):
            marked_B = [marked and order.named > 0 for marked, order in zip(marked_B, ranking.orders_B, strict=True)]
        return cls(ranking, marked_B)

    @property
    def gains_B(self) -> np.ndarray:
        """NDCG of the ranks."""
        return ndcg(self.ranking.ranks_B)

    @property
    def outcomes_B(self) -> np.ndarray:
        """The gains; 0 for a completion without a marker."""
        return np.where(self.marked_B, self.gains_B, 0.0)

    @property
    def log_probs_B(self) -> np.ndarray:
        """The teacher's own log p(target | path); NaN without a marker, and where the item is written."""
        ranking = self.ranking
        log_probs = ranking.teacher_log_probs_B if isinstance(ranking, FusedRanking) else ranking.log_probs_B
        known = np.full(len(self.marked_B), np.nan) if log_probs is None else log_probs
        return np.where(self.marked_B, known, np.nan)

    def columns(self, n_items: int) -> list[dict[str, Any]]:
        """The columns that rewards get of each completion, `None` for one without a marker (save `n_items`).

        Args:
            n_items: size of the catalog.
        """
        gains_B, log_probs_B = self.gains_B, self.log_probs_B
        return [
            {
                "rank": int(self.ranking.ranks_B[i]) if marked else None,
                "gain": float(gains_B[i]) if marked else None,
                # An item that was written may be none of the catalog, or left out of the ranking.
                "item_id": next(iter(self.ranking.top_ids_B_K[i]), None) if marked else None,
                "log_prob": None if np.isnan(log_probs_B[i]) else float(log_probs_B[i]),
                "n_items": n_items,
                **{name: column[i] for name, column in self.probes.items()},
            }
            for i, marked in enumerate(self.marked_B)
        ]
