"""Fusion: what a teacher says of evidence's candidates, beside what evidence says of them itself.

    log p(i | h, r) = α · log p_teacher(i | h, r, candidates) + s(h, i), normalised over the candidates

s is the log-score of the evidence ranker. At α = 0 the answer is the evidence's own. Items that are no candidates stay
behind all that are, as evidence has them, so that a rank among candidates is one among the whole catalog. A mixture of
paths is the mean of their fused distributions.
"""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.evidence.candidates import NONE, Items, places, ranks_at
from anyo_rl.evidence.make import Maker
from anyo_rl.evidence.opened import Evidence
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.embedding.ranker import EmbeddingRanker
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker, checked_weights
from anyo_rl.ranking.protocol import Ranking, check_lengths
from anyo_rl.run.settings import UsageError

SAME_TOP = (1, 10)  # places at which an answer is compared with the evidence's own
ALPHAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5)  # that are tried
SHARPNESS = 10.0
Context = Any  # token ids up to the marker; the text of a completion where that is ranked


class OfExamples(Protocol):
    """Evidence of examples, by their ids: `Evidence`, or `AskedEvidence` of histories that somebody asks about."""

    @property
    def maker(self) -> Maker:
        """What it was made with."""

    def candidates(self, example_ids: Sequence[str], /) -> Items:
        """See `Evidence`."""

    def log_scores(self, example_ids: Sequence[str], /) -> NDArray[np.float32]:
        """See `Evidence`."""

    def target_ranks(self, example_ids: Sequence[str], /) -> NDArray[np.int64]:
        """See `Evidence`."""


def fuse(
    log_p_B_G_K: NDArray[np.floating],
    log_scores_B_K: NDArray[np.floating],
    alpha: float,
    weights_B_G: NDArray[np.floating] | None = None,
) -> NDArray[np.float64]:
    """Log-probabilities (B, K) of candidates: the mean over G paths of the fused distributions.

    Args:
        log_p_B_G_K: the teacher's, among candidates or among the whole catalog, which makes no difference.
        log_scores_B_K: the evidence's; -inf where there is no candidate.
        alpha: the teacher's weight α, 0 or more.
        weights_B_G: of the paths, summing to 1; equal ones if `None`.

    >>> teacher, evidence = np.log([[[0.2, 0.4, 0.1]]]), np.log([[0.5, 0.3, 0.2]])
    >>> np.exp(fuse(teacher, evidence, 1.0)).round(3).tolist()  # as .10 to .12 to .02
    [[0.417, 0.5, 0.083]]
    """
    there_B_1_K = np.isfinite(log_scores_B_K)[:, None]
    scores_B_G_K = np.where(there_B_1_K, log_scores_B_K[:, None], -np.inf)
    if alpha:  # 0 times the -inf of a teacher that rules an item out would be NaN
        scores_B_G_K = scores_B_G_K + alpha * np.where(there_B_1_K, log_p_B_G_K, 0.0)
    scores_B_G_K = np.broadcast_to(scores_B_G_K, log_p_B_G_K.shape)
    largest_B_G_1 = np.where(there_B_1_K, scores_B_G_K, -np.inf).max(axis=2, keepdims=True, initial=-np.inf)
    weights_B_G_K = np.exp(scores_B_G_K - np.where(np.isfinite(largest_B_G_1), largest_B_G_1, 0.0))
    total_B_G_1 = weights_B_G_K.sum(axis=2, keepdims=True)
    shares_B_G_K = weights_B_G_K / np.where(total_B_G_1 > 0, total_B_G_1, 1.0)
    mean_B_K = (
        shares_B_G_K.mean(axis=1) if weights_B_G is None else (weights_B_G[..., None] * shares_B_G_K).sum(axis=1)
    )
    with np.errstate(divide="ignore"):
        return np.log(mean_B_K)


@dataclass(frozen=True)
class AlphaChoice:
    """How α was chosen.

    Attributes:
        alpha: the best; of equal ones the smallest.
        trials: each that was tried, with its NDCG@10 over all examples, and the mean −log p (nats) of the targets that
            are candidates; NaN where none is.
    """

    alpha: float
    trials: list[tuple[float, float, float]]


