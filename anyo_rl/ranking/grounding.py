"""Exact ranks by distance among many items, at little more than the price of one matrix product.

Squares of distances come in tiles of one product (`anyo_rl.ranking.tiles`), off by a known tolerance. A tile is read
only to compare it with what is known beforehand: the target's distance, and the k-th best so far. What is further than
the tolerance from a threshold is decided; what is nearer, a few items in ten thousand, is decided by its distance
summed coordinate by coordinate in float64. So ranks and top lists are those of the float64 distances: equal vectors
tie, and near ones do not. Where nearly all items are equally far (an encoder that collapsed), all go that slow way.

Reweighting (D − min D) · (1 + W)^−γ needs no pass of its own over the tile: an item is at or above a score T when
D² ≤ (min D + T · g)² with g = (1 + W)^γ. Items are taken in the order of g, so blocks of 128 share one threshold. The
minimum costs a product of its own. With a W per row (`weights`) there is no such order: each entry gets its threshold,
which is correct and slower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from anyo_rl.ranking.running_top import BLOCK, RunningTop, best_of_pairs
from anyo_rl.ranking.tiles import ItemTiles, Tile, Weights, by_block, full_precision, part_of

TIE = 1e-12  # relative: far above the rounding of a float64 sum of squares, far below that of the vectors


@dataclass(frozen=True)
class Found:
    """What a search found; scores are D, or D̃ where it reweighs, and lower is better.

    Attributes:
        rivals_B: items that compete and are at or above the target's score, the target left out, shape (B,).
        scores_B_K: float64 scores of the best items, best first, `inf` where there are fewer.
        items_B_K: their indices; of equal scores the lower index is first.
    """

    rivals_B: torch.Tensor
    scores_B_K: torch.Tensor
    items_B_K: torch.Tensor


@dataclass(frozen=True)
class _Growth:
    """g = (1 + W)^γ: the least and the most of each block, (R or 1, blocks), and with weights per row g itself."""

    low_R_b: torch.Tensor
    high_R_b: torch.Tensor
    g_R_C: torch.Tensor | None


@dataclass
class _Row:
    """What is known about each row: all of shape (B,), float64."""

    low: torch.Tensor  # min D where it reweighs, else 0
    spread: torch.Tensor  # max D − min D, 1 where that is 0 and where it does not reweigh
    weight_low: torch.Tensor
    weight_spread: torch.Tensor


class ItemSpace:
    """Item vectors, prepared for searches.

    Args:
        items_N_D: float32 vectors, finite; kept, not copied.
        weight_N: W per item in [0, 1]; `None` where distance alone decides or each search brings `weights`.
        gamma: γ.
        chunk_size: items in a tile, rounded up to a multiple of 128.
        row_size: rows in a tile. The default tile has 8 MB: it should stay in a cache.

    Raises:
        ValueError: vectors too long for float32 squares.
    """

    def __init__(
        self,
        items_N_D: torch.Tensor,
        *,
        weight_N: torch.Tensor | None = None,
        gamma: float = 0.0,
        chunk_size: int = 2048,
        row_size: int = 1024,
    ) -> None:
        self.gamma, self.device = gamma, items_N_D.device
        self.factor_N: torch.Tensor | None = None
        order_N = None
        growth_N = torch.ones(len(items_N_D), dtype=torch.float64, device=self.device)
        if weight_N is not None and gamma:
            weight_N = weight_N.double().to(self.device)
            self.factor_N = (1 + weight_N) ** -gamma
            order_N = torch.argsort(weight_N, descending=True, stable=True)
            growth_N = ((1 + weight_N) ** gamma)[order_N]
        self.growth_low_b = by_block(growth_N, torch.inf).amin(1)
        self.growth_high_b = by_block(growth_N, 0.0).amax(1)
        self.items = ItemTiles(items_N_D, order_N=order_N, chunk_size=chunk_size, row_size=row_size)

    def _score(
        self,
        row: _Row,
        distance_P: torch.Tensor,
        rows_P: torch.Tensor,
        items_P: torch.Tensor,
        raw_P: torch.Tensor | None,
    ) -> torch.Tensor:
        """(D − min D) · (1 + W)^−γ of pairs where it reweighs, else D."""
        if raw_P is not None:
            weight_P = (raw_P.double() - row.weight_low[rows_P]) / row.weight_spread[rows_P]
            return (distance_P - row.low[rows_P]).clamp_min_(0) * (1 + weight_P) ** -self.gamma
        if self.factor_N is not None:
            return (distance_P - row.low[rows_P]).clamp_min_(0) * self.factor_N[items_P]
        return distance_P

    def _rows(
        self, x_B_D: torch.Tensor, weights: Weights | None, rows_P: torch.Tensor, items_P: torch.Tensor
    ) -> tuple[_Row, torch.Tensor | None]:
        """What the whole catalog says about each row, and the raw weights of pairs: a product where it reweighs."""
        n_rows = len(x_B_D)
        zero_B = torch.zeros(n_rows, dtype=torch.float64, device=self.device)
        row = _Row(zero_B, torch.ones_like(zero_B), zero_B.clone(), torch.ones_like(zero_B))
        if self.factor_N is None and weights is None:
            return row, None
        raw_P = None if weights is None else torch.empty(len(rows_P), device=self.device)
        weight_high_B = torch.full_like(zero_B, -torch.inf)
        row.weight_low = torch.full_like(zero_B, torch.inf)
        far_B = torch.full((n_rows,), -torch.inf, device=self.device)
        one = torch.ones(1, 1, dtype=torch.float64, device=self.device)
        far_item_B = torch.zeros(n_rows, dtype=torch.int64, device=self.device)
        tops = self._tops(x_B_D, row, 1, weighed=False)  # the nearest item of each row, by distance alone
        for tile in self.items.tiles(x_B_D, weights):
            n_real = tile.places.stop - tile.places.start
            blocks_R_b_C = tile.square_R_C.view(len(tile.square_R_C), -1, BLOCK)
            value_R, block_R = blocks_R_b_C.amax(2).max(1)
            (further,) = (value_R > far_B[tile.rows]).nonzero(as_tuple=True)
            block = block_R[further]
            column = block * BLOCK + blocks_R_b_C[further, block].argmax(1)
            far_B[tile.rows][further] = value_R[further]
            far_item_B[tile.rows][further] = tile.item_of(column.clamp_max_(n_real - 1))
            tile.square_R_C[:, n_real:] = torch.inf
            top = tops[tile.rows.start // self.items.row_size]
            top.add(tile.square_R_C, tile.tolerance_R_b, one, one.expand(1, tile.square_R_C.shape[1]), tile.item_of)
            if tile.raw_R_C is not None and raw_P is not None:
                raw_R_C = tile.raw_R_C[:, :n_real].double()
                if not torch.isfinite(raw_R_C).all():
                    raise ValueError("the weights hold NaN or infinity: give every item a finite score")
                row.weight_low[tile.rows] = torch.minimum(row.weight_low[tile.rows], raw_R_C.amin(1))
                weight_high_B[tile.rows] = torch.maximum(weight_high_B[tile.rows], raw_R_C.amax(1))
                here = (items_P >= tile.places.start) & (items_P < tile.places.stop)
                here &= (rows_P >= tile.rows.start) & (rows_P < tile.rows.stop)
                raw_P[here] = tile.raw_R_C[rows_P[here] - tile.rows.start, items_P[here] - tile.places.start]
        row.low = torch.cat([top.best()[0][:, 0] for top in tops])
        all_B = torch.arange(n_rows, device=self.device)
        spread_B = self.items.distances(x_B_D, all_B, far_item_B) - row.low
        row.spread = torch.where(spread_B > TIE * row.low, spread_B, 1.0)
        if weights is None:
            row.weight_low = zero_B
        else:
            row.weight_spread = (weight_high_B - row.weight_low).clamp_min(1e-12)
        return row, raw_P

    def search(
        self,
        x_B_D: torch.Tensor,
        targets_B: torch.Tensor,
        k: int,
        *,
        removed: tuple[torch.Tensor, torch.Tensor] | None = None,
        weights: Weights | None = None,
    ) -> Found:
        """Count what is at or above each target in the whole catalog, and find the k best items.

        Args:
            x_B_D: float32 vectors, one per row.
            targets_B: item index of each row's target.
            k: how many items to find; 0 for ranks alone.
            removed: (rows, items) pairs that do not compete; never a target.
            weights: raw W per row, min–max normalised here; in place of the items' own.
        """
        with full_precision(self.device):
            all_B = torch.arange(len(x_B_D), device=self.device)
            row, raw_B = self._rows(x_B_D, weights, all_B, targets_B)
            distance_B = self.items.distances(x_B_D, all_B, targets_B)
            score_B = self._score(row, distance_B, all_B, targets_B, raw_B)
            slack_B = TIE * (distance_B + score_B)
            tops = self._tops(x_B_D, row, k, weighed=True)
            for top, start in zip(tops, range(0, len(x_B_D), self.items.row_size), strict=True):
                part = slice(start, start + self.items.row_size)
                top.offer(
                    all_B[: len(score_B[part])], targets_B[part], score_B[part] * (1 - TIE), part_of(raw_B, part)
                )
            rivals_B = torch.zeros_like(targets_B)
            outside = self._removed_by_tile(len(x_B_D), targets_B, removed)
            for tile in self.items.tiles(x_B_D, weights):
                number = tile.rows.start // self.items.row_size
                tile.square_R_C[:, tile.places.stop - tile.places.start :] = torch.inf
                r_P, c_P = outside(tile)
                tile.square_R_C[r_P, c_P] = torch.inf
                growth = self._growth(tile, row)
                rivals_B[tile.rows] += self._count(x_B_D, tile, growth, row, score_B, slack_B)
                if k:
                    factor_R_C = self._tile_factor(tile, growth)
                    tops[number].add(
                        tile.square_R_C, tile.tolerance_R_b, growth.high_R_b, factor_R_C, tile.item_of, tile.raw_R_C
                    )
            scores_B_K, items_B_K = (torch.cat(parts) for parts in zip(*(top.best() for top in tops), strict=True))
            return Found(rivals_B, scores_B_K / row.spread[:, None], items_B_K)

    def search_pairs(
        self,
        x_B_D: torch.Tensor,
        targets_B: torch.Tensor,
        k: int,
        pairs: tuple[torch.Tensor, torch.Tensor],
        *,
        weights: Weights | None = None,
    ) -> Found:
        """`search` where only these (row, item) pairs compete: each by its exact distance."""
        with full_precision(self.device):
            all_B = torch.arange(len(x_B_D), device=self.device)
            rows_P, items_P = torch.cat([all_B, pairs[0]]), torch.cat([targets_B, pairs[1]])
            row, raw_P = self._rows(x_B_D, weights, rows_P, items_P)
            distance_P = self.items.distances(x_B_D, rows_P, items_P)
            score_P = self._score(row, distance_P, rows_P, items_P, raw_P)
            n = len(x_B_D)
            limit_B = score_P[:n] + TIE * (distance_P[:n] + score_P[:n])
            rival_P = (score_P[n:] <= limit_B[pairs[0]]) & (pairs[1] != targets_B[pairs[0]])
            scores_B_K, items_B_K = best_of_pairs(n, k, pairs[0], pairs[1], score_P[n:])
            rivals_B = torch.bincount(pairs[0][rival_P], minlength=n)
            return Found(rivals_B, scores_B_K / row.spread[:, None], items_B_K)

    def _removed_by_tile(
        self, n_rows: int, targets_B: torch.Tensor, removed: tuple[torch.Tensor, torch.Tensor] | None
    ) -> Callable[[Tile], tuple[torch.Tensor, torch.Tensor]]:
        """What to leave out of a tile, as (row, column) in it: the targets, which are scored apart, and `removed`."""
        rows_P = torch.arange(n_rows, device=self.device)
        items_P = targets_B
        if removed is not None:
            rows_P, items_P = torch.cat([rows_P, removed[0]]), torch.cat([items_P, removed[1]])
        places_P = items_P if self.items.place_N is None else self.items.place_N[items_P]
        n_tiles = -(-n_rows // self.items.row_size)
        key_P = places_P // self.items.chunk_size * n_tiles + rows_P // self.items.row_size
        key_P, order_P = key_P.sort()
        rows_P, places_P = rows_P[order_P], places_P[order_P]
        n_keys = -(-len(self.items.items_N_D) // self.items.chunk_size) * n_tiles
        ends = torch.bincount(key_P, minlength=n_keys).cumsum(0).tolist()

        def outside(tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
            key = tile.chunk * n_tiles + tile.rows.start // self.items.row_size
            part = slice(ends[key - 1] if key else 0, ends[key])
            return rows_P[part] - tile.rows.start, places_P[part] - tile.places.start

        return outside

    def _tops(self, x_B_D: torch.Tensor, row: _Row, k: int, *, weighed: bool) -> list[RunningTop]:
        """A running top for each tile of rows."""

        def one(start: int) -> RunningTop:
            def exact(rows_P: torch.Tensor, items_P: torch.Tensor, raw_P: torch.Tensor | None) -> torch.Tensor:
                rows_P = rows_P + start
                distance_P = self.items.distances(x_B_D, rows_P, items_P)
                return self._score(row, distance_P, rows_P, items_P, raw_P) if weighed else distance_P

            return RunningTop(row.low[start : start + self.items.row_size], k, exact)

        return [one(start) for start in range(0, len(x_B_D), self.items.row_size)]

    def _growth(self, tile: Tile, row: _Row) -> _Growth:
        if tile.raw_R_C is None:
            part = slice(tile.places.start // BLOCK, -(-tile.places.stop // BLOCK))
            return _Growth(self.growth_low_b[None, part], self.growth_high_b[None, part], None)
        w_R_C = tile.raw_R_C - row.weight_low[tile.rows, None].float()
        g_R_C = w_R_C.div_(row.weight_spread[tile.rows, None].float()).clamp_(0, 1).add_(1).pow_(self.gamma)
        by_block = g_R_C.view(len(g_R_C), -1, BLOCK)
        return _Growth(by_block.amin(2).double(), by_block.amax(2).double() * (1 + 1e-5), g_R_C)

    def _tile_factor(self, tile: Tile, growth: _Growth) -> torch.Tensor:
        """(1 + W)^−γ of the tile's items, (R or 1, C)."""
        if growth.g_R_C is not None:
            return growth.g_R_C.reciprocal()
        factor_C = torch.ones(tile.square_R_C.shape[1], dtype=torch.float64, device=self.device)
        if self.factor_N is not None and tile.order_N is not None:
            factor_C[: tile.places.stop - tile.places.start] = self.factor_N[tile.order_N[tile.places]]
        return factor_C[None]

    def _count(
        self,
        x_B_D: torch.Tensor,
        tile: Tile,
        growth: _Growth,
        row: _Row,
        score_B: torch.Tensor,
        slack_B: torch.Tensor,
    ) -> torch.Tensor:
        """Items of the tile at or above the target's score, (R,)."""
        low_R, score_R = row.low[tile.rows, None], score_B[tile.rows, None]
        square_R_C, noise_R_b, g_R_C = tile.square_R_C, tile.tolerance_R_b.double(), growth.g_R_C
        if g_R_C is None:
            lower_R_b = ((low_R + score_R * growth.low_R_b).square() - noise_R_b).float()
            upper_R_b = ((low_R + score_R * growth.high_R_b).square() + noise_R_b).float()
        else:  # each entry has a threshold of its own: take it off, and compare with the tolerance
            square_R_C = square_R_C - g_R_C.mul(score_R.float()).add_(low_R.float()).square_()
            rounding = 1e-6 * (1 + abs(self.gamma))
            noise_R_b = noise_R_b + rounding * (low_R + score_R * growth.high_R_b).square()
            lower_R_b, upper_R_b = (-noise_R_b).float(), noise_R_b.float()
        blocks_R_b_C = square_R_C.view(len(square_R_C), -1, BLOCK)
        sure = torch.lt(blocks_R_b_C, lower_R_b[:, :, None])
        # Eight flags are one 64-bit word: summing words adds the flags of a block by eights, none over 16.
        words = sure.view(torch.int64)
        count_R = words.sum(2).view(torch.uint8).sum(1)
        doubt = torch.le(blocks_R_b_C, upper_R_b[:, :, None]).view(torch.int64) ^ words
        where = doubt.nonzero()
        if len(where):
            flags = doubt[where[:, 0], where[:, 1], where[:, 2]].view(-1, 1).view(torch.bool).nonzero()
            r, block, word = where[flags[:, 0]].unbind(1)
            column = block * BLOCK + word * 8 + flags[:, 1]
            rows, items = tile.rows.start + r, tile.item_of(column)
            raw = None if tile.raw_R_C is None else tile.raw_R_C[r, column]
            score = self._score(row, self.items.distances(x_B_D, rows, items), rows, items, raw)
            count_R += torch.bincount(r[score <= score_B[rows] + slack_B[rows]], minlength=len(count_R))
        return count_R
