"""Baselines and evidence as teachers of students: whatever answers a history met was fitted without its user.

A baseline is fitted once for each fold of training users, on the users of all other folds, and answers the histories
of its own; the evidence's retrievers and rankers were cross-fitted when it was made (`anyo_rl.evidence`).
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anyo_rl.data.schema import EXAMPLE_ID, VALIDATION
from anyo_rl.data.sequences import HeldOut, held_out, sequences_by_user
from anyo_rl.data.task import Task
from anyo_rl.distill.cache import USER, Labels
from anyo_rl.evidence.candidates import NONE, Items, top_list
from anyo_rl.evidence.folds import CrossFit
from anyo_rl.evidence.lists import EvidenceLists
from anyo_rl.evidence.make import train_folder
from anyo_rl.evidence.opened import Evidence, scores_file
from anyo_rl.evidence.retrievers import RetrieverSettings, fit_retrievers
from anyo_rl.evidence.softening import Softening, choose_softening, log_softmax
from anyo_rl.metrics.ranking import target_ranks
from anyo_rl.students.protocol import Scorer, rows_at_once

CHOOSE_BY = 5000  # validation examples, at most, that a temperature is chosen by
FOLD = "fold"


class CrossFitted:
    """A baseline, fitted without the fold of whoever asks.

    Args:
        task: the data.
        settings: of the one retriever that it is, as they were chosen on validation.
        n_folds: of training users.
        seed: of the folds.

    Raises:
        UsageError: there are fewer users than folds.
    """

    def __init__(self, task: Task, settings: RetrieverSettings, n_folds: int, seed: int) -> None:
        self.task, self.settings = task, settings
        self.index = {item: place for place, item in enumerate(task.interactions.items["item_id"].to_list())}
        self.crossed = CrossFit.of(sequences_by_user(task, self.index), n_folds, seed)
        self._fold_U = np.array([self.crossed.folds[user] for user in self.crossed.sequences])
        self._fitted: tuple[int | None, Scorer] | None = None

    def in_order(self, histories: pl.DataFrame) -> pl.DataFrame:
        """Histories fold by fold, so that each fit serves all of its own before the next one is made."""
        folds = pl.Series(FOLD, self._fold_U[histories[USER].to_numpy()])
        return histories.with_columns(folds).sort(FOLD, maintain_order=True).drop(FOLD)

    def scorer(self, without: int | None) -> Scorer:
        """The baseline of all training users but those of a fold; of all with `None`. One is kept at a time."""
        if self._fitted is None or self._fitted[0] != without:
            self._fitted = None
            left_out = [] if without is None else [without]
            fitted = fit_retrievers(self.crossed.without(*left_out), len(self.index), self.settings)
            self._fitted = without, fitted.first
        return self._fitted[1]

    def choose_softening(self, k: int) -> Softening:
        """How scores become probabilities, by validation users and the baseline of all training users."""
        asked = held_out(self.task, self.task.split(VALIDATION, CHOOSE_BY), self.index)
        items_R_K, scores_R_K, _ = top_scores(self.scorer(None), asked, k)
        return choose_softening(scores_R_K, items_R_K, np.array(asked.targets))

    def label(self, histories: pl.DataFrame, k: int, softening: Softening) -> Labels:
        """The answers to training histories.

        Args:
            histories: rows of `anyo_rl.data.sequences.training_positions`.
            k: items of an answer, K.
            softening: see `choose_softening`.
        """
        fold_R = self._fold_U[histories[USER].to_numpy()]
        items_R_K = np.full((len(histories), k), NONE, dtype=np.int32)
        scores_R_K = np.full((len(histories), k), -np.inf)
        ranks_R = np.zeros(len(histories), dtype=np.int64)
        for fold in np.unique(fold_R).tolist():
            at = np.flatnonzero(fold_R == fold)
            asked = held_out(self.task, self.task.examples[histories["place"].to_numpy()[at]], self.index)
            items_R_K[at], scores_R_K[at], ranks_R[at] = top_scores(self.scorer(fold), asked, k)
        return Labels(items_R_K, softening.log_probs(scores_R_K), ranks_R)


def top_scores(scorer: Scorer, asked: HeldOut, k: int) -> tuple[Items, NDArray[np.float64], NDArray[np.int64]]:
    """Top lists (R, k) of histories, less what each leaves out, their scores (R, k), and the targets' ranks (R,)."""
    items_R_K = np.full((len(asked), k), NONE, dtype=np.int32)
    scores_R_K, ranks_R = np.full((len(asked), k), -np.inf), np.zeros(len(asked), dtype=np.int64)
    at_once = rows_at_once(scorer.n_items)
    for start in range(0, len(asked), at_once):
        part, rows = asked[start : start + at_once], slice(start, start + at_once)
        scores_R_N = np.array(scorer.scores(part.histories), dtype=np.float32)
        ranks_R[rows] = target_ranks(scores_R_N, part.targets, part.excluded)
        for row, out in enumerate(part.excluded):
            scores_R_N[row, out] = -np.inf
        found_R_K = top_list(scores_R_N, k)
        width = found_R_K.shape[1]
        items_R_K[rows, :width] = found_R_K
        of_found_R_K = np.take_along_axis(scores_R_N, np.maximum(found_R_K, 0), axis=1)
        scores_R_K[rows, :width] = np.where(found_R_K == NONE, -np.inf, of_found_R_K)
    return items_R_K, scores_R_K, ranks_R


@dataclass(frozen=True)
class Candidates:
    """The candidates of an evidence run, in the order of the ranker that never saw the user.

    Attributes:
        evidence: with scores of training examples (`--training_scores true`).
    """

    evidence: Evidence

    def label(self, histories: pl.DataFrame, k: int) -> Labels:
        """The answers to training histories, by the evidence's own log-scores; see `CrossFitted.label`."""
        ids = histories[EXAMPLE_ID].to_list()
        items_R_K, scores_R_K = self._top(ids, k)
        return Labels(items_R_K, log_softmax(scores_R_K), self.evidence.target_ranks(ids))

    def fingerprint(self) -> str:
        """Hash of the ranker, and of the candidates and scores of training examples."""
        maker, seed = self.evidence.maker, self.evidence.seed
        folds = range(maker.n_folds)
        files = [train_folder(maker.folder, seed, fold) / "candidates.npy" for fold in folds]
        files += [scores_file(maker.folder, seed, f"fold-{fold}") for fold in folds]
        return hash_of_files([file for file in files if file.is_file()])

    def _top(self, example_ids: list[str], k: int) -> tuple[Items, NDArray[np.float64]]:
        found = EvidenceLists(self.evidence).incoming(example_ids, k)
        return found.items_R_K, found.scores_R_K.astype(np.float64)


def hash_of_files(files: list[Path]) -> str:
    """Of what the files hold, in order."""
    found = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()[:32]