def choose_alpha(
    log_p_B_G_K: NDArray[np.floating],
    log_scores_B_K: NDArray[np.floating],
    place_B: NDArray[np.integer],
    alphas: Sequence[float] = ALPHAS,
) -> AlphaChoice:
    """Chooses the teacher's weight on validation examples: by NDCG@10, and no larger than is the likeliest.

    NDCG@10 of some hundred users has several peaks, of which the large weights' are chance: with them the teacher is
    surer than it is right. Of one path −log p is convex in α, so that it has one minimum.

    Args:
        log_p_B_G_K: as in `fuse`.
        log_scores_B_K: as in `fuse`.
        place_B: where the targets are among the candidates; `NONE` for those that are none, whose NDCG@10 is 0
            whatever α is, from 10 candidates on.
        alphas: what to try.
    """
    hit_B = place_B != NONE
    trials = []
    for alpha in sorted(alphas):
        log_p_B_K = fuse(log_p_B_G_K[hit_B], log_scores_B_K[hit_B], alpha)
        value = float(ndcg(ranks_at(log_p_B_K, place_B[hit_B]), 10).sum() / max(len(place_B), 1))
        nll = -float(np.take_along_axis(log_p_B_K, place_B[hit_B][:, None], axis=1).mean()) if hit_B.any() else np.nan
        trials.append((alpha, value, nll))
    likeliest = min(trials, key=lambda trial: trial[2])[0]
    best, _, _ = max((trial for trial in trials if trial[0] <= likeliest), key=lambda trial: (trial[1], -trial[0]))
    return AlphaChoice(best, trials)


@dataclass(frozen=True)
class FusedRanking(Ranking):
    """A ranking by teacher and evidence, and what evidence alone says of the same rows.

    Attributes:
        teacher_log_probs_B: the teacher's own log p(target) among the whole catalog, a mean over paths: what an item
            loss trains, also where the target is no candidate.
        evidence_ranks_B: int64, ranks of the targets by the evidence alone, under the same cap.
        as_evidence_B_2: bool, whether the first item is the evidence's own, and whether the first ten are, in order.
    """

    about: ClassVar[str] = "evidence"  # what `told` tells of, in logs

    teacher_log_probs_B: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    evidence_ranks_B: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    as_evidence_B_2: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), bool))

    def told(self) -> dict[str, float]:
        """Means for logs: what is gained beyond evidence, and the shares of answers that are the evidence's own."""
        same_2 = self.as_evidence_B_2.mean(axis=0)
        shares = {f"same_top{k}": float(share) for k, share in zip(SAME_TOP, same_2, strict=True)}
        return {"beyond": float(self.beyond_evidence_B.mean()), **shares}

    @property
    def beyond_evidence_B(self) -> NDArray[np.float64]:
        """NDCG of the fused ranks less that of the evidence's own."""
        found: NDArray[np.float64] = ndcg(self.ranks_B) - ndcg(self.evidence_ranks_B)
        return found


@dataclass(frozen=True)
class Fusion:
    """Evidence and the teacher's weight beside it; of a stage that is trained on fused ranks.

    Attributes:
        evidence: with scores of training examples.
        alpha: the teacher's weight.
    """

    evidence: Evidence
    alpha: float

    def of(self, ranker: LikelihoodRanker) -> "FusedRanker":
        """The ranker on a teacher's weights."""
        return FusedRanker(ranker, self.evidence, self.alpha)


class WrittenPart:
    """What a teacher wrote, as its part of a fusion in place of probabilities: −10 · D̂ of each candidate.

    D̂ is the candidate's distance from the written item, min–max normalised over the catalog as BIGRec does. Of it the
    candidates' softmax is taken, at a temperature of 1/10 over α: a departure from BIGRec, which has no distribution
    (its own way to let evidence in is D̂ · (1 + W)^−γ with W of the evidence). With 10 the α that are tried go from
    nearly nothing to distance alone: they put e^0.3 to e^15 between the nearest item and the farthest.

    Args:
        catalog: of the items.
        ranker: of completion texts; its γ plays no part, since evidence knows what W does.
    """

    model: Any = None
    cap: int | None = None
    node_budget: int | None = None

    def __init__(self, catalog: Catalog, ranker: EmbeddingRanker) -> None:
        self.catalog = catalog
        # Where W is the same for all items, it leaves D̂ as it is, whatever γ.
        self.ranker = ranker.with_gamma(1.0)

    def log_probs_of(
        self, contexts_B_G: Sequence[Sequence[str]], items_B: Sequence[Sequence[int]]
    ) -> list[NDArray[np.float64]]:
        """Log-probabilities of given items, but for a constant of each row; all alike where nothing was written.

        Args:
            contexts_B_G: one completion of each row.
            items_B: item indices of each row.
        """
        names = self.catalog.item_ids
        ranking = self.ranker.rank(
            [text for (text,) in contexts_B_G],
            [names[0]] * len(items_B),  # whose rank nobody asks for
            top_k=max(map(len, items_B), default=0),
            candidates_B=[[names[item] for item in items] for items in items_B],
            cf_scores_B_N=lambda items: np.zeros((len(items_B), items.stop - items.start), np.float32),
        )
        of_rows = [
            dict(zip(*row, strict=True)) for row in zip(ranking.top_ids_B_K, ranking.top_scores_B_K, strict=True)
        ]
        return [
            SHARPNESS * np.array([scores.get(names[item], 0.0) for item in items])
            for scores, items in zip(of_rows, items_B, strict=True)
        ]


