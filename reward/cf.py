"""What collaborative filtering thinks of the answer: its place in a student's ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.sequences import training_sequences
from anyo_rl.data.task import Task
from anyo_rl.metrics import gains, target_ranks
from anyo_rl.students import SASRec, fit_student
from anyo_rl.students.files import load_student
from anyo_rl.students.item_knn import fit_item_knn

Scale = Literal["percentile", "log"]


class CfReward:
    """Where a student ranks the item that the teacher ranks first (or wrote), after the same history: 0 … 1.

    `percentile` = 1 − (rank − 1) / (N − 1), the share of the other items that the student puts behind it; ties count
    against it. `log` = 1 − ln(rank) / ln(N), which tells the first places apart. The target has no part in it: the
    reward pays for sounding like the student, so give it a small weight, or a schedule down to 0.

    Recipes fit the student on the training split (`fit`), on each process, or load it from a folder.

    Args:
        student: `item_knn`, `sasrec`, or the folder of a saved one (`anyo_rl.students.files.save_student`).
        scale: how the rank becomes a number.
        floor: reward of a completion without an item.

    Raises:
        ValueError: on an unknown scale.
    """

    def __init__(self, student: str = "item_knn", scale: Scale = "percentile", floor: float = 0.0) -> None:
        if scale not in get_args(Scale):
            raise ValueError(f"unknown scale {scale!r}: choose one of {', '.join(get_args(Scale))}")
        if student not in ("item_knn", "sasrec") and not (Path(student) / "student.json").is_file():
            raise ValueError(f"no student {student!r}: expected item_knn, sasrec, or the folder of a saved one")
        self.student = student
        self.scale = scale
        self.floor = floor
        self.__name__ = "cf"
        self._scorer: Any = None
        self._index: dict[str, int] = {}

    def fit(self, task: Task, catalog: Catalog, seed: int = 0) -> None:
        """Fits the student on the events of the training split, or loads it; recipes call this before training."""
        n = len(catalog)
        if self.student in ("item_knn", "sasrec"):
            sequences, validation = training_sequences(task, catalog.index)
            scorer = (
                fit_item_knn(sequences, n)
                if self.student == "item_knn"
                else fit_student(SASRec, sequences, n, validation=validation, seed=seed)
            )
        else:
            scorer = load_student(Path(self.student), catalog.item_ids)
        self.use(scorer, catalog.index)

    def use(self, scorer: Any, index: dict[str, int]) -> None:
        """Takes a fitted student: anything with `scores(histories) -> (B, N)`, and item ids to its indices."""
        self._scorer = scorer
        self._index = index

    def __call__(
        self,
        item_id: list[str | None],
        history: list[list[str]],
        excluded: list[list[str]] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """One reward per completion.

        Args:
            item_id: the item that was written or is ranked first; `None` where there is none.
            history: item ids before the target.
            excluded: item ids that rankings leave out; `None` leaves none out.
            **kwargs: the other columns, not used.

        Raises:
            ValueError: there is no student yet.
        """
        if self._scorer is None:
            raise ValueError(
                "the student is not fitted: recipes call fit(task, catalog, seed); elsewhere call use(...)"
            )
        there = [i for i, item in enumerate(item_id) if item is not None]
        rewards = [self.floor] * len(item_id)
        if not there:
            return rewards
        # Completions of a prompt share their history.
        rows = {history_: row for row, history_ in enumerate(dict.fromkeys(tuple(history[i]) for i in there))}
        histories = [[self._index[item] for item in history_ if item in self._index] for history_ in rows]
        scores = np.asarray(self._scorer.scores(histories))[[rows[tuple(history[i])] for i in there]]
        items = [self._index[str(item_id[i])] for i in there]
        left_out = [
            [] if excluded is None else [self._index[j] for j in excluded[i] if j in self._index] for i in there
        ]
        ranks = target_ranks(scores, items, left_out)
        for i, rank in zip(there, ranks.tolist(), strict=True):
            rewards[i] = self._place(rank)
        return rewards

    def _place(self, rank: int) -> float:
        n = len(self._index)
        if self.scale == "log":
            return float(gains.log_gain(rank, n))
        return 1.0 - (rank - 1) / max(n - 1, 1)
