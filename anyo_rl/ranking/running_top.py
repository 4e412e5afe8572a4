"""The k best items of each row while items come by in tiles whose distances are known within a tolerance.

An upper bound of the k-th best score so far tells which entries of a tile may still be among the k best; few are, once
a tile or two has gone by. Those are kept, and scored exactly when many wait or when the search ends.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

BLOCK = 128  # items that share a threshold
SETTLE = 1 << 20  # pairs that may wait for their exact score: bounds memory where everything ties
MARGIN = 2e-6  # relative: what float32 factors may be off by

# (rows, items, raw weights or None) to exact scores, all of shape (P,).
Exact = Callable[[torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]


def best_of_pairs(
    n_rows: int, k: int, rows_P: torch.Tensor, items_P: torch.Tensor, scores_P: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k lowest scores of each row and their items, (n_rows, k); of equal scores the lower item is first.

    Empty places hold `inf` and -1.
    """
    order_P = items_P.argsort(stable=True)
    order_P = order_P[scores_P[order_P].argsort(stable=True)]
    order_P = order_P[rows_P[order_P].argsort(stable=True)]
    rows_P, items_P, scores_P = rows_P[order_P], items_P[order_P], scores_P[order_P]
    slot_P = _slots(rows_P, n_rows)
    kept_P = slot_P < k
    scores_B_K = torch.full((n_rows, k), torch.inf, dtype=scores_P.dtype, device=scores_P.device)
    items_B_K = torch.full((n_rows, k), -1, dtype=torch.int64, device=scores_P.device)
    scores_B_K[rows_P[kept_P], slot_P[kept_P]] = scores_P[kept_P]
    items_B_K[rows_P[kept_P], slot_P[kept_P]] = items_P[kept_P]
    return scores_B_K, items_B_K


def _slots(rows_P: torch.Tensor, n_rows: int) -> torch.Tensor:
    """The place of each pair within its row, where the rows are in order."""
    count_B = torch.bincount(rows_P, minlength=n_rows)
    return torch.arange(len(rows_P), device=rows_P.device) - (count_B.cumsum(0) - count_B)[rows_P]


