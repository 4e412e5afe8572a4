"""Making the evidence of all examples, each with retrievers that never saw its user; what is finished is kept.

retrievers.json           which retrievers, with the settings that were chosen on validation
held_out/                 tables of validation and test, with retrievers of all training users
seed-S/train/fold-F/      tables of training users, with retrievers of the users of all other folds
seed-S/drift/fold-F/      some validation examples of the same users once more, with the same retrievers
seed-S/pairs/fold-F-G/    training users of two folds, with retrievers of neither: what a fold's own ranker learns from
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anyo_rl.data.schema import TEST, TRAIN, USER_ID, VALIDATION
from anyo_rl.data.sequences import sequences_by_user
from anyo_rl.data.task import Task
from anyo_rl.evidence.features import Gatherer
from anyo_rl.evidence.folds import CrossFit
from anyo_rl.evidence.retrievers import Fitted, RetrieverSettings, fit_retrievers
from anyo_rl.evidence.tables import Table, is_kept, keep_table, open_table
from anyo_rl.students.protocol import Histories

DATA = ("items", "events", "targets")  # parts of a task's fingerprint that evidence depends on
DRIFT_EXAMPLES = 1000  # of validation, that are looked at twice
LATER, FOLD = "later", "fold"
Learned = tuple[Table, NDArray[np.integer]]  # and how many training examples of its user come after each row


@dataclass(frozen=True)
class Maker:
    """Where evidence is made, of what, and how.

    Attributes:
        folder: the run folder.
        task: the data.
        settings: of the retrievers.
        how: candidates and texts.
        text: what the vectors of titles are, for the record.
        n_folds: of users.
    """

    folder: Path
    task: Task
    settings: RetrieverSettings
    how: Gatherer
    text: str
    n_folds: int

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id to its place in the catalog."""
        return {item_id: place for place, item_id in enumerate(self.task.interactions.items["item_id"].to_list())}

    @cached_property
    def sequences(self) -> dict[str, list[int]]:
        """User → training sequence."""
        return sequences_by_user(self.task, self.index)

    @cached_property
    def full(self) -> Fitted:
        """Retrievers of all training users, for examples whose targets these have not seen."""
        return self.fit(list(self.sequences.values()))

    def fit(self, sequences: Histories) -> Fitted:
        """Retrievers of some users."""
        return fit_retrievers(sequences, len(self.index), self.settings, self.how.vectors_N_D)

    def crossed(self, seed: int) -> CrossFit:
        """The training users in folds."""
        return CrossFit.of(self.sequences, self.n_folds, seed)

    def held_out(self, split: str) -> Table:
        """The evidence of validation or test."""
        folder, record = self.folder / "held_out" / split, self._record()
        if not is_kept(folder, record):
            keep_table(folder, self.task, self.task.split(split), self.full, self.how, record)
        return open_table(folder)

    def training(self, seed: int) -> list[Table]:
        """The evidence of all training examples, a table for each fold."""
        examples, again = self._training_examples(seed), self._drift_examples(seed)
        for fold in range(self.n_folds):
            self._keep(
                seed,
                (fold,),
                {
                    train_folder(self.folder, seed, fold): examples.filter(pl.col(FOLD) == fold),
                    self._drift_folder(seed, fold): again.filter(pl.col(FOLD) == fold),
                },
            )
        return [open_table(train_folder(self.folder, seed, fold)) for fold in range(self.n_folds)]

    def drift(self, seed: int) -> list[Table]:
        """Some validation examples with the retrievers that their users' training examples met; after `training`."""
        return [open_table(self._drift_folder(seed, fold)) for fold in range(self.n_folds)]

    def learned(self, tables: Sequence[Table], seed: int) -> list[Learned]:
        """Training tables with the number of later examples of each row's user."""
        examples = self._training_examples(seed)
        later = dict(examples.select("example_id", LATER).iter_rows())
        return [(table, np.array([later[example] for example in table.example_ids])) for table in tables]

    def without_fold(self, seed: int, fold: int, positions: int) -> list[Learned]:
        """What the ranker of a fold learns from: all other users, with retrievers that saw neither them nor the fold.

        Args:
            seed: of the folds.
            fold: whose users the ranker is to score.
            positions: last examples of each user.
        """
        examples = self._training_examples(seed).filter(pl.col(LATER) < positions)
        tables = []
        for other in [one for one in range(self.n_folds) if one != fold]:
            pair = sorted((fold, other))
            folder = seed_folder(self.folder, seed) / "pairs" / f"fold-{pair[0]}-{pair[1]}"
            wanted = {folder / f"of-{ours}": examples.filter(pl.col(FOLD) == ours) for ours in pair}
            self._keep(seed, pair, wanted, positions=positions)
            tables.append(open_table(folder / f"of-{other}"))
        return self.learned(tables, seed)

    def _keep(
        self, seed: int, left_out: Sequence[int], wanted: dict[Path, pl.DataFrame], positions: int | None = None
    ) -> None:
        """Tables of one fit, of all users but those of some folds; those that are there stay."""
        crossed = {"seed": seed, "n_folds": self.n_folds, "without": list(left_out), "positions": positions}
        record = self._record() | crossed
        missing = {folder: examples for folder, examples in wanted.items() if not is_kept(folder, record)}
        if missing:
            fitted = self.fit(self.crossed(seed).without(*left_out))
            for folder, examples in missing.items():
                keep_table(folder, self.task, examples, fitted, self.how, record)

    def _record(self) -> dict[str, object]:
        """What every table depends on, ready for JSON."""
        data = {name: self.task.fingerprint[name] for name in DATA}
        how = {"n_candidates": self.how.n_candidates, "lists": list(self.how.lists), "text": self.text}
        return {"data": data, "retrievers": self.settings.as_json(), **how}

    def _training_examples(self, seed: int) -> pl.DataFrame:
        later = pl.len().over(USER_ID) - 1 - pl.int_range(pl.len()).over(USER_ID)
        return self._in_folds(self.task.split(TRAIN).with_columns(later.alias(LATER)), seed)

    def _drift_examples(self, seed: int) -> pl.DataFrame:
        """Validation users who are in no fold take turns: no retriever has seen them."""
        return self._in_folds(self.task.split(VALIDATION, DRIFT_EXAMPLES), seed)

    def _in_folds(self, examples: pl.DataFrame, seed: int) -> pl.DataFrame:
        folds = self.crossed(seed).folds
        users = examples[USER_ID].to_list()
        of_row = [folds.get(user, row % self.n_folds) for row, user in enumerate(users)]
        return examples.with_columns(pl.Series(FOLD, of_row, dtype=pl.Int64))

    def _drift_folder(self, seed: int, fold: int) -> Path:
        return seed_folder(self.folder, seed) / "drift" / f"fold-{fold}"


def seed_folder(folder: Path, seed: int) -> Path:
    """What depends on the seed."""
    return folder / f"seed-{seed}"


def train_folder(folder: Path, seed: int, fold: int) -> Path:
    """The training table of a fold."""
    return seed_folder(folder, seed) / "train" / f"fold-{fold}"


def held_out_folders(folder: Path) -> dict[str, Path]:
    """The tables of held-out examples, by split."""
    return {split: folder / "held_out" / split for split in (VALIDATION, TEST)}
