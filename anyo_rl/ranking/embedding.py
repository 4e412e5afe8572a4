"""The `embedding` ranker: BIGRec's grounding of a written item in the catalog.

BIGRec ("A Bi-Step Grounding Paradigm for Large Language Models in Recommendation Systems", arXiv 2308.08434) embeds
the generated title, takes its L2 distance D to every item, and lets popularity in by two steps:

    D̂ = (D − min D) / (max D − min D)    over the row
    D̃ = D̂ · (1 + W)^−γ                   W: the item's popularity, min-max normalised to [0, 1]

Departures: the rank is that of the one text that was written, not of a beam's best; W comes from popularity only; the
minimum and maximum are taken over the whole catalog, so that masking never changes the order of what is left. As in
the paper the nearest item has D̂ = 0 and stays first whatever γ is.

Items go through in chunks and only counts, extremes and a running top-k are kept: the (B, N) distances never exist at
once. Distances are summed coordinate by coordinate and not through |x|² + |y|² − 2xy: that form loses the digits that
decide between near items, and gives two equal vectors different distances depending on where a chunk ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import torch

from anyo_rl.completion import parse
from anyo_rl.ranking.protocol import Ranking, allowed_items, check_lengths

Encoder = Callable[[list[str]], "torch.Tensor | np.ndarray"]


class EmbeddingRanker:
    """Rank items by their distance to the embedding of the item that a completion names.

    Args:
        item_ids: the catalog, in item order.
        item_vectors_N_D: an embedding per item, shape (N, D), from the same encoder.
        encoder: texts to embeddings, B strings to shape (B, D).
        popularity_N: interactions per item *in the training data*, shape (N,); needed when `gamma` is not 0.
        gamma: strength of the popularity, γ; 0 ranks by distance alone.
        chunk_size: items per chunk; memory grows with B × chunk_size.

    Raises:
        ValueError: on repeated ids, wrong shapes, NaN, or `gamma` without popularity.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        item_vectors_N_D: torch.Tensor | np.ndarray,
        encoder: Encoder,
        *,
        popularity_N: torch.Tensor | np.ndarray | None = None,
        gamma: float = 0.0,
        chunk_size: int = 4096,
    ) -> None:
        self.item_ids = list(item_ids)
        self.index = {item: position for position, item in enumerate(self.item_ids)}
        self.item_vectors_N_D = torch.as_tensor(item_vectors_N_D).float()
        self.encoder = encoder
        self.chunk_size = chunk_size
        n_items = len(self.item_ids)
        if len(self.index) != n_items:
            raise ValueError(f"{n_items} item ids but only {len(self.index)} different ones: ids must be unique")
        if self.item_vectors_N_D.ndim != 2 or len(self.item_vectors_N_D) != n_items:
            raise ValueError(
                f"{n_items} items need vectors of shape ({n_items}, D), found {tuple(self.item_vectors_N_D.shape)}"
            )
        if not torch.isfinite(self.item_vectors_N_D).all():
            row = int((~torch.isfinite(self.item_vectors_N_D).all(dim=1)).nonzero()[0])
            raise ValueError(f"the vector of item {self.item_ids[row]!r} holds NaN or infinity: embed it again")
        if chunk_size < 1:
            raise ValueError(f"chunk_size must be 1 or more, found {chunk_size}")
        self.factor_N = self._popularity_factor(popularity_N, gamma)

    def _popularity_factor(self, popularity_N: torch.Tensor | np.ndarray | None, gamma: float) -> torch.Tensor | None:
        """(1 + W)^−γ, shape (N,), or `None` where distance alone decides."""
        if gamma == 0.0:
            return None
        if popularity_N is None:
            raise ValueError(f"gamma is {gamma} but there is no popularity: pass popularity_N, or gamma=0")
        counts_N = torch.as_tensor(popularity_N).double()
        if counts_N.shape != (len(self.item_ids),):
            raise ValueError(f"popularity_N must have shape ({len(self.item_ids)},), found {tuple(counts_N.shape)}")
        if not torch.isfinite(counts_N).all():
            raise ValueError("popularity_N holds NaN or infinity: give 0 to items without interactions")
        spread = (counts_N.max() - counts_N.min()).clamp_min(1e-12)
        factor_N = (1.0 + (counts_N - counts_N.min()) / spread) ** -gamma
        return factor_N.float().to(self.item_vectors_N_D.device)

    def _encode(self, texts_B: list[str]) -> torch.Tensor:
        vectors_B_D = torch.as_tensor(self.encoder(texts_B)).to(self.item_vectors_N_D)
        expected = (len(texts_B), self.item_vectors_N_D.shape[1])
        if tuple(vectors_B_D.shape) != expected:
            raise ValueError(f"the encoder gave shape {tuple(vectors_B_D.shape)}, the items ask for {expected}")
        if not torch.isfinite(vectors_B_D).all():
            row = int((~torch.isfinite(vectors_B_D).all(dim=1)).nonzero()[0])
            raise ValueError(f"the encoder gave NaN or infinity for {texts_B[row]!r}")
        return vectors_B_D

    def _distances(self, vectors_B_D: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        """The L2 distances chunk by chunk: (items, shape (B, chunk))."""
        for start in range(0, len(self.item_ids), self.chunk_size):
            part = slice(start, min(start + self.chunk_size, len(self.item_ids)))
            yield (
                part,
                torch.cdist(vectors_B_D, self.item_vectors_N_D[part], compute_mode="donot_use_mm_for_euclid_dist"),
            )

    def _scores(
        self, vectors_B_D: torch.Tensor, low_B: torch.Tensor, spread_B: torch.Tensor
    ) -> Iterator[tuple[slice, torch.Tensor]]:
        """−D, or −D̃ with popularity, chunk by chunk; higher is better."""
        for part, distance_B_C in self._distances(vectors_B_D):
            if self.factor_N is None:
                yield part, -distance_B_C
            else:
                yield part, -((distance_B_C - low_B[:, None]) / spread_B[:, None]) * self.factor_N[part]

    @torch.inference_mode()
    def rank(
        self,
        contexts_B: Sequence[str],
        target_ids_B: Sequence[str],
        *,
        top_k: int = 10,
        excluded_B: Sequence[Collection[str]] | None = None,
        candidates_B: Sequence[Collection[str]] | None = None,
    ) -> Ranking:
        """Rank completion texts; see `anyo_rl.ranking.protocol.Ranker.rank` for the arguments.

        A completion without an item has nothing to embed: everything ties, so the target is last and the top list is
        empty. Ties in the top list stand in item order. Scores are −D, or −D̃ with popularity.
        """
        check_lengths(len(contexts_B), target_ids_B=target_ids_B, excluded_B=excluded_B, candidates_B=candidates_B)
        masks = [
            allowed_items(
                self.index,
                target,
                excluded_B[b] if excluded_B is not None else None,
                candidates_B[b] if candidates_B is not None else None,
            )
            for b, target in enumerate(target_ids_B)
        ]
        ranks_B = np.array([last_rank for _, last_rank in masks], dtype=np.int64)
        top_ids_B_K: list[list[str]] = [[] for _ in masks]
        top_scores_B_K: list[list[float]] = [[] for _ in masks]

        written_B = [parse(completion).item for completion in contexts_B]
        rows = [b for b, item in enumerate(written_B) if item is not None]
        if not rows:
            return Ranking(ranks_B, top_ids_B_K, top_scores_B_K)

        device = self.item_vectors_N_D.device
        vectors_B_D = self._encode([item for item in written_B if item is not None])
        allowed_B_N = torch.from_numpy(np.stack([masks[b][0] for b in rows])).to(device)
        targets_B = torch.tensor([self.index[target_ids_B[b]] for b in rows], device=device)
        target_score_B, low_B, spread_B = self._target_scores(vectors_B_D, targets_B)

        better_B = torch.zeros(len(rows), dtype=torch.int64, device=device)
        top_score_B_K = torch.empty(len(rows), 0, device=device)
        top_item_B_K = torch.empty(len(rows), 0, dtype=torch.int64, device=device)
        for part, score_B_C in self._scores(vectors_B_D, low_B, spread_B):
            score_B_C = score_B_C.masked_fill(~allowed_B_N[:, part], -torch.inf)
            item_C = torch.arange(part.start, part.stop, device=device)
            rival_B_C = (score_B_C >= target_score_B[:, None]) & (item_C != targets_B[:, None])
            better_B += rival_B_C.sum(dim=1)
            # What is already in the top list comes first, and the sort is stable: ties stay in item order.
            score_B_C = torch.cat([top_score_B_K, score_B_C], dim=1)
            item_B_C = torch.cat([top_item_B_K, item_C.expand(len(rows), -1)], dim=1)
            top_score_B_K, order_B_C = score_B_C.sort(dim=1, descending=True, stable=True)
            top_score_B_K, order_B_C = top_score_B_K[:, :top_k], order_B_C[:, :top_k]
            top_item_B_K = item_B_C.gather(1, order_B_C)

        for row, b in enumerate(rows):
            if masks[b][0][self.index[target_ids_B[b]]]:
                ranks_B[b] = 1 + int(better_B[row])
            scores_K = [score for score in top_score_B_K[row].tolist() if score != -torch.inf]
            top_scores_B_K[b] = scores_K
            top_ids_B_K[b] = [self.item_ids[item] for item in top_item_B_K[row, : len(scores_K)].tolist()]
        return Ranking(ranks_B, top_ids_B_K, top_scores_B_K)

    def _target_scores(
        self, vectors_B_D: torch.Tensor, targets_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """A first pass: the score of each target, and the row's minimum and spread of D, all of shape (B,)."""
        low_B = torch.full((len(vectors_B_D),), torch.inf, device=vectors_B_D.device)
        high_B = torch.full_like(low_B, -torch.inf)
        target_B = torch.empty_like(low_B)
        for part, distance_B_C in self._distances(vectors_B_D):
            low_B = torch.minimum(low_B, distance_B_C.amin(dim=1))
            high_B = torch.maximum(high_B, distance_B_C.amax(dim=1))
            # The target's distance is taken from the very numbers it is compared with, so that an item with the same
            # vector ties with it to the last bit.
            here_B = (targets_B >= part.start) & (targets_B < part.stop)
            column_B = (targets_B - part.start).clamp(0, part.stop - part.start - 1)
            target_B = torch.where(here_B, distance_B_C.gather(1, column_B[:, None])[:, 0], target_B)
        # All items equally far: D̂ is 0 for each of them.
        spread_B = torch.where(high_B > low_B, high_B - low_B, torch.ones_like(low_B))
        if self.factor_N is None:
            return -target_B, low_B, spread_B
        return -((target_B - low_B) / spread_B) * self.factor_N[targets_B], low_B, spread_B
