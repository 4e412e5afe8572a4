"""Exact ranks by distance among many items, at little more than the price of one matrix product.

Ranks and top lists are those of float64 distances; `anyo_rl.ranking.embedding.item_space` says how a
float32 product leaves only few of them to be computed. Equal vectors tie, and near ones do not. Where nearly all items
are equally far (an encoder that collapsed) nearly all distances are computed: slow, and still right.

Reweighting, D̃ = (D − min D) / (max D − min D) · (1 + W)^−γ, costs a second product, for the minimum and maximum of
each row. Both are exact as well: where they are near each other, D̃ makes any error in them large. Items are compared
by S = (D − min D) · (1 + W)^−γ, and S ≤ T when D² ≤ (min D + T · (1 + W)^γ)²: a threshold for each item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from anyo_rl.ranking.embedding.item_space import ItemSpace, Queries, Tile, full_precision, where_at_most

# W of a chunk of items before it is normalised, (B, n), or (1, n) where rows share it. Called twice for each chunk.
Weights = Callable[[slice], torch.Tensor]
# (rows, items), int64, (P,) each.
Pairs = tuple[torch.Tensor, torch.Tensor]

TIE = 1e-12  # relative: far above the rounding of a float64 sum of squares, far below that of the vectors
MAX_GAMMA = 100.0  # where the paper's search ends; 2^γ must be a float32
BEYOND = 1e38  # a square above those of all distances


@dataclass(frozen=True)
class Found:
    """What a search found; scores are D, or D̃ where it reweighs, and lower is better.

    Attributes:
        n_near_B: competing items at or above the target's score, int64 (B,): the target's rank, where it competes.
        scores_B_K: float64 scores of the best items, best first, `inf` where there are fewer.
        items_B_K: their indices, of equal scores the lower first; N where there are fewer.
    """

    n_near_B: torch.Tensor
    scores_B_K: torch.Tensor
    items_B_K: torch.Tensor


@dataclass(frozen=True)
class Scale:
    """What makes scores of distances. All float64 of shape (B,); without reweighting they are 0, 1, 0, 1 and γ = 0.

    Attributes:
        low_B: min D.
        spread_B: max D − min D, and 1 where that is nothing.
        weight_low_B: min W, before it is normalised.
        weight_spread_B: max W − min W.
        gamma: γ, the strength of W.
    """

    low_B: torch.Tensor
    spread_B: torch.Tensor
    weight_low_B: torch.Tensor
    weight_spread_B: torch.Tensor
    gamma: float

    def score(self, distance_P: torch.Tensor, row_P: torch.Tensor, weight_P: torch.Tensor | None) -> torch.Tensor:
        """S = (D − min D) · (1 + W)^−γ of pairs, float64 (P,)."""
        above_P = (distance_P - self.low_B[row_P]).clamp_min(0)
        if weight_P is None:
            return above_P
        share_P = (weight_P.double() - self.weight_low_B[row_P]) / self.weight_spread_B[row_P]
        return above_P * (1 + share_P) ** -self.gamma

    @property
    def half(self) -> float:
        """A power of two near 2^(γ/2): growth is divided by it and S multiplied, so that float32 holds both."""
        return 2.0 ** round(self.gamma / 2)

    def growth(self, rows: slice, weight_R_n: torch.Tensor | None) -> torch.Tensor:
        """(1 + W)^γ / half, float32, (R, n), or (1, n) where rows share W, or (1, 1) without reweighting."""
        if weight_R_n is None:
            return torch.ones(1, 1, device=self.low_B.device)
        rows = rows if len(weight_R_n) > 1 else slice(rows.start, rows.start + 1)
        # The difference is taken in W's own type: scores with a large common part keep their digits.
        share_R_n = (weight_R_n - self.weight_low_B[rows, None].to(weight_R_n.dtype)).float()
        share_R_n = share_R_n.div_(self.weight_spread_B[rows, None].float())
        return share_R_n.add_(1).pow_(self.gamma).div_(self.half)

    def limits(self, queries: Queries, tile: Tile, score_B: torch.Tensor, growth_R_n: torch.Tensor) -> torch.Tensor:
        """The thresholds of a tile: S is at most `score_B` where D² − |x|² is at most this, float32 (R, 1 or n)."""
        rows, room_R_n = tile.rows, tile.spare_2_R_n[0][:, : growth_R_n.shape[1]]
        limit_R_n = torch.mul(growth_R_n, (score_B[rows, None] * self.half).float(), out=room_R_n)
        limit_R_n.add_(self.low_B[rows, None].float()).square_().clamp_max_(BEYOND)
        return limit_R_n.sub_(queries.square_B[rows, None].float())


class Best:
    """The k best of each row so far.

    Args:
        n_rows: B.
        k: places of a row.
        n_items: N, which stands for no item.
        device: where the space's tiles are.
    """

    def __init__(self, n_rows: int, k: int, n_items: int, device: torch.device) -> None:
        self.k = k
        self.scores_B_K = torch.full((n_rows, k), torch.inf, dtype=torch.float64, device=device)
        self.items_B_K = torch.full((n_rows, k), n_items, device=device)

    @property
    def kth_B(self) -> torch.Tensor:
        """The k-th best score, `inf` where there are fewer."""
        return self.scores_B_K[:, -1]

    def add(self, row_P: torch.Tensor, item_P: torch.Tensor, score_P: torch.Tensor) -> None:
        """Takes in pairs that were not there before; `row_P` is in order."""
        row_r, count_r = torch.unique_consecutive(row_P, return_counts=True)
        if not len(row_r):
            return
        which_P = torch.repeat_interleave(torch.arange(len(row_r), device=row_P.device), count_r)
        slot_P = self.k + torch.arange(len(row_P), device=row_P.device) - (count_r.cumsum(0) - count_r)[which_P]
        width = self.k + int(count_r.max())
        score_r_W = self.scores_B_K.new_full((len(row_r), width), torch.inf)
        item_r_W = self.items_B_K.new_full((len(row_r), width), torch.iinfo(torch.int64).max)
        score_r_W[:, : self.k], item_r_W[:, : self.k] = self.scores_B_K[row_r], self.items_B_K[row_r]
        score_r_W[which_P, slot_P], item_r_W[which_P, slot_P] = score_P, item_P
        # By item, then stably by score: of equal scores the lower item is first.
        item_r_W, order = item_r_W.sort(dim=1)
        score_r_W, by_score = score_r_W.gather(1, order).sort(dim=1, stable=True)
        self.scores_B_K[row_r] = score_r_W[:, : self.k]
        self.items_B_K[row_r] = item_r_W.gather(1, by_score)[:, : self.k]


class Search:
    """One search: some rows in one space.

    Args:
        space: the items.
        x_B_D: float32 vectors, finite, one per row.
        targets_B: item index of each row's target.
        weights: W, which is min–max normalised here for each row over the whole catalog; `None` leaves it out.
        gamma: γ, 0 to 100.

    Raises:
        ValueError: γ is out of its range, a row is too long for float32 squares, or weights have a wrong shape or are
            not finite.
    """

    def __init__(
        self,
        space: ItemSpace,
        x_B_D: torch.Tensor,
        targets_B: torch.Tensor,
        *,
        weights: Weights | None = None,
        gamma: float = 0.0,
    ) -> None:
        if not 0 <= gamma <= MAX_GAMMA:
            raise ValueError(f"found gamma={gamma}, expected 0 to {MAX_GAMMA:g}")
        self.space, self.device = space, space.device
        self.weights = weights if gamma else None
        self.gamma = float(gamma) if weights is not None else 0.0
        with full_precision(self.device):
            self.queries = space.queries(x_B_D)
            all_B = torch.arange(len(x_B_D), device=self.device)
            self.scale, target_weight_B = self._scale(targets_B)
            distance_B = space.distances(self.queries.x_B_D, all_B, space.vectors(targets_B), all_B)
            self.target_B = self.scale.score(distance_B, all_B, target_weight_B)
            self.rival_B = self.target_B + TIE * (distance_B + self.target_B)  # what still ties with the target

    def among_all(self, k: int, removed: Pairs | None = None) -> Found:
        """Ranks the targets and finds the k best items (0 for ranks alone) in the catalog without `removed`."""
        with full_precision(self.device):
            best = Best(len(self.target_B), k, len(self.space.items_N_D), self.device)
            n_near_B = torch.zeros(len(self.target_B), dtype=torch.int64, device=self.device)
            removed_parts = self._by_part(removed)
            for part in self.space.parts:
                weight_B_n = None if self.weights is None else self._weight(part, self.weights)
                removed_P = next(removed_parts)
                for tile in self.space.tiles(self.queries, part, self.gamma):
                    here_P = (removed_P[0] >= tile.rows.start) & (removed_P[0] < tile.rows.stop)
                    tile.square_R_n[removed_P[0][here_P] - tile.rows.start, removed_P[1][here_P]] = torch.inf
                    weight_R_n = weight_B_n
                    if weight_B_n is not None and len(weight_B_n) > 1:
                        weight_R_n = weight_B_n[tile.rows]
                    growth_R_n = self.scale.growth(tile.rows, weight_R_n)
                    self._count(tile, part, weight_B_n, growth_R_n, n_near_B)
                    if k:
                        self._find(tile, part, weight_B_n, growth_R_n, best)
            return self._found(n_near_B, best)

    def among_candidates(self, k: int, candidates: Pairs) -> Found:
        """The same where nothing but `candidates` competes; each is scored by itself, without a product."""
        with full_precision(self.device):
            best = Best(len(self.target_B), k, len(self.space.items_N_D), self.device)
            n_near_B = torch.zeros(len(self.target_B), dtype=torch.int64, device=self.device)
            candidate_parts = self._by_part(candidates)
            for part in self.space.parts:
                row_P, column_P = next(candidate_parts)
                if not len(row_P):
                    continue
                weight_B_n = None if self.weights is None else self._weight(part, self.weights)
                score_P = self._score(part, row_P, column_P, weight_B_n)
                near_P = score_P <= self.rival_B[row_P]
                n_near_B += torch.bincount(row_P[near_P], minlength=len(n_near_B))
                if k:
                    best.add(row_P, column_P + part.start, score_P)
            return self._found(n_near_B, best)

    def _found(self, n_near_B: torch.Tensor, best: Best) -> Found:
        return Found(n_near_B, best.scores_B_K / self.scale.spread_B[:, None], best.items_B_K)

    def _by_part(self, pairs: Pairs | None) -> Iterator[Pairs]:
        """Pairs of each chunk as (rows, columns in it), in the order of the rows."""
        row_P, item_P = pairs if pairs is not None else torch.empty(2, 0, dtype=torch.int64, device=self.device)
        order_P = torch.argsort(row_P, stable=True)
        order_P = order_P[torch.argsort(item_P[order_P] // max(1, self.space.chunk_size), stable=True)]
        row_P, item_P = row_P[order_P], item_P[order_P]
        chunk_P = item_P // self.space.chunk_size
        for count in torch.bincount(chunk_P, minlength=len(self.space.parts)).tolist():
            yield row_P[:count], item_P[:count] % self.space.chunk_size
            row_P, item_P = row_P[count:], item_P[count:]

    def _weight(self, part: slice, weights: Weights) -> torch.Tensor:
        """W of a chunk, (B or 1, n)."""
        weight_B_n = weights(part).to(self.device)
        width = part.stop - part.start
        if weight_B_n.shape not in ((len(self.queries.x_B_D), width), (1, width)):
            raise ValueError(
                f"weights of {width} items and {len(self.queries.x_B_D)} rows have shape {tuple(weight_B_n.shape)}: "
                "give a row for each, or one for all"
            )
        return weight_B_n if weight_B_n.is_floating_point() else weight_B_n.double()

    def _score(
        self, part: slice, row_P: torch.Tensor, column_P: torch.Tensor, weight_B_n: torch.Tensor | None
    ) -> torch.Tensor:
        """Exact scores of pairs in a chunk, float64 (P,)."""
        weight_P = None
        if weight_B_n is not None:
            weight_P = weight_B_n[row_P if len(weight_B_n) > 1 else 0, column_P]
        distance_P = self.space.distances(self.queries.x_B_D, row_P, self.space.chunk(part), column_P)
        return self.scale.score(distance_P, row_P, weight_P)

    def _count(
        self,
        tile: Tile,
        part: slice,
        weight_B_n: torch.Tensor | None,
        growth_R_n: torch.Tensor,
        n_near_B: torch.Tensor,
    ) -> None:
        """Adds what is at or above each target's score in the tile."""
        limit_R_n = self.scale.limits(self.queries, tile, self.target_B, growth_R_n)
        over_R_n = torch.sub(tile.square_R_n, limit_R_n, out=tile.spare_2_R_n[1])
        row_P, column_P = where_at_most(torch.abs(over_R_n, out=tile.spare_2_R_n[0]), tile.tolerance_R_1)
        # Flags that are floats, 0 or 1, are written and summed several times faster than bools.
        n_near_B[tile.rows] += over_R_n.lt_(-tile.tolerance_R_1).sum(1).long()
        row_P += tile.rows.start
        near_P = self._score(part, row_P, column_P, weight_B_n) <= self.rival_B[row_P]
        n_near_B += torch.bincount(row_P[near_P], minlength=len(n_near_B))

    def _find(
        self, tile: Tile, part: slice, weight_B_n: torch.Tensor | None, growth_R_n: torch.Tensor, best: Best
    ) -> None:
        """Takes in what may be among the k best."""

        def add(row_P: torch.Tensor, column_P: torch.Tensor) -> None:
            row_P = row_P + tile.rows.start
            best.add(row_P, column_P + part.start, self._score(part, row_P, column_P, weight_B_n))

        new_r = best.kth_B[tile.rows].isinf().nonzero()[:, 0]
        if len(new_r):  # any k items give a first threshold; the roughly best give one that few others pass
            square_r_n = tile.square_R_n[new_r] + self.queries.square_B[tile.rows][new_r, None].float()
            rough_r_n = square_r_n.clamp_min_(0).sqrt_() - self.scale.low_B[tile.rows][new_r, None].float()
            rough_r_n /= growth_R_n[new_r] if len(growth_R_n) > 1 else growth_R_n
            column_r_K = rough_r_n.topk(min(best.k, rough_r_n.shape[1]), largest=False).indices
            competes_r_K = tile.square_R_n[new_r[:, None], column_r_K].isfinite()
            row_P, column_P = new_r[:, None].expand_as(column_r_K)[competes_r_K], column_r_K[competes_r_K]
            add(row_P, column_P)
            tile.square_R_n[row_P, column_P] = torch.inf
        limit_R_n = self.scale.limits(self.queries, tile, best.kth_B, growth_R_n)
        if limit_R_n.shape[1] == 1:  # one threshold for the row: no need to write a difference
            add(*where_at_most(tile.square_R_n, limit_R_n + tile.tolerance_R_1))
        else:
            over_R_n = torch.sub(tile.square_R_n, limit_R_n, out=tile.spare_2_R_n[1])
            add(*where_at_most(over_R_n, tile.tolerance_R_1))

    def _scale(self, targets_B: torch.Tensor) -> tuple[Scale, torch.Tensor | None]:
        """What a first pass over all items says about each row, and W of the targets."""
        zero_B = torch.zeros(len(targets_B), dtype=torch.float64, device=self.device)
        if self.weights is None:
            return Scale(zero_B, zero_B + 1, zero_B, zero_B + 1, 0.0), None
        low_B, high_B = zero_B + torch.inf, zero_B.clone()
        weight_low_B, weight_high_B = zero_B + torch.inf, zero_B - torch.inf
        target_weight_B = zero_B.clone()
        for part in self.space.parts:
            for tile in self.space.tiles(self.queries, part):
                self._tighten(tile, part, low_B, 1)
                self._tighten(tile, part, high_B, -1)
            weight_B_n = self._weight(part, self.weights)
            if not torch.isfinite(weight_B_n).all():
                raise ValueError("the weights hold NaN or infinity: give every item a finite score")
            weight_low_B = torch.minimum(weight_low_B, weight_B_n.amin(1))
            weight_high_B = torch.maximum(weight_high_B, weight_B_n.amax(1))
            (here_b,) = ((targets_B >= part.start) & (targets_B < part.stop)).nonzero(as_tuple=True)
            target_weight_B[here_b] = weight_B_n[
                here_b if len(weight_B_n) > 1 else 0, targets_B[here_b] - part.start
            ].double()
        spread_B = torch.where(high_B - low_B > TIE * high_B, high_B - low_B, 1.0)
        weight_spread_B = (weight_high_B - weight_low_B).clamp_min(1e-12)
        return Scale(low_B, spread_B, weight_low_B, weight_spread_B, self.gamma), target_weight_B

    def _tighten(self, tile: Tile, part: slice, extreme_B: torch.Tensor, sign: int) -> None:
        """Takes a tile into the least (sign 1) or the greatest (sign −1) distance of each row, all exact."""

        def limits() -> torch.Tensor:
            return (sign * (extreme_B[tile.rows].square() - self.queries.square_B[tile.rows])).float()

        def take(row_P: torch.Tensor, column_P: torch.Tensor) -> None:
            row_P = row_P + tile.rows.start
            distance_P = self.space.distances(self.queries.x_B_D, row_P, self.space.chunk(part), column_P)
            extreme_B.scatter_reduce_(0, row_P, distance_P, "amin" if sign > 0 else "amax")

        value_R = tile.square_R_n.amin(1) if sign > 0 else -tile.square_R_n.amax(1)
        (row_r,) = (value_R <= limits() + tile.tolerance_R_1[:, 0]).nonzero(as_tuple=True)
        if len(row_r):  # the roughly extreme one first: then few others pass
            square_r_n = sign * tile.square_R_n[row_r]
            take(row_r, square_r_n.argmin(1))
            which_P, column_P = where_at_most(square_r_n, (limits()[:, None] + tile.tolerance_R_1)[row_r])
            take(row_r[which_P], column_P)
