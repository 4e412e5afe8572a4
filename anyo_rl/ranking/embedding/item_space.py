"""Distances between rows and items: all of them roughly, in tiles of one matrix product, and single ones exactly.

A tile holds D² − |x|² = |y|² − 2 x·y in float32. That form is quick and loses digits, but never more than a bound that
comes with the tile. So a tile sorts items into three: surely nearer than a threshold, surely further, and the few in
between, whose distance is then summed coordinate by coordinate in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

BLOCK = 64
RESIDENT_BYTES = 1 << 30  # vectors up to this size stay on the device as a whole
LONGEST_SQUARE = 1e37  # a threshold beyond all squares must still be a float32


@dataclass(frozen=True)
class Queries:
    """Rows prepared for tiles.

    Attributes:
        x_B_D: the vectors as they were given, in float64.
        moved_B_D: these, moved to the items' mean.
        square_B: |x|² of the moved ones, float64.
        buffer: memory for tiles, three of a tile's size; taking new memory for each costs as much as reading it
            several times.
        chunk_n_D: memory for a chunk of items, moved.
    """

    x_B_D: torch.Tensor
    moved_B_D: torch.Tensor
    square_B: torch.Tensor
    buffer: torch.Tensor
    chunk_n_D: torch.Tensor


@dataclass(frozen=True)
class Tile:
    """Some rows against a chunk of items.

    Attributes:
        rows: which rows.
        square_R_n: D² − |x|², float32.
        tolerance_R_1: what D² − |x|² minus a threshold may be off by, float32.
        spare_2_R_n: room to compute in.
    """

    rows: slice
    square_R_n: torch.Tensor
    tolerance_R_1: torch.Tensor
    spare_2_R_n: tuple[torch.Tensor, torch.Tensor]


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, no TF32, no bfloat16 inside a float32 product: the tolerance counts on it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False), torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class ItemSpace:
    """Item vectors, prepared for searches.

    On a device that the vectors are not on there is a chunk of them at a time, or all where they are few.

    Args:
        items_N_D: float32 vectors, finite; kept, not copied. They may be mapped from a file.
        device: where distances are computed; by default where the vectors are.
        chunk_size: items in a tile; by default 1,024 on a CPU, where a tile should stay in the cache, else 8,192.
        row_size: rows in a tile; by default 1,024 on a CPU, else 2,048.

    Raises:
        ValueError: a vector is too long for float32 squares.
    """

    def __init__(
        self,
        items_N_D: torch.Tensor,
        *,
        device: torch.device | str | None = None,
        chunk_size: int | None = None,
        row_size: int | None = None,
    ) -> None:
        n_items, dim = items_N_D.shape
        self.device = torch.device(device or items_N_D.device)
        self.items_N_D = items_N_D.to(self.device) if items_N_D.nbytes <= RESIDENT_BYTES else items_N_D
        on_cpu = self.device.type == "cpu"
        self.row_size = row_size or (1_024 if on_cpu else 2_048)
        self.chunk_size = chunk_size or (1_024 if on_cpu else 8_192)
        starts = range(0, n_items, self.chunk_size)
        self.parts = [slice(start, min(start + self.chunk_size, n_items)) for start in starts]
        self.pairs_at_once = max(1, (1 << (17 if on_cpu else 24)) // max(1, dim))
        self._held: tuple[slice, torch.Tensor] | None = None
        total_D = torch.zeros(dim, dtype=torch.float64, device=self.device)
        for part in self.parts:
            total_D += self.chunk(part).double().sum(0)
        self.center_D = (total_D / max(1, n_items)).float()
        self.square_N = torch.empty(n_items, device=self.device)
        for part in self.parts:
            self.square_N[part] = (self.chunk(part) - self.center_D).double().square().sum(1).float()
        if not (self.square_N < LONGEST_SQUARE).all():
            raise ValueError("the vector of an item is too long for float32 distances: scale all vectors down")

    def chunk(self, part: slice) -> torch.Tensor:
        """Vectors (n, D) of one of `parts` on the device, where the last one stays."""
        if self._held is None or self._held[0] != part:
            self._held = None  # its memory is free for the next
            self._held = part, self.items_N_D[part].to(self.device)
        return self._held[1]

    def vectors(self, items_B: torch.Tensor) -> torch.Tensor:
        """Vectors (B, D) of some items on the device."""
        return self.items_N_D[items_B.to(self.items_N_D.device)].to(self.device)

    def distances(
        self, x_B_D: torch.Tensor, row_P: torch.Tensor, items_n_D: torch.Tensor, column_P: torch.Tensor
    ) -> torch.Tensor:
        """Distances of pairs, summed coordinate by coordinate in float64, shape (P,). `x_B_D` is float64 as well."""
        out_P = torch.empty(len(row_P), dtype=torch.float64, device=self.device)
        for start in range(0, len(row_P), self.pairs_at_once):
            part = slice(start, start + self.pairs_at_once)
            # index_select takes half the time of indexing, which is most of the price of a pair.
            difference = x_B_D.index_select(0, row_P[part]).sub_(items_n_D.index_select(0, column_P[part]))
            out_P[part] = difference.square_().sum(1).sqrt_()
        return out_P

    def queries(self, x_B_D: torch.Tensor) -> Queries:
        """Prepares float32 rows.

        Raises:
            ValueError: a row is too long for float32 squares.
        """
        moved_B_D = x_B_D - self.center_D
        square_B = moved_B_D.double().square().sum(1)
        if not (square_B < LONGEST_SQUARE).all():
            raise ValueError("the vector of a row is too long for float32 distances: scale all vectors down")
        width = min(self.chunk_size, len(self.items_N_D))
        buffer = torch.empty(3, min(self.row_size, len(x_B_D)) * width, device=self.device)
        chunk_n_D = torch.empty(width, x_B_D.shape[1], device=self.device)
        return Queries(x_B_D.double(), moved_B_D, square_B, buffer, chunk_n_D)

    def tiles(self, queries: Queries, part: slice, gamma: float = 0.0) -> Iterator[Tile]:
        """All rows against one chunk of items; each tile overwrites the one before.

        The tolerance holds in whatever order a product sums:

            2⁻²⁴ · (D · |y| · (2 |x| + |y|) + (32 + 16 γ) · (|x| + |y|)²)

        The first part bounds the roundings of the sum (Higham, *Accuracy and Stability of Numerical Algorithms*,
        §3.1); the second those of the norms, of moving the vectors and of the threshold, 16 γ for its (1 + W)^γ.
        Rows and items are moved to the items' mean, since a component that all have in common would cost the digits.

        Args:
            queries: the rows, as `queries` prepares them.
            part: one of `parts`.
            gamma: γ, where thresholds are made with (1 + W)^γ.
        """
        dim = self.items_N_D.shape[1]
        items_n_D = queries.chunk_n_D[: part.stop - part.start]
        torch.sub(self.chunk(part), self.center_D, out=items_n_D)
        radius = self.square_N[part].max().sqrt()
        n_rows, width = len(queries.x_B_D), len(items_n_D)
        for start in range(0, n_rows, self.row_size):
            rows = slice(start, min(start + self.row_size, n_rows))
            n_here = rows.stop - start
            square_R_n, *spare = queries.buffer[:, : n_here * width].view(3, n_here, width)
            torch.addmm(self.square_N[None, part], queries.moved_B_D[rows], items_n_D.T, alpha=-2, out=square_R_n)
            length_R_1 = queries.square_B[rows, None].float().sqrt()
            tolerance_R_1 = dim * radius * (2 * length_R_1 + radius) + (32 + 16 * gamma) * (length_R_1 + radius) ** 2
            yield Tile(rows, square_R_n, tolerance_R_1 * 2.0**-24 + dim * 1e-37, (spare[0], spare[1]))


def where_at_most(value_R_n: torch.Tensor, limit_R_1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns, (P,) each, row by row, of the values at or below their row's finite limit; none is NaN.

    Quick where they are few: blocks whose minimum is above the limit are passed over.
    """
    if value_R_n.shape[1] % BLOCK:
        value_R_n = torch.nn.functional.pad(value_R_n, (0, -value_R_n.shape[1] % BLOCK), value=torch.inf)
    in_blocks = value_R_n.view(len(value_R_n), -1, BLOCK)
    row, block = (in_blocks.amin(2) <= limit_R_1).nonzero(as_tuple=True)
    which_P, column_P = (in_blocks[row, block] <= limit_R_1[row]).nonzero(as_tuple=True)
    return row[which_P], block[which_P] * BLOCK + column_P
