"""Small, fast sequential recommenders: baselines beside every teacher, and later its pupils."""

from anyo_rl.students.gru4rec import GRU4Rec, fit_gru4rec
from anyo_rl.students.sasrec import SASRec, fit_sasrec
from anyo_rl.students.training import FitReport, fit_next_item, score_histories

__all__ = [
    "FitReport",
    "GRU4Rec",
    "SASRec",
    "fit_gru4rec",
    "fit_next_item",
    "fit_sasrec",
    "score_histories",
]
