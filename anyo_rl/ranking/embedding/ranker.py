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
price of one matrix product, or two with γ (`anyo_rl.ranking.embedding.grounding`). The (B, N) distances never exist at
once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from anyo_rl.data.completion import parse
from anyo_rl.metrics import ndcg
from anyo_rl.ranking.embedding.grounding import MAX_GAMMA, Pairs, Search, Weights
from anyo_rl.ranking.embedding.item_space import ItemSpace
from anyo_rl.ranking.protocol import Ranking, check_lengths, competing_items

Encoder = Callable[[list[str]], "torch.Tensor | np.ndarray"]
# A CF model's scores of each context for each item, (B, N), or a function that gives them for a slice of the items,
# (B, n): it is called chunk by chunk and twice, and has to give the same each time.
CFScores: TypeAlias = "torch.Tensor | np.ndarray | Callable[[slice], torch.Tensor | np.ndarray]"

GAMMAS = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)


class EmbeddingRanker:
    """Ranks items by their distance to the embedding of the item that a completion names.

    Args:
        item_ids: the catalog, in item order.
        item_vectors_N_D: an embedding per item, shape (N, D), from the same encoder. Where it is float32 it is not
            copied: it may be mapped from a file.
        encoder: texts to embeddings, B strings to shape (B, D).
        popularity_N: interactions per item *in the training data*, shape (N,): the W of calls that bring no scores.
        gamma: strength of W, γ, 0 to 100; 0 ranks by distance alone.
        device: where distances are computed, a chunk of the vectors at a time where they are many and elsewhere; by
            default where they are.
        chunk_size: items in a tile of distances; `None` fits it to the device.

    Raises:
        ValueError: an id comes twice, shapes do not fit, a vector holds NaN, or γ is out of its range.
    """

    def __init__(
        self,
        item_ids: Sequence[str],
        item_vectors_N_D: torch.Tensor | np.ndarray,
        encoder: Encoder,
        *,
        popularity_N: torch.Tensor | np.ndarray | None = None,
        gamma: float = 0.0,
        device: torch.device | str | None = None,
        chunk_size: int | None = None,
    ) -> None:
        self.item_ids = list(item_ids)
        self.index = {item: position for position, item in enumerate(self.item_ids)}
        vectors_N_D = torch.as_tensor(item_vectors_N_D).detach().float()
        self.encoder = encoder
        n_items = len(self.item_ids)
        if len(self.index) != n_items:
            raise ValueError(f"{n_items} item ids but only {len(self.index)} different ones: ids must be unique")
        if vectors_N_D.ndim != 2 or len(vectors_N_D) != n_items:
            raise ValueError(f"{n_items} items need vectors of shape ({n_items}, D), found {tuple(vectors_N_D.shape)}")
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be 1 or more, found {chunk_size}")
        for start in range(0, n_items, 4096):  # the flags of the whole matrix would be a quarter of its size
            finite_n = torch.isfinite(vectors_N_D[start : start + 4096]).all(dim=1)
            if not finite_n.all():
                row = start + int((~finite_n).nonzero()[0])
                raise ValueError(f"the vector of item {self.item_ids[row]!r} holds NaN or infinity: embed it again")
        self.space = ItemSpace(vectors_N_D, device=device, chunk_size=chunk_size)
        self.popularity_N = self._checked_popularity(popularity_N)
        self.gamma = _checked_gamma(gamma)

    def with_gamma(self, gamma: float) -> EmbeddingRanker:
        """The same ranker with another γ; everything else is shared."""
        other = copy.copy(self)
        other.gamma = _checked_gamma(gamma)
        return other

    def _checked_popularity(self, popularity_N: torch.Tensor | np.ndarray | None) -> torch.Tensor | None:
        if popularity_N is None:
            return None
        counts_N = torch.as_tensor(popularity_N).double().to(self.space.device)
        if counts_N.shape != (len(self.item_ids),):
            raise ValueError(f"popularity_N must have shape ({len(self.item_ids)},), found {tuple(counts_N.shape)}")
        if not torch.isfinite(counts_N).all():
            raise ValueError("popularity_N holds NaN or infinity: give 0 to items without interactions")
        return counts_N

    def _encode(self, texts_B: list[str]) -> torch.Tensor:
        vectors_B_D = torch.as_tensor(self.encoder(texts_B)).detach().to(self.space.device, torch.float32)
        expected = (len(texts_B), self.space.items_N_D.shape[1])
        if tuple(vectors_B_D.shape) != expected:
            raise ValueError(f"the encoder gave shape {tuple(vectors_B_D.shape)}, the items ask for {expected}")
        if not torch.isfinite(vectors_B_D).all():
            row = int((~torch.isfinite(vectors_B_D).all(dim=1)).nonzero()[0])
            raise ValueError(f"the encoder gave NaN or infinity for {texts_B[row]!r}")
        return vectors_B_D

    def _weights(self, cf_scores_B_N: CFScores | None, rows: list[int], n_contexts: int) -> Weights | None:
        """W of the rows that are ranked; `None` where distance alone decides."""
        if self.gamma == 0.0:
            return None
        if cf_scores_B_N is None:
            if self.popularity_N is None:
                raise ValueError(
                    f"gamma is {self.gamma} but there is nothing to reweigh by: make the ranker with popularity_N, "
                    "give rank() a CF model's cf_scores_B_N, or take gamma=0"
                )
            counts_N = self.popularity_N
            return lambda items: counts_N[None, items]
        if callable(cf_scores_B_N):
            scores = cf_scores_B_N
        else:
            matrix_B_N = torch.as_tensor(cf_scores_B_N)
            if matrix_B_N.shape != (n_contexts, len(self.item_ids)):
                raise ValueError(
                    f"cf_scores_B_N must have shape ({n_contexts}, {len(self.item_ids)}), a row per context, "
                    f"found {tuple(matrix_B_N.shape)}"
                )

            def scores(items: slice) -> torch.Tensor:
                return matrix_B_N[:, items]

        def weights(items: slice) -> torch.Tensor:
            scores_B_n = torch.as_tensor(scores(items))
            expected = (n_contexts, items.stop - items.start)
            if scores_B_n.shape != expected:
                raise ValueError(f"cf_scores_B_N gave shape {tuple(scores_B_n.shape)}, expected {expected}")
            return scores_B_n[rows]

        return weights

    @torch.inference_mode()
    def rank(
        self,
        contexts_B: Sequence[str],
        target_ids_B: Sequence[str],
        *,
        top_k: int = 10,
        excluded_B: Sequence[Collection[str]] | None = None,
        candidates_B: Sequence[Collection[str]] | None = None,
        cf_scores_B_N: CFScores | None = None,
    ) -> Ranking:
        """Ranks completion texts; see `anyo_rl.ranking.protocol.Ranker.rank` for the other arguments.

        A completion without an item has nothing to embed: everything ties, so the target is last and the top list is
        empty. Ties in the top list stand in item order. Scores are −D, or −D̃ with γ. Candidates are scored one by one:
        fast for some thousands in each row.

        `cf_scores_B_N` are a CF model's scores as W, higher is better, finite; in place of the popularity.

        Raises:
            ValueError: lengths or shapes do not fit, a target is not in the catalog, there is a NaN, or γ has no W.
        """
        check_lengths(len(contexts_B), target_ids_B=target_ids_B, excluded_B=excluded_B, candidates_B=candidates_B)
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
        written_B = [parse(completion).item for completion in contexts_B]
        rows = [b for b, item in enumerate(written_B) if item is not None]
        weights = self._weights(cf_scores_B_N, rows, len(contexts_B))
        if not rows:
            return Ranking(ranks_B, top_ids_B_K, top_scores_B_K)

        vectors_B_D = self._encode([item for item in written_B if item is not None])
        targets_B = torch.tensor([self.index[target_ids_B[b]] for b in rows], device=self.space.device)
        search = Search(self.space, vectors_B_D, targets_B, weights=weights, gamma=self.gamma)
        top_k = min(top_k, len(self.item_ids))
        if candidates_B is None:
            found = search.among_all(top_k, self._pairs([competing[b].removed for b in rows]))
        else:
            found = search.among_candidates(top_k, self._pairs([competing[b].kept or () for b in rows]))

        n_near_B, items_B_K, scores_B_K = found.n_near_B.tolist(), found.items_B_K.tolist(), found.scores_B_K.tolist()
        for row, b in enumerate(rows):
            if competing[b].has_target:
                ranks_B[b] = n_near_B[row]
            items_K = [item for item in items_B_K[row] if item < len(self.item_ids)]
            top_ids_B_K[b] = [self.item_ids[item] for item in items_K]
            top_scores_B_K[b] = [-score for score in scores_B_K[row][: len(items_K)]]
        return Ranking(ranks_B, top_ids_B_K, top_scores_B_K)

    def _pairs(self, items_B: Sequence[Sequence[int]]) -> Pairs:
        counts_B = torch.tensor([len(items) for items in items_B])
        row_P = torch.repeat_interleave(torch.arange(len(items_B)), counts_B)
        item_P = torch.tensor([item for items in items_B for item in items], dtype=torch.int64)
        return row_P.to(self.space.device), item_P.to(self.space.device)


