"""The parts of STaR that its recipe's tests do not tell apart."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from trl import ModelConfig

from anyo_rl.evaluation.report.rounds import Chosen, Round
from anyo_rl.metrics.intervals import Interval
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.job import Job
from anyo_rl.stages.kept_paths import KeptPaths
from anyo_rl.stages.path_arguments import StarArguments
from anyo_rl.stages.star import Star
from tests.tables import table_of


@pytest.fixture
def star(tmp_path):
    """A run on 20 examples without any rationale."""
    task = SimpleNamespace(places=lambda name: np.arange(20), rationales={})
    job = Job(tmp_path, task, ModelConfig(), TeacherArguments())
    return Star(job, StarArguments(), SimpleNamespace(seed=3))


def settings(star, **changes):
    return dataclasses.replace(star, star_args=dataclasses.replace(star.star_args, **changes))


@pytest.mark.parametrize(
    ("values", "patience", "goes_on"),
    [
        ([0.3], 1, True),
        ([0.3, 0.4], 1, True),
        ([0.3, 0.3], 1, False),  # as good as before is no gain
        ([0.3, 0.4, 0.35], 1, False),
        ([0.3, 0.4, 0.35], 2, True),
        ([0.3, 0.4, 0.35, 0.39], 2, False),
        ([0.3, 0.2, 0.35], 1, True),
    ],
)
def test_rounds_end_when_validation_gains_no_more(star, values, patience, goes_on):
    rounds = [Round(number, Interval(value)) for number, value in enumerate(values)]
    assert settings(star, patience=patience)._goes_on(rounds) is goes_on


def test_each_round_draws_its_own_examples(star):
    train = star.job.task.places("train").tolist()
    assert star.paths(1).places.tolist() == train
    few = settings(star, max_examples=8)
    first, again, second = (few.paths(number).places.tolist() for number in (1, 1, 2))
    assert first == again != second
    for drawn in (first, second):
        assert len(set(drawn) & set(train)) == len(drawn) == 8


def test_a_round_without_a_good_path_says_what_to_do(star, monkeypatch):
    monkeypatch.setattr(KeptPaths, "_choose", lambda *args: (table_of([]), Chosen()))
    with pytest.raises(ValueError, match=r"round-1: no path has a gain of 0\.5 or more: lower least_gain"):
        star.kept(1, "teacher")
    assert not (star.job.folder / "star" / "round-1" / "kept.parquet").exists()
