"""What neural baselines begin with, as a config says it."""

import pytest

from anyo_rl.evaluation.baselines import StudentSettings
from anyo_rl.stages.baselines import BaselineArguments


def test_settings_to_begin_with():
    args = BaselineArguments(start={"sasrec": {"dropout": 0.5, "batch_size": 128}})
    assert args.starts == {"sasrec": StudentSettings(dropout=0.5, batch_size=128)}
    assert BaselineArguments().starts == {}


@pytest.mark.parametrize("start", [{"ease": {"dropout": 0.5}}, {"sasrec": {"layers": 3}}, {"sasrec": 3}])
def test_settings_that_there_are_not_are_named(start):
    with pytest.raises(ValueError, match="expected one of sasrec, gru4rec, with some of batch_size, dim"):
        BaselineArguments(start=start)
