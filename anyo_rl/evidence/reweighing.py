"""What distances from a written item are reweighed by: W of BIGRec's D̃ = D̂ · (1 + W)^−γ, for any examples.

What a training example is weighed by was fitted without its user's fold, as everything else that training examples
meet: a retriever that has seen the target would hand it over. Held-out examples meet retrievers of all training users.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anyo_rl.data.schema import EXAMPLE_ID, TRAIN, USER_ID
from anyo_rl.data.sequences import held_out, sequences_by_user
from anyo_rl.data.task import Task
from anyo_rl.evidence.candidates import NONE
from anyo_rl.evidence.folds import CrossFit
from anyo_rl.evidence.opened import Evidence
from anyo_rl.evidence.retrievers import RetrieverSettings, fit_retrievers
from anyo_rl.ranking.embedding.ranker import EmbeddingRanker
from anyo_rl.ranking.protocol import Ranking
from anyo_rl.students.protocol import Scorer

ReweighBy = Literal["popularity", "item_knn", "ease", "sasrec", "evidence"]
FOLDS = 5


class Weights(Protocol):
    """Whatever gives W."""

    def of(self, example_ids: Sequence[str]) -> NDArray[np.float32]:
        """(B, N) of B examples for each item, higher is better, finite."""


class RetrieverWeights:
    """A retriever's scores as W, cross-fitted.

    Retrievers are fitted when first asked for, and kept: one for each fold that is trained on.

    Args:
        task: the data.
        settings: of the one retriever that it is, as they were chosen on validation.
        seed: of the folds.
        n_folds: of training users; fewer where there are fewer users.

    Raises:
        UsageError: there is one training user or none.
    """

    def __init__(self, task: Task, settings: RetrieverSettings, seed: int, n_folds: int = FOLDS) -> None:
        self.task, self.settings = task, settings
        self.index = {item: place for place, item in enumerate(task.interactions.items["item_id"].to_list())}
        sequences = sequences_by_user(task, self.index)
        self.crossed = CrossFit.of(sequences, min(n_folds, len(sequences)), seed)
        self._fitted: dict[int | None, Scorer] = {}

    def scorer(self, without: int | None) -> Scorer:
        """The retriever of all training users but those of a fold; of all with `None`."""
        if without not in self._fitted:
            left_out = [] if without is None else [without]
            sequences = self.crossed.without(*left_out)
            self._fitted[without] = fit_retrievers(sequences, len(self.index), self.settings).first
        return self._fitted[without]

    def of(self, example_ids: Sequence[str]) -> NDArray[np.float32]:
        """See `Weights`; training examples by a retriever that never saw their user."""
        asked = pl.DataFrame({EXAMPLE_ID: list(example_ids)}, schema={EXAMPLE_ID: pl.String})
        rows = asked.join(self.task.examples, on=EXAMPLE_ID, how="left", maintain_order="left")
        found_B_N = np.zeros((len(rows), len(self.index)), dtype=np.float32)
        users = zip(rows["split"].to_list(), rows[USER_ID].to_list(), strict=True)
        fold_B = [self.crossed.folds[user] if split == TRAIN else None for split, user in users]
        for fold in set(fold_B):
            at = [b for b, of_row in enumerate(fold_B) if of_row == fold]
            histories = held_out(self.task, rows[at], self.index).histories
            found_B_N[at] = np.asarray(self.scorer(fold).scores(histories))
        return found_B_N


@dataclass(frozen=True)
class EvidenceWeights:
    """The evidence's probabilities of its candidates as W; 0 for what is no candidate.

    Attributes:
        evidence: gives training examples those of their fold's own ranker, and refuses where these were not made.
    """

    evidence: Evidence

    def of(self, example_ids: Sequence[str]) -> NDArray[np.float32]:
        """See `Weights`."""
        candidates_B_K = self.evidence.candidates(example_ids)
        row_P, place_P = np.nonzero(candidates_B_K != NONE)
        found_B_N = np.zeros((len(candidates_B_K), self.evidence.n_items), dtype=np.float32)
        probabilities_B_K = np.exp(self.evidence.log_scores(example_ids))
        found_B_N[row_P, candidates_B_K[row_P, place_P]] = probabilities_B_K[row_P, place_P]
        return found_B_N


@dataclass(frozen=True)
class ReweighedRanker:
    """BIGRec's grounding, reweighed by what belongs to each example.

    Attributes:
        ranker: with its γ.
        weights: W.
    """

    ranker: EmbeddingRanker
    weights: Weights

    def rank(
        self,
        contexts_B: Sequence[str],
        target_ids_B: Sequence[str],
        *,
        top_k: int = 10,
        excluded_B: Sequence[Collection[str]] | None = None,
        candidates_B: Sequence[Collection[str]] | None = None,
        example_ids_B: Sequence[str] | None = None,
    ) -> Ranking:
        """See `EmbeddingRanker.rank`; whose completions they are cannot be left out, unless γ is 0."""
        weights_B_N = None
        if self.ranker.gamma:
            assert example_ids_B is not None, "weights belong to examples"
            weights_B_N = self.weights.of(example_ids_B)
        return self.ranker.rank(
            contexts_B,
            target_ids_B,
            top_k=top_k,
            excluded_B=excluded_B,
            candidates_B=candidates_B,
            cf_scores_B_N=weights_B_N,
        )
