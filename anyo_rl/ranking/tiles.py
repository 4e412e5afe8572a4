"""Distances between rows and items as tiles of one matrix product, with a bound on what they are off by.

    |x − y|² = |x|² + |y|² − 2 x·y

in float32, with both moved to the items' mean: a common component is where that form loses its digits. The squares
come out of the product itself, by two more columns. They are off by at most

    tolerance = (4 + 4 √(D + 2)) · 2⁻²⁴ · (|x| + |y|)²

which is a probabilistic bound on rounding (Higham & Mary 2019, with 4 for their λ).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from anyo_rl.ranking.running_top import BLOCK

# The raw scores (B, n) of the items at n positions; higher weighs more.
Weights = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Tile:
    """Squares of distances of some rows to some items, in a buffer that the next tile overwrites."""

    chunk: int
    rows: slice
    places: slice  # in the order of the search
    square_R_C: torch.Tensor  # C is a multiple of BLOCK: columns past the places hold 0
    tolerance_R_b: torch.Tensor
    raw_R_C: torch.Tensor | None  # of `weights`
    order_N: torch.Tensor | None

    def item_of(self, column_P: torch.Tensor) -> torch.Tensor:
        """Item indices of columns."""
        return column_P + self.places.start if self.order_N is None else self.order_N[column_P + self.places.start]


def part_of(values: torch.Tensor | None, part: slice) -> torch.Tensor | None:
    """A part of the rows, or `None` of `None`."""
    return None if values is None else values[part]


def by_block(values_N: torch.Tensor, fill: float) -> torch.Tensor:
    """(blocks, BLOCK), the last block filled up."""
    return torch.nn.functional.pad(values_N, (0, -len(values_N) % BLOCK), value=fill).view(-1, BLOCK)


def _check_squares(square_N: torch.Tensor, what: str) -> None:
    if not torch.isfinite(square_N).all():
        raise ValueError(f"the vector of {what} is too long for float32 distances: scale all vectors down")


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


class ItemTiles:
    """Item vectors in the order in which a search takes them.

    Args:
        items_N_D: float32 vectors, finite; kept, not copied.
        order_N: item indices in the order of the search; `None` for their own.
        chunk_size: items in a tile, rounded up to a multiple of 128.
        row_size: rows in a tile.

    Raises:
        ValueError: vectors too long for float32 squares.
    """

    def __init__(
        self, items_N_D: torch.Tensor, *, order_N: torch.Tensor | None, chunk_size: int, row_size: int
    ) -> None:
        n, dim = items_N_D.shape
        self.items_N_D, self.order_N, self.device = items_N_D, order_N, items_N_D.device
        self.place_N = None if order_N is None else torch.argsort(order_N)
        self.chunk_size, self.row_size = -(-chunk_size // BLOCK) * BLOCK, row_size
        self.noise = (4 + 4 * (dim + 2) ** 0.5) * 2.0**-24
        parts = [slice(start, min(start + self.chunk_size, n)) for start in range(0, n, self.chunk_size)]
        total_D = torch.zeros(dim, dtype=torch.float64, device=self.device)
        for part in parts:
            total_D += items_N_D[part].double().sum(0)
        self.center_D = (total_D / max(n, 1)).float()
        squares = [(self._items(part) - self.center_D).double().square().sum(1) for part in parts]
        self.square_N = torch.cat(squares).float() if squares else torch.zeros(0, device=self.device)
        _check_squares(self.square_N, "an item")
        self.radius_b = by_block(self.square_N, 0.0).amax(1).sqrt()

    def _items(self, places: slice) -> torch.Tensor:
        return self.items_N_D[places] if self.order_N is None else self.items_N_D[self.order_N[places]]

    def tiles(self, x_B_D: torch.Tensor, weights: Weights | None) -> Iterator[Tile]:
        """All tiles, each chunk of items with all rows before the next."""
        (n_rows, dim), n = x_B_D.shape, len(self.items_N_D)
        moved_B_D = x_B_D - self.center_D
        square_B = moved_B_D.double().square().sum(1)
        _check_squares(square_B.float(), "a row")
        one_B = torch.ones_like(moved_B_D[:, 0])
        left_B_E = torch.cat([moved_B_D * -2, one_B[:, None], square_B.float()[:, None]], dim=1)
        width = min(self.chunk_size, -(-n // BLOCK) * BLOCK)
        right_C_E = torch.empty(width, dim + 2, device=self.device)
        buffer = torch.empty(min(self.row_size, n_rows) * width, device=self.device)
        for chunk, start in enumerate(range(0, n, self.chunk_size)):
            places = slice(start, min(start + self.chunk_size, n))
            n_real = places.stop - start
            width = -(-n_real // BLOCK) * BLOCK
            torch.sub(self._items(places), self.center_D, out=right_C_E[:n_real, :dim])
            right_C_E[:n_real, dim] = self.square_N[places]
            right_C_E[:n_real, dim + 1] = 1
            right_C_E[n_real:] = 0
            radius_b = self.radius_b[start // BLOCK :][: width // BLOCK]
            raw_B_C = None
            if weights is not None:
                raw_B_C = torch.zeros(n_rows, width, device=self.device)
                raw_B_C[:, :n_real] = weights(torch.arange(start, places.stop, device=self.device))
            for first in range(0, n_rows, self.row_size):
                rows = slice(first, min(first + self.row_size, n_rows))
                square_R_C = buffer[: (rows.stop - first) * width].view(-1, width)
                torch.mm(left_B_E[rows], right_C_E[:width].T, out=square_R_C)
                reach_R_b = square_B[rows, None].float().sqrt() + radius_b
                tolerance_R_b = reach_R_b.square_().mul_(self.noise).add_(dim * 1e-37)
                yield Tile(chunk, rows, places, square_R_C, tolerance_R_b, part_of(raw_B_C, rows), self.order_N)

    def distances(self, x_B_D: torch.Tensor, rows_P: torch.Tensor, items_P: torch.Tensor) -> torch.Tensor:
        """Distances of pairs, summed coordinate by coordinate in float64, shape (P,)."""
        out_P = torch.empty(len(rows_P), dtype=torch.float64, device=self.device)
        step = max(1, (1 << 21) // max(x_B_D.shape[1], 1))
        for start in range(0, len(rows_P), step):
            part = slice(start, start + step)
            difference = x_B_D[rows_P[part]].double().sub_(self.items_N_D[items_P[part]])
            out_P[part] = difference.square_().sum(1).sqrt_()
        return out_P
