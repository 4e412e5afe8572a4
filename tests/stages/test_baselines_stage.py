"""Baselines as a stage, without those that are trained: what is chosen, kept and left out."""

import dataclasses
import json

import polars as pl
import pytest

from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.baselines import keep_baseline
from anyo_rl.evaluation.evaluator import Evaluation
from anyo_rl.stages import baselines
from anyo_rl.stages.baselines import BaselineArguments, choices, evaluate_all, read_choices


def test_what_draws_nothing_has_one_seed(tmp_path):
    task = load_task(DataArguments(toy_users=60, toy_categories=4))
    args = BaselineArguments(output_dir=str(tmp_path), names=["popularity", "item_knn", "ease"])
    summary = evaluate_all(task, args)
    assert set(summary.stages) == {"popularity", "item_knn", "ease", "oracle", "intent_oracle"}
    assert (summary.seeds, summary.n_examples) == ((0,), len(task.split("test")))
    assert [one.name for one in read_choices(tmp_path)] == ["popularity", "item_knn", "ease"]
    table = choices(read_choices(tmp_path))
    assert "| ease | l2 " in table
    assert "| popularity | – | – | 0 |" in table
    assert table in (tmp_path / "evaluation.md").read_text()
    assert json.loads((tmp_path / "evaluation.json").read_text()) == json.loads(json.dumps(summary.as_json()))


def test_ease_is_left_out_of_large_catalogs_with_a_word(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(baselines, "MOST_ITEMS", 10)
    task = load_task(DataArguments(toy_users=60, toy_categories=4))
    with caplog.at_level("WARNING"):
        summary = evaluate_all(task, BaselineArguments(output_dir=str(tmp_path), names=["popularity", "ease"]))
    assert "ease" not in summary.stages
    assert "ease is left out: 224 items" in caplog.text


def test_other_runs_take_the_answers_over(tmp_path):
    """Whatever their seed and however long the history that their teachers are shown; not those of other examples."""
    args = DataArguments(toy_users=60, toy_categories=4)
    task = load_task(args)
    names = ["popularity", "item_knn", "ease"]
    evaluate_all(task, BaselineArguments(output_dir=str(tmp_path / "b"), names=names))
    shown_less = load_task(dataclasses.replace(args, max_history=5, history_tokens=50))
    items = task.interactions.items["item_id"].to_list()
    run = Evaluation(tmp_path / "run", shown_less, items, shown_less.split("test"), seed=42)
    assert {*names, "oracle", "intent_oracle"} == set(run.take_over(tmp_path / "b"))
    for name in names:
        keep_baseline(run, name, lambda: pytest.fail("they are there"))
        theirs = tmp_path / "b" / "seed-0" / "answers" / f"{name}.plain.parquet"
        assert pl.read_parquet(run.file(name, "plain")).equals(pl.read_parquet(theirs))
    assert set(names) <= set(run.kept(8))
    fewer = Evaluation(tmp_path / "other", task, items, task.split("test")[:4])
    with pytest.raises(DataError, match="made with another users"):
        fewer.take_over(tmp_path / "b")
    with pytest.raises(DataError, match="no answers in"):
        run.take_over(tmp_path / "nothing")
