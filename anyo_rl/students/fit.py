"""One way to fit a student: SASRec, GRU4Rec, and whatever scores items with the same few attributes."""

from typing import Any, TypeVar

from anyo_rl.data.sequences import HeldOut
from anyo_rl.students.gru4rec import GRU4Rec
from anyo_rl.students.sasrec import SASRec
from anyo_rl.students.training import FitSettings, Histories, fit_next_item

Student = TypeVar("Student", SASRec, GRU4Rec)


def fit_student(
    kind: type[Student],
    sequences: Histories,
    n_items: int,
    settings: FitSettings = FitSettings(),
    *,
    validation: HeldOut | None = None,
    seed: int = 0,
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
        **shape: what the class takes besides: `dim`, `n_layers`, `dropout`, `max_length` and so on.

    Raises:
        ValueError: see `fit_next_item`.
    """
    student = kind(n_items, seed=seed, **shape)
    student.report = fit_next_item(student, sequences, settings, validation=validation, seed=seed)
    return student
