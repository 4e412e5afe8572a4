"""The `embedding` ranker: BIGRec's grounding of a written item in the catalog.

BIGRec ("A Bi-Step Grounding Paradigm for Large Language Models in Recommendation Systems", arXiv 2308.08434) embeds
the generated title, takes its L2 distance D to every item, and lets popularity or a CF model in by two steps:

    D̂ = (D − min D) / (max D − min D)    over the row
    D̃ = D̂ · (1 + W)^−γ                   W: popularity, or a CF model's scores of the row, min–max normalised to [0, 1]

Departures: the rank is that of the one text that was written, not of a beam's best; one γ serves all cut-offs
(`choose_gamma`, on validation) in place of one per K and metric; the minimum and maximum are taken over the whole
catalog, so that masking never changes the order of what is left. As in the paper the nearest item has D̂ = 0 and stays
first whatever γ is.

Ranks and top lists are those of float64 distances summed coordinate by coordinate, so equal vectors tie, at about the
price of one matrix product, or two with γ (`anyo_rl.ranking.grounding`). The (B, N) distances never exist at once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anyo_rl.completion import parse
from anyo_rl.metrics import ndcg
from anyo_rl.ranking.grounding import ItemSpace
from anyo_rl.ranking.protocol import Ranking, check_lengths
from anyo_rl.ranking.tiles import Weights

Encoder = Callable[[list[str]], "torch.Tensor | np.ndarray"]

GAMMA_GRID = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


class EmbeddingRanker:
    """Rank items by their distance to the embedding of the item that a completion names.

    Args:
        item_ids: the catalog, in item order.
        item_vectors_N_D: an embedding per item, shape (N, D), from the same encoder. Where it is float32 it is not
            copied; its device is where distances are computed.
        encoder: texts to embeddings, B strings to shape (B, D).
        popularity_N: interactions per item *in the training data*, shape (N,); needed when `gamma` is not 0.
        gamma: strength of the popularity, γ; 0 ranks by distance alone.
        weights_per_row: W comes with each call of `rank` in place of `popularity_N`: a CF model's scores.
        chunk_size: items in a tile of distances, rounded up to a multiple of 128.

    Raises:
        ValueError: on repeated ids, wrong shapes, NaN, or `gamma` without a W.
    """

    kind = "embedding"

    def __init__(
        self,
        item_ids: Sequence[str],
        item_vectors_N_D: torch.Tensor | np.ndarray,
        encoder: Encoder,
        *,
        popularity_N: torch.Tensor | np.ndarray | None = None,
        gamma: float = 0.0,
        weights_per_row: bool = False,
        chunk_size: int = 2048,
    ) -> None:
        self.item_ids = list(item_ids)
        self.index = {item: position for position, item in enumerate(self.item_ids)}
        self.item_vectors_N_D = torch.as_tensor(item_vectors_N_D).detach().float()
        self.encoder = encoder
        self.popularity_N = popularity_N
        self.gamma = gamma
        self.weights_per_row = weights_per_row
        self.chunk_size = chunk_size
        n_items = len(self.item_ids)
        if len(self.index) != n_items:
            raise ValueError(f"{n_items} item ids but only {len(self.index)} different ones: ids must be unique")
        if self.item_vectors_N_D.ndim != 2 or len(self.item_vectors_N_D) != n_items:
            raise ValueError(
                f"{n_items} items need vectors of shape ({n_items}, D), found {tuple(self.item_vectors_N_D.shape)}"
            )
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be 1 or more, found {chunk_size}")
        for start in range(0, n_items, chunk_size):  # the flags of the whole matrix would be a quarter of its size
            finite_C = torch.isfinite(self.item_vectors_N_D[start : start + chunk_size]).all(dim=1)
            if not finite_C.all():
                row = start + int((~finite_C).nonzero()[0])
                raise ValueError(f"the vector of item {self.item_ids[row]!r} holds NaN or infinity: embed it again")
        weight_N = None if weights_per_row else self._popularity_weight()
        self.space = ItemSpace(self.item_vectors_N_D, weight_N=weight_N, gamma=gamma, chunk_size=chunk_size)

    def with_gamma(self, gamma: float) -> EmbeddingRanker:
        """The same ranker with another γ; the vectors are shared."""
        return EmbeddingRanker(
            self.item_ids,
            self.item_vectors_N_D,
            self.encoder,
            popularity_N=self.popularity_N,
            gamma=gamma,
            weights_per_row=self.weights_per_row,
            chunk_size=self.chunk_size,
        )

    def _popularity_weight(self) -> torch.Tensor | None:
        """W, shape (N,), or `None` where distance alone decides."""
        if self.gamma == 0.0:
            return None
        if self.popularity_N is None:
            raise ValueError(
                f"gamma is {self.gamma} but there is no popularity: pass popularity_N, or gamma=0, "
                "or weights_per_row=True and a CF model's scores with each call"
            )
        counts_N = torch.as_tensor(self.popularity_N).double()
        if counts_N.shape != (len(self.item_ids),):
            raise ValueError(f"popularity_N must have shape ({len(self.item_ids)},), found {tuple(counts_N.shape)}")
        if not torch.isfinite(counts_N).all():
            raise ValueError("popularity_N holds NaN or infinity: give 0 to items without interactions")
        return (counts_N - counts_N.min()) / (counts_N.max() - counts_N.min()).clamp_min(1e-12)

    def _encode(self, texts_B: list[str]) -> torch.Tensor:
        vectors_B_D = torch.as_tensor(self.encoder(texts_B)).to(self.item_vectors_N_D)
        expected = (len(texts_B), self.item_vectors_N_D.shape[1])
        if tuple(vectors_B_D.shape) != expected:
            raise ValueError(f"the encoder gave shape {tuple(vectors_B_D.shape)}, the items ask for {expected}")
        if not torch.isfinite(vectors_B_D).all():
            row = int((~torch.isfinite(vectors_B_D).all(dim=1)).nonzero()[0])
            raise ValueError(f"the encoder gave NaN or infinity for {texts_B[row]!r}")
        return vectors_B_D

    def _weights(self, weights_B_N: torch.Tensor | np.ndarray | Weights | None, rows: list[int]) -> Weights | None:
        """Raw W of the rows that are ranked, for items by index; `None` where it is not per row."""
        if (weights_B_N is None) == self.weights_per_row:
            raise ValueError(
                f"weights_per_row is {self.weights_per_row} and there is {'no' if weights_B_N is None else 'a'} "
                "weights_B_N: "
                "give a CF model's scores to a ranker made with weights_per_row=True, and to no other"
            )
        if weights_B_N is None or self.gamma == 0.0:
            return None
        device = self.item_vectors_N_D.device
        if callable(weights_B_N):
            scores = weights_B_N
            return lambda items_n: torch.as_tensor(scores(items_n))[rows].to(device)
        matrix_B_N = torch.as_tensor(weights_B_N)
        if matrix_B_N.ndim != 2 or matrix_B_N.shape[1] != len(self.item_ids) or len(matrix_B_N) <= max(rows):
            raise ValueError(
                f"weights_B_N must have a row per context and {len(self.item_ids)} columns, "
                f"found shape {tuple(matrix_B_N.shape)}"
            )
        rows_R = torch.tensor(rows, device=matrix_B_N.device)
        return lambda items_n: matrix_B_N[rows_R[:, None], items_n.to(matrix_B_N.device)].to(device)

    @torch.inference_mode()
    def rank(
        self,
        contexts_B: Sequence[str],
        target_ids_B: Sequence[str],
        *,
        top_k: int = 10,
        excluded_B: Sequence[Collection[str]] | None = None,
        candidates_B: Sequence[Collection[str]] | None = None,
        weights_B_N: torch.Tensor | np.ndarray | Weights | None = None,
    ) -> Ranking:
        """Rank completion texts; see `anyo_rl.ranking.protocol.Ranker.rank` for the arguments.

        A completion without an item has nothing to embed: everything ties, so the target is last and the top list is
        empty. Ties in the top list stand in item order. Scores are −D, or −D̃ with γ. Candidates are scored one by one:
        fast for some thousands in each row.

        Args:
            contexts_B: completions.
            target_ids_B: see there.
            top_k: see there.
            excluded_B: see there.
            candidates_B: see there.
            weights_B_N: a CF model's scores for each context, higher is better, finite, with `weights_per_row`: a
                (B, N) matrix, or a function of n item indices that gives (B, n), called in item order.
        """
        check_lengths(len(contexts_B), target_ids_B=target_ids_B, excluded_B=excluded_B, candidates_B=candidates_B)
        written_B = [parse(completion).item for completion in contexts_B]
        competing = [
            competing_items(
                self.index,
                target,
                excluded_B[b] if excluded_B is not None else None,
                candidates_B[b] if candidates_B is not None else None,
            )
            for b, target in enumerate(target_ids_B)
        ]
        ranks_B = np.array([one.last_rank for one in competing], dtype=np.int64)
        top_ids_B_K: list[list[str]] = [[] for _ in competing]
        top_scores_B_K: list[list[float]] = [[] for _ in competing]
        rows = [b for b, item in enumerate(written_B) if item is not None]
        if not rows:
            return Ranking(ranks_B, top_ids_B_K, top_scores_B_K)

        device = self.item_vectors_N_D.device
        vectors_B_D = self._encode([item for item in written_B if item is not None])
        targets_B = torch.tensor([self.index[target_ids_B[b]] for b in rows], device=device)
        weights = self._weights(weights_B_N, rows)
        top_k = min(top_k, len(self.item_ids))
        listed = [competing[b].removed if candidates_B is None else competing[b].kept for b in rows]
        pairs = (
            torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(items) for items in listed])).to(
                device
            ),
            torch.tensor([item for items in listed for item in items], dtype=torch.int64, device=device),
        )
        if candidates_B is None:
            found = self.space.search(vectors_B_D, targets_B, top_k, removed=pairs, weights=weights)
        else:
            found = self.space.search_pairs(vectors_B_D, targets_B, top_k, pairs, weights=weights)

        rivals_B, items_B_K, scores_B_K = found.rivals_B.tolist(), found.items_B_K.tolist(), found.scores_B_K.tolist()
        for row, b in enumerate(rows):
            if competing[b].has_target:
                ranks_B[b] = 1 + rivals_B[row]
            items_K = [item for item in items_B_K[row] if item >= 0]
            top_ids_B_K[b] = [self.item_ids[item] for item in items_K]
            top_scores_B_K[b] = [-score for score in scores_B_K[row][: len(items_K)]]
        return Ranking(ranks_B, top_ids_B_K, top_scores_B_K)


@dataclass(frozen=True)
class Competing:
    """What competes in one ranking, as item indices: all but `removed`, or `kept` alone where there are candidates."""

    removed: list[int]
    kept: list[int]
    has_target: bool
    last_rank: int


def competing_items(
    index: dict[str, int], target_id: str, excluded: Collection[str] | None, candidates: Collection[str] | None
) -> Competing:
    """`anyo_rl.ranking.protocol.allowed_items` as lists: a mask per row would be as large as the distances.

    Raises:
        ValueError: when the target is not in the catalog.
    """
    if target_id not in index:
        raise ValueError(
            f"target {target_id!r} is not one of the {len(index)} items of the catalog: "
            "rebuild the catalog with it, or drop the example"
        )
    removed = {index[item] for item in (excluded or ()) if item in index and item != target_id}
    if candidates is None:
        return Competing(sorted(removed), [], True, len(index) - len(removed))
    kept = {index[item] for item in candidates if item in index} - removed
    has_target = index[target_id] in kept
    return Competing(sorted(removed), sorted(kept), has_target, len(kept) if has_target else len(index) - len(removed))


@dataclass(frozen=True)
class GammaChoice:
    """The γ chosen on validation, its mean NDCG@k, and all that were tried, in order."""

    gamma: float
    value: float
    trials: list[tuple[float, float]]


def choose_gamma(
    ranks: Callable[[float], np.ndarray], grid: Sequence[float] = GAMMA_GRID, *, k: int = 10
) -> GammaChoice:
    """Choose one γ by the mean NDCG@k of validation targets; of equal ones, the first in the grid.

    Args:
        ranks: the ranks (B,) of the *validation* targets under a γ, never those of the test set:
            `lambda gamma: ranker.with_gamma(gamma).rank(contexts, targets, top_k=0).ranks_B`.
        grid: the γ to try.
        k: cut-off of the NDCG.

    Raises:
        ValueError: If the grid is empty or there are no validation targets.
    """
    if not grid:
        raise ValueError("found an empty grid, expected one gamma or more")
    trials = []
    for gamma in grid:
        gains_B = ndcg(ranks(gamma), k)
        if not np.size(gains_B):
            raise ValueError("found no validation targets, expected one or more")
        trials.append((float(gamma), float(np.mean(gains_B))))
    gamma, value = max(trials, key=lambda trial: trial[1])
    return GammaChoice(gamma, value, trials)