def _checked_gamma(gamma: float) -> float:
    if not 0 <= gamma <= MAX_GAMMA:
        raise ValueError(f"found gamma={gamma}, expected 0 to {MAX_GAMMA:g}")
    return float(gamma)


@dataclass(frozen=True)
class GammaChoice:
    """The γ chosen on validation, the mean of its metric, and all (γ, mean) that were tried, in order."""

    gamma: float
    value: float
    trials: list[tuple[float, float]]


def choose_gamma(
    ranker: EmbeddingRanker,
    contexts_B: Sequence[str],
    target_ids_B: Sequence[str],
    *,
    gammas: Sequence[float] = GAMMAS,
    metric: Callable[[np.ndarray], np.ndarray] = lambda ranks_B: ndcg(ranks_B, 10),
    excluded_B: Sequence[Collection[str]] | None = None,
    cf_scores_B_N: CFScores | None = None,
) -> GammaChoice:
    """Chooses one γ by the mean of a metric over *validation* rows, never those of the test set.

    Texts are encoded once. Of γ that are equally good the first is taken: a list that starts with 0 does without W
    unless it helps.

    Args:
        ranker: with `popularity_N`, unless `cf_scores_B_N` is given; its own γ plays no part.
        contexts_B: completions of validation rows.
        target_ids_B: the items that these rows' users really chose.
        gammas: what to try.
        metric: ranks (B,) to gains (B,), higher is better; by default NDCG@10.
        excluded_B: item ids to take out of each ranking.
        cf_scores_B_N: a CF model's scores as W, in place of the popularity.

    Raises:
        ValueError: there is nothing to try, no row, or a metric that is not finite.
    """
    if not len(gammas) or not len(contexts_B):
        raise ValueError(f"found {len(gammas)} gammas and {len(contexts_B)} validation rows, expected one or more")
    encoded: dict[tuple[str, ...], torch.Tensor | np.ndarray] = {}

    def encode_once(texts: list[str]) -> torch.Tensor | np.ndarray:
        if tuple(texts) not in encoded:
            encoded[tuple(texts)] = ranker.encoder(texts)
        return encoded[tuple(texts)]

    trials = []
    for gamma in gammas:
        trial = ranker.with_gamma(gamma)
        trial.encoder = encode_once
        ranking = trial.rank(contexts_B, target_ids_B, top_k=0, excluded_B=excluded_B, cf_scores_B_N=cf_scores_B_N)
        value = float(np.mean(metric(ranking.ranks_B)))
        if not np.isfinite(value):
            raise ValueError(f"the metric's mean is {value} with gamma={gamma}, expected a finite number")
        trials.append((float(gamma), value))
    gamma, value = max(trials, key=lambda trial: trial[1])
    return GammaChoice(gamma, value, trials)
