"""Items that begin as vectors of something else, such as their titles, or have these mixed in while it learns."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from anyo_rl.run.settings import UsageError


def projected(vectors_N_D: NDArray[np.floating], dim: int) -> NDArray[np.float32]:
    """The first principal components of vectors, with a standard deviation of 1 over all numbers: (N, d), d ≤ `dim`.

    Args:
        vectors_N_D: of the items.
        dim: how many components, if the vectors have as many.

    Raises:
        UsageError: the vectors are all alike, or not finite.
    """
    centred_N_D = np.asarray(vectors_N_D, dtype=np.float64) - np.mean(vectors_N_D, axis=0, dtype=np.float64)
    if not np.isfinite(centred_N_D).all() or not centred_N_D.any():
        raise UsageError("the vectors of the items are all alike, or not finite: expected one for each item")
    # The axes of D numbers by their covariance: N may be a million, D is some hundreds.
    _, axes_D_D = np.linalg.eigh(centred_N_D.T @ centred_N_D)
    found_N_d = centred_N_D @ axes_D_D[:, ::-1][:, :dim]
    return (found_N_d / found_N_d.std()).astype(np.float32)


def begin_with(model: nn.Module, vectors_N_D: NDArray[np.floating]) -> None:
    """Puts the first components of vectors in place of a student's item vectors, at the scale of its table.

    Where there are fewer components than the table is wide, the rest stays as it was drawn.
    """
    table: nn.Embedding = model.items  # type: ignore[assignment]
    n_items, dim = _checked(model, vectors_N_D), table.embedding_dim
    with torch.no_grad():
        found_N_d = torch.from_numpy(projected(vectors_N_D, dim)) * table.weight[:n_items].std()
        table.weight[:n_items, : found_N_d.shape[1]] = found_N_d.to(table.weight)


class _Fusion(nn.Module):
    """weight + projection of given vectors; the last row, for padding, stays."""

    def __init__(self, vectors_N_D: NDArray[np.floating], dim: int) -> None:
        super().__init__()
        scaled_N_D = (vectors_N_D / np.std(vectors_N_D, dtype=np.float64)).astype(np.float32)
        rows_M_D = torch.from_numpy(np.vstack([scaled_N_D, np.zeros_like(scaled_N_D[:1])]))
        self.register_buffer("given_M_D", rows_M_D, persistent=False)
        self.project = nn.Linear(scaled_N_D.shape[1], dim, bias=False)
        nn.init.normal_(self.project.weight, std=0.02 / scaled_N_D.shape[1] ** 0.5)  # at the scale of the table

    def forward(self, weight_M_D: Tensor) -> Tensor:
        return weight_M_D + self.project(self.given_M_D)


@contextmanager
def fused(model: nn.Module, vectors_N_D: NDArray[np.floating] | None, seed: int) -> Iterator[None]:
    """Inside, a student's item vectors are its own plus a learned projection of given ones; after it, their sum.

    Item-vector fusion of DLLM2Rec (Cui et al. 2024, arXiv 2405.00338). Departures: the sum is also what items are
    scored by, since the table is tied, and afterwards it is written into the table, so that what is kept and served is
    a plain student.

    Args:
        model: a student.
        vectors_N_D: of the items; `None` changes nothing.
        seed: of the projection.
    """
    if vectors_N_D is None:
        yield
        return
    table: nn.Embedding = model.items  # type: ignore[assignment]
    _checked(model, vectors_N_D)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        fusion = _Fusion(vectors_N_D, table.embedding_dim).to(table.weight.device)
    parametrize.register_parametrization(table, "weight", fusion)
    try:
        yield
    finally:
        parametrize.remove_parametrizations(table, "weight", leave_parametrized=True)


def _checked(model: nn.Module, vectors_N_D: NDArray[np.floating]) -> int:
    n_items: int = model.n_items  # type: ignore[assignment]
    if len(vectors_N_D) != n_items:
        raise UsageError(f"found {len(vectors_N_D)} vectors, expected one for each of the {n_items} items")
    return n_items
