"""Small, fast sequential recommenders: baselines beside every teacher, and later its pupils."""

from anyo_rl.students.fit import fit_student
from anyo_rl.students.gru4rec import GRU4Rec
from anyo_rl.students.sasrec import SASRec
from anyo_rl.students.settings import FitSettings
from anyo_rl.students.training import FitReport, fit_next_item, score_histories

__all__ = [
    "FitReport",
    "FitSettings",
    "GRU4Rec",
    "SASRec",
    "fit_next_item",
    "fit_student",
    "score_histories",
]
