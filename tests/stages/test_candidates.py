"""Settings that do not go with the type of a kind's answer are refused by name."""

from pathlib import Path

import pytest

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.kinds.load import load_kind
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.candidates import Asks, check_candidates, items_only


@pytest.mark.parametrize(
    ("kind", "ranker", "alpha", "message"),
    [
        ("steps", "order", None, "reasoning_kind steps answers with an item: set reasoning_kind to listwise"),
        ("yes_no", "order", None, "reasoning_kind yes_no answers with yes or no"),
        ("yes_no", "match", None, "set ranker to likelihood"),
        ("listwise", "embedding", None, "set ranker to likelihood or order"),
        ("listwise", "likelihood", 0.5, "fusion_alpha is set"),
    ],
)
def test_what_does_not_go_together_is_refused(kind, ranker, alpha, message):
    with pytest.raises(UsageError, match=message):
        check_candidates(load_kind(kind), ranker, alpha)


def test_what_goes_together_is_taken():
    for kind, ranker in (
        ("steps", "match"),
        ("listwise", "order"),
        ("listwise", "likelihood"),
        ("yes_no", "likelihood"),
    ):
        check_candidates(load_kind(kind), ranker)
    check_candidates(load_kind("steps"), "likelihood", 0.5)


def test_stages_of_items_refuse_other_answers():
    items_only(load_kind("steps"), "DPO")
    with pytest.raises(UsageError, match="DPO takes teachers that answer with an item, and reasoning_kind listwise"):
        items_only(load_kind("listwise"), "DPO")


def test_the_source_is_evidence_where_a_run_has_it():
    task = load_task(DataArguments(toy_users=20, toy_categories=5))
    told = {"baselines_from": None, "seed": 0, "writes": False}

    def asks(evidence, **settings):
        return Asks(Path("run"), task, load_kind("listwise", settings), evidence, **told)

    assert asks(None).source == "item_knn"
    assert asks("runs/evidence").source == "evidence"
    assert asks("runs/evidence", candidates_from="popularity").source == "popularity"
    with pytest.raises(UsageError, match="candidates_from is evidence: name the folder"):
        _ = asks(None, candidates_from="evidence").source
    assert Asks(Path("run"), task, load_kind("steps"), None, **told).questions() is None