class RunningTop:
    """The k best of some rows. Scores are (D − low) · factor, lower is better.

    Args:
        low_R: float64, what is taken off the distances, shape (R,).
        k: how many items.
        exact: scores of pairs.
    """

    def __init__(self, low_R: torch.Tensor, k: int, exact: Exact) -> None:
        n_rows, device = len(low_R), low_R.device
        self.low_R, self.k, self.exact = low_R, k, exact
        # Upper bounds of the k best so far; the last is that of the k-th.
        self.bound_R_K = torch.full((n_rows, k), torch.inf, dtype=torch.float64, device=device)
        self.kth_R = torch.full((n_rows,), torch.inf, dtype=torch.float64, device=device)
        self.scores_R_K = self.bound_R_K.clone()
        self.items_R_K = torch.full((n_rows, k), -1, dtype=torch.int64, device=device)
        self.waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]] = []
        self.n_waiting = 0

    def offer(
        self, rows_P: torch.Tensor, items_P: torch.Tensor, lower_P: torch.Tensor, raw_P: torch.Tensor | None
    ) -> None:
        """Let pairs wait for their exact scores, which are at least `lower_P`."""
        self.waiting.append((rows_P, items_P, lower_P, raw_P))
        self.n_waiting += len(rows_P)
        if self.n_waiting > SETTLE:
            self._settle()

    def _settle(self) -> None:
        rows_P, items_P, lower_P = (torch.cat([part[i] for part in self.waiting]) for i in range(3))
        raw_P = None if self.waiting[0][3] is None else torch.cat([part[3] for part in self.waiting])
        near_P = lower_P <= self.kth_R[rows_P]
        rows_P, items_P = rows_P[near_P], items_P[near_P]
        scores_P = self.exact(rows_P, items_P, None if raw_P is None else raw_P[near_P])
        found = self.items_R_K >= 0
        self.scores_R_K, self.items_R_K = best_of_pairs(
            len(self.low_R),
            self.k,
            torch.cat([found.nonzero()[:, 0], rows_P]),
            torch.cat([self.items_R_K[found], items_P]),
            torch.cat([self.scores_R_K[found], scores_P]),
        )
        self.waiting, self.n_waiting = [], 0

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Exact scores and items of the k best, (R, k), `inf` and -1 where there are fewer."""
        if self.waiting:
            self._settle()
        return self.scores_R_K, self.items_R_K

    def add(
        self,
        square_R_C: torch.Tensor,
        tolerance_R_b: torch.Tensor,
        growth_R_b: torch.Tensor,
        factor_R_C: torch.Tensor,
        item_of: Callable[[torch.Tensor], torch.Tensor],
        raw_R_C: torch.Tensor | None = None,
    ) -> None:
        """Take in a tile.

        Args:
            square_R_C: squares of distances, off by `tolerance_R_b` at most; `inf` for what does not compete.
            tolerance_R_b: per block of 128.
            growth_R_b: the most 1 / factor in each block, (R or 1, blocks).
            factor_R_C: (R or 1, C).
            item_of: from columns to items.
            raw_R_C: handed on to `exact`.
        """
        n_rows, width = square_R_C.shape
        first = bool(self.kth_R.isinf().any())
        if first:
            # Bounds from a whole tile: from then on few entries pass.
            reach_R_C = square_R_C + 2 * tolerance_R_b.repeat_interleave(BLOCK, dim=1)
            bound_R_C = reach_R_C.clamp_min_(0).sqrt_().sub_(self.low_R.float()[:, None]).clamp_min_(0)
            bound_R_C = bound_R_C.mul_(factor_R_C.float()).nan_to_num_(nan=torch.inf, posinf=torch.inf)
            best_R_K = bound_R_C.topk(min(self.k, width), dim=1, largest=False).values
            self._lower_bounds(best_R_K.double() * (1 + MARGIN))
        blocks_R_b_C = square_R_C.view(n_rows, -1, BLOCK)
        limit_R_b = (self.low_R[:, None] + self.kth_R[:, None] * growth_R_b).square_()
        limit_R_b = (limit_R_b.mul_(1 + MARGIN) + tolerance_R_b).float()
        r, block = (blocks_R_b_C.amin(2) <= limit_R_b).nonzero(as_tuple=True)
        if not len(r):
            return
        near_P_C = blocks_R_b_C[r, block]
        entry, offset = ((near_P_C <= limit_R_b[r, block, None]) & near_P_C.isfinite()).nonzero(as_tuple=True)
        square_P, r, block = near_P_C[entry, offset].double(), r[entry], block[entry]
        column, tolerance_P = block * BLOCK + offset, tolerance_R_b[r, block]
        factor_P = factor_R_C[r if len(factor_R_C) == n_rows else 0, column].double()
        low_P = self.low_R[r]
        lower_P = ((square_P - tolerance_P).clamp_min_(0).sqrt_() - low_P).clamp_min_(0) * factor_P * (1 - MARGIN)
        near_P = lower_P <= self.kth_R[r]
        if not first:
            upper_P = ((square_P + tolerance_P).clamp_min_(0).sqrt_() - low_P).clamp_min_(0) * factor_P * (1 + MARGIN)
            slot_P = _slots(r, n_rows)
            pad_R_M = self.bound_R_K.new_full((n_rows, int(slot_P.max()) + 1 if len(slot_P) else 0), torch.inf)
            pad_R_M[r, slot_P] = upper_P
            self._lower_bounds(pad_R_M)
        raw_P = None if raw_R_C is None else raw_R_C[r, column][near_P]
        self.offer(r[near_P], item_of(column[near_P]), lower_P[near_P], raw_P)

    def _lower_bounds(self, bound_R_M: torch.Tensor) -> None:
        """Merge in upper bounds of other items' scores."""
        both = torch.cat([self.bound_R_K, bound_R_M], dim=1)
        self.bound_R_K = both.topk(self.k, dim=1, largest=False).values
        self.kth_R = self.bound_R_K.amax(1)
