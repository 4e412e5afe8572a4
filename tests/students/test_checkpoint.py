"""A fit that is killed goes on as if nothing had been."""

import dataclasses

import numpy as np
import pytest
import torch

from anyo_rl.data.sequences import HeldOut
from anyo_rl.students import FitSettings, GRU4Rec, SASRec, fit_student, training
from anyo_rl.students.distillation import Lessons
from anyo_rl.students.fit import Help
from anyo_rl.students.settings import DistillSettings

SEQUENCES = [[(start + step) % 9 for step in range(6)] for start in range(9)]
VALIDATION = HeldOut([[0, 1], [4, 5]], [2, 6], [[], []])
HELP = Help(
    np.random.default_rng(0).normal(size=(9, 5)),
    True,
    Lessons(np.arange(9), np.full(9, 2), np.ones((9, 1), np.int32), np.zeros((9, 1), np.float32), np.ones((9, 4))),
    DistillSettings(labels=0.3, states=0.5),
)


class KilledError(Exception):
    """What ends a fit here."""


@pytest.mark.parametrize(("kind", "given"), [(SASRec, HELP), (GRU4Rec, Help())], ids=["distilled", "plain"])
def test_it_ends_with_the_same_numbers(kind, given, tmp_path, monkeypatch):
    settings = FitSettings(max_epochs=7, batch_size=4, learning_rate=3e-2, patience=3)

    def fit(settings):
        shape = {"dim": 8, "max_length": 3, "dropout": 0.3}
        return fit_student(kind, SEQUENCES, 9, settings, validation=VALIDATION, seed=2, given=given, **shape)

    whole = fit(settings)
    kept = dataclasses.replace(settings, keep_in=tmp_path / "fit.safetensors")
    epoch, done = training._Fit.epoch, []

    def killed(self):
        if len(done) in (0, 2, 3):
            done.append("killed")
            raise KilledError
        done.append(epoch(self))
        return done[-1]

    monkeypatch.setattr(training._Fit, "epoch", killed)
    for _ in range(3):
        with pytest.raises(KilledError):
            fit(kept)
    torch.manual_seed(99)
    again = fit(kept)
    assert [one for one in done if one != "killed"] == whole.report.losses  # each epoch once
    assert dataclasses.replace(again.report, seconds=0.0) == dataclasses.replace(whole.report, seconds=0.0)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert fit(kept).report == again.report  # finished: nothing is trained again