class FusedRanker:
    """Ranks the catalog by teacher and evidence together.

    Ranks beyond the engine's cap count as the one after it. A node budget does not hold here: candidates are searched
    to the end.

    Args:
        ranker: the engine on the teacher's weights; or what the teacher wrote, and contexts are its texts then.
        evidence: of the same catalog.
        alpha: the teacher's weight.

    Raises:
        UsageError: the catalog's items are not those of the evidence.
    """

    kind = "fused"

    def __init__(self, ranker: LikelihoodRanker | WrittenPart, evidence: OfExamples, alpha: float) -> None:
        if list(evidence.maker.index) != list(ranker.catalog.item_ids):
            raise UsageError("the evidence is of another catalog: make it of the data that the teacher answers for")
        self.ranker, self.evidence, self.alpha = ranker, evidence, alpha
        self.catalog, self.model = ranker.catalog, ranker.model
        self.cap, self.node_budget = ranker.cap, ranker.node_budget

    def rank(
        self,
        contexts_B: Sequence[Context],
        target_ids_B: Sequence[str | None],
        *,
        top_k: int = 10,
        excluded_B: Sequence[Collection[str]] | None = None,
        example_ids_B: Sequence[str] | None = None,
    ) -> FusedRanking:
        """`rank_mixture` of one context each."""
        return self.rank_mixture(
            [[context] for context in contexts_B],
            target_ids_B,
            top_k=top_k,
            excluded_B=excluded_B,
            example_ids_B=example_ids_B,
        )

    def log_probs(self, contexts_B_G: Sequence[Sequence[Context]], candidates_B_K: Items) -> NDArray[np.float64]:
        """The teacher's log-probabilities (B, G, K) of candidates, path by path; -inf where there is none."""
        n_paths = len(contexts_B_G[0]) if contexts_B_G else 1
        items_B = [row[row != NONE].tolist() for row in candidates_B_K]
        found = self.ranker.log_probs_of(
            [[context] for of_row in contexts_B_G for context in of_row],
            [items for items in items_B for _ in range(n_paths)],
        )
        log_p_B_G_K = np.full((len(candidates_B_K), n_paths, candidates_B_K.shape[1]), -np.inf)
        for number, of_path in enumerate(found):
            row, path = divmod(number, n_paths)
            log_p_B_G_K[row, path, candidates_B_K[row] != NONE] = of_path
        return log_p_B_G_K

    def rank_mixture(
        self,
        contexts_B_G: Sequence[Sequence[Context]],
        target_ids_B: Sequence[str | None],
        *,
        top_k: int = 10,
        excluded_B: Sequence[Collection[str]] | None = None,
        example_ids_B: Sequence[str] | None = None,
        weights_B_G: Sequence[Sequence[float]] | None = None,
    ) -> FusedRanking:
        """Ranks the target of each example among the catalog; see `anyo_rl.ranking.protocol.Ranker`.

        A target that is no candidate has the rank that evidence gives it, and log-probability -inf; one that is not
        known (`None`) has rank 0.

        Args:
            contexts_B_G: token ids that end with the marker, G of each example.
            target_ids_B: the item that the user really chose.
            top_k: how many items to name, at most; candidates alone are named.
            excluded_B: item ids to take out of each ranking, besides what the evidence leaves out; never the target.
            example_ids_B: whose evidence it is; it cannot do without.
            weights_B_G: of the contexts, summing to 1; equal ones if `None`.

        Raises:
            UsageError: there is no evidence of an example.
        """
        assert example_ids_B is not None, "evidence belongs to examples"
        check_lengths(len(contexts_B_G), target_ids_B=target_ids_B, example_ids_B=example_ids_B, excluded_B=excluded_B)
        candidates_B_K = np.array(self.evidence.candidates(example_ids_B))
        log_scores_B_K = np.array(self.evidence.log_scores(example_ids_B))
        checked_weights(contexts_B_G, weights_B_G)
        known_B = np.array([target is not None for target in target_ids_B], dtype=bool)
        targets_B = np.full(len(known_B), len(self.catalog.item_ids), dtype=np.int64)  # no item's index
        targets_B[known_B] = self.catalog.indices([target for target in target_ids_B if target is not None])
        for row, out in enumerate(excluded_B or ()):
            known = set(self.catalog.known(out)) - {int(targets_B[row])}
            gone_K = np.isin(candidates_B_K[row], list(known))
            candidates_B_K[row, gone_K], log_scores_B_K[row, gone_K] = NONE, -np.inf
        place_B = places(candidates_B_K, targets_B)
        hit_B = place_B != NONE
        # The teacher is asked for the targets too: what it says of those that are no candidates plays no part here.
        beyond_B = np.where(hit_B | ~known_B, NONE, targets_B)
        asked_B_k = np.concatenate([candidates_B_K, beyond_B[:, None]], axis=1)
        log_p_B_G_k = self.log_probs(contexts_B_G, asked_B_k)
        weights = None if weights_B_G is None else np.array(weights_B_G, dtype=np.float64)
        log_p_B_K = fuse(log_p_B_G_k[..., :-1], log_scores_B_K, self.alpha, weights)
        own_B_G = np.take_along_axis(log_p_B_G_k, place_B[:, None, None], axis=2)[..., 0]  # `NONE` is the last place
        beyond_B = self._beyond(example_ids_B, candidates_B_K, hit_B | ~known_B)
        ranks_B = self._capped(np.where(hit_B, ranks_at(log_p_B_K, place_B), beyond_B))
        order_B_K = np.argsort(-log_p_B_K, axis=1, kind="stable")
        same_B_K = order_B_K == np.argsort(-log_scores_B_K, axis=1, kind="stable")
        same_B_K |= ~np.isfinite(np.take_along_axis(log_scores_B_K, order_B_K, axis=1))  # behind the last candidate
        items, n = self.catalog.item_ids, len(ranks_B)
        named_B = [[k for k in row if candidates_B_K[b, k] != NONE] for b, row in enumerate(order_B_K[:, :top_k])]
        return FusedRanking(
            ranks_B=ranks_B,
            top_ids_B_K=[[items[candidates_B_K[b, k]] for k in row] for b, row in enumerate(named_B)],
            top_scores_B_K=[[float(log_p_B_K[b, k]) for k in row] for b, row in enumerate(named_B)],
            log_probs_B=np.where(hit_B, log_p_B_K[np.arange(n), place_B], -np.inf),
            lowest_B=ranks_B,
            highest_B=ranks_B,
            top_exact_B=np.ones(n, dtype=bool),
            complete_B=np.ones(n, dtype=bool),
            allows_unknown=True,
            teacher_log_probs_B=_log_mean(own_B_G, weights),
            evidence_ranks_B=self._capped(np.where(hit_B, ranks_at(log_scores_B_K, place_B), beyond_B)),
            as_evidence_B_2=np.stack([same_B_K[:, :k].all(axis=1) for k in SAME_TOP], axis=1),
        )

    def _beyond(
        self, example_ids_B: Sequence[str], candidates_B_K: Items, hit_B: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        """Ranks of targets that are no candidates; 0 where they are, and beyond the cap where that is all one asks."""
        ranks_B = np.zeros(len(hit_B), dtype=np.int64)
        n_candidates_B = (candidates_B_K != NONE).sum(axis=1)
        far_B = ~hit_B & (n_candidates_B >= (np.inf if self.cap is None else self.cap))
        ranks_B[far_B] = n_candidates_B[far_B] + 1
        asked = np.flatnonzero(~hit_B & ~far_B)
        ranks_B[asked] = self.evidence.target_ranks([example_ids_B[row] for row in asked])
        return ranks_B

    def _capped(self, ranks_B: NDArray[np.int64]) -> NDArray[np.int64]:
        return ranks_B if self.cap is None else np.minimum(ranks_B, self.cap + 1)


def _log_mean(log_p_B_G: NDArray[np.floating], weights_B_G: NDArray[np.floating] | None) -> NDArray[np.float64]:
    """Log of the mean of probabilities over paths, by weights where there are some."""
    if weights_B_G is None:
        return np.logaddexp.reduce(log_p_B_G, axis=1) - np.log(log_p_B_G.shape[1])
    with np.errstate(divide="ignore"):
        return np.logaddexp.reduce(log_p_B_G + np.log(weights_B_G), axis=1)


Engine = LikelihoodRanker | FusedRanker  # what ranks after a reasoning: the teacher, by itself or with evidence
