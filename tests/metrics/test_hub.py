import math
from pathlib import Path

import pytest

from anyo_rl import metrics

evaluate = pytest.importorskip("evaluate")

FOLDER = Path(metrics.__file__).parent / "hub" / "ranking"


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads the module from its folder, with the network refused and nothing left in the user's cache."""
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a metric went to the network"))

    def _load(*config):
        return evaluate.load(str(FOLDER), *config, cache_dir=str(tmp_path))

    return _load


def test_lists_give_what_the_library_gives(load):
    tops = [["a", "b", "c"], ["c", "a", "b"], ["b", "c", "d"]]
    result = load().compute(predictions=tops, references=["a", "b", "x"], cutoffs=[1, 3], n_items=8)
    expected = metrics.mean_metrics(metrics.per_user_metrics([1, 3, math.inf], cutoffs=(1, 3)))
    expected |= {"coverage@1": 3 / 8, "coverage@3": metrics.coverage(tops, 8)}
    assert result == expected
    assert result["ndcg@3"] == 0.5


def test_ranks_give_what_the_library_gives(load):
    assert load("ranks").compute(predictions=[1, 3, 40]) == metrics.mean_metrics(metrics.per_user_metrics([1, 3, 40]))


def test_batches_add_up(load):
    metric = load()
    metric.add_batch(predictions=[["a", "b"]], references=["b"])
    metric.add_batch(predictions=[["c"], []], references=["c", "c"])
    assert metric.compute(cutoffs=[1, 2])["hr@2"] == pytest.approx(2 / 3)


def test_an_unknown_config_is_an_error(load):
    with pytest.raises(ValueError, match="'items'"):
        load("rank")
