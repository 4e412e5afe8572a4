"""One way to fit a student: SASRec, GRU4Rec, and whatever scores items with the same few attributes."""

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from anyo_rl.data.sequences import HeldOut
from anyo_rl.students.distillation import Distiller, Lessons
from anyo_rl.students.gru4rec import GRU4Rec
from anyo_rl.students.sasrec import SASRec
from anyo_rl.students.settings import DistillSettings, FitSettings
from anyo_rl.students.training import Histories, fit_next_item
from anyo_rl.students.vectors import begin_with, fused

Student = TypeVar("Student", SASRec, GRU4Rec)


@dataclass(frozen=True)
class Help:
    """What a student is given besides the users' sequences.

    Attributes:
        vectors_N_D: of the items, such as of their titles; `None` for none.
        fuse: whether a projection of them is added to the items' own (`vectors.fused`), or these begin as their first
            components (`vectors.begin_with`).
        lessons: what a teacher said at positions of the sequences; `None` for no teacher.
        distillation: how much that counts.
    """

    vectors_N_D: NDArray[np.floating] | None = None
    fuse: bool = False
    lessons: Lessons | None = None
    distillation: DistillSettings = field(default_factory=DistillSettings)


def fit_student(
    kind: type[Student],
    sequences: Histories,
    n_items: int,
    settings: FitSettings = FitSettings(),
    *,
    validation: HeldOut | None = None,
    seed: int = 0,
    given: Help = Help(),
    **shape: Any,
) -> Student:
    """Builds a student and trains it; what the fit did is in its `report`.

    Args:
        kind: its class.
        sequences: one list of item indices per user, oldest first.
        n_items: size of the catalog.
        settings: of the training.
        validation: for early stopping on NDCG@10.
        seed: of the weights, the order and the dropout.
        given: vectors of items, and what a teacher said.
        **shape: what the class takes besides: `dim`, `n_layers`, `dropout`, `max_length` and so on.

    Raises:
        ValueError: see `fit_next_item`, and `Help` does not fit the data or its settings.
    """
    student = kind(n_items, seed=seed, **shape)
    if given.vectors_N_D is not None and not given.fuse:
        begin_with(student, given.vectors_N_D)
    distiller = None
    if given.lessons is not None:
        distiller = Distiller(given.lessons, given.distillation, student.item_vectors.shape[1], seed)
    with fused(student, given.vectors_N_D if given.fuse else None, seed):
        student.report = fit_next_item(
            student, sequences, settings, validation=validation, seed=seed, distiller=distiller
        )
    return student
