"""Against truth: a teacher that ignores its reasoning has 0, one that goes by it alone 1, half and half 1/2."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import PartialState

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.completion import parse
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evaluation.causal import MEASURES, Causal, causal_cells, causal_frame, file_of, read_causal
from anyo_rl.evaluation.evaluator import Evaluation
from anyo_rl.evaluation.summary import Summary
from anyo_rl.evaluation.table import markdown_table
from anyo_rl.reasoning.kinds.asking import Asking
from anyo_rl.reasoning.kinds.load import load_kind
from anyo_rl.reasoning.mentions import Names
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.run.files import write_table
from anyo_rl.sampling.paths import SampledPath, paths_table
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.stages import causal
from anyo_rl.stages.causal import Interviewed, intervene, keep_causal
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens

N = 15


@pytest.fixture(scope="module")
def world():
    """A toy world, its tokens and catalog, and some users."""
    PartialState(cpu=True)
    task = load_task(DataArguments(toy_users=60, toy_categories=4))
    tokens = Tokens.of(train_tokenizer([*sample_texts(task), "likes: tea oak 1"], 400))
    catalog = build_catalog(task.interactions.items, tokens)
    test = task.split("test")[:N]
    return task, tokens, catalog, test, make_rows(task, test, catalog, tokens)


def by_last(world, row):
    """A reasoning that names the newest item."""
    _, _, catalog, _, _ = world
    return (f"likes: {catalog.titles[catalog.index[row.history[-1]]]}",)


def peaked(catalog, item):
    p_N = np.full(len(catalog), 0.1 / len(catalog))
    p_N[catalog.index[item]] += 0.9
    return p_N


def interviewed(world, by_reasoning, write):
    """A teacher of no weights: its item is as sure by its reasoning, and as sure by the history, as told."""
    task, tokens, catalog, _, rows = world
    prompts = {tuple(tokens.context_ids(row.prompt)): row for row in rows}
    names = Names.of(task.interactions.items)

    def log_probs(contexts):
        found = []
        for ids in map(tuple, contexts):
            prompt, row = next((prompt, row) for prompt, row in prompts.items() if ids[: len(prompt)] == prompt)
            said = names.said(parse(tokens.decode(ids[len(prompt) :])).steps)
            of_reasoning = peaked(catalog, min(said[0].items)) if said else np.full(len(catalog), 1 / len(catalog))
            p_N = by_reasoning * of_reasoning + (1 - by_reasoning) * peaked(catalog, row.history[-1])
            found.append(np.log(p_N))
        return torch.tensor(np.array(found))

    def with_history(row, history):
        return replace(row, history=list(history))

    return Interviewed(
        catalog, tokens, names, log_probs, lambda asked: [write(world, row) for row in asked], with_history
    )


def report(world, by_reasoning, write=by_last):
    rows = world[-1]
    teacher = interviewed(world, by_reasoning, write)
    frame = intervene(teacher, rows, teacher.write(rows), seed=0)
    assert frame["example_id"].to_list() == [row.example_id for row in rows]
    return Causal.of(frame, seed=0)


@pytest.mark.parametrize("by_reasoning", [0.0, 0.5, 1.0])
def test_the_item_follows_the_reasoning_as_far_as_it_does(world, by_reasoning):
    found = report(world, by_reasoning).measures
    for name in ("item_follows_reasoning", "item_follows_taste"):
        value = found[name]
        assert (value.mean, value.low, value.high) == pytest.approx((by_reasoning,) * 3)
        assert value.n > N / 2
    assert found["changed_by_reasoning"].mean == pytest.approx(0.9 * by_reasoning)
    assert found["changed_by_history"].mean == pytest.approx(0.9 * (1 - by_reasoning))
    assert 0 <= found["ndcg_own"].mean <= 1


def test_a_reasoning_that_follows_the_history_and_one_that_does_not(world):
    found = report(world, 0.5).measures
    for name in ("reasoning_follows_drop", "reasoning_follows_swap", "reasoning_keeps_the_rest", "grounded"):
        assert (found[name].mean, found[name].low, found[name].high) == (1, 1, 1)

    found = report(world, 0.5, write=lambda *_: ("likes: tea",))
    assert found.measures["reasoning_follows_drop"].mean == 0
    assert found.measures["reasoning_follows_swap"].mean == 0
    assert found.measures["reasoning_keeps_the_rest"].mean == 1
    # Everybody's reasoning is the same: there is none to exchange.
    assert "item_follows_reasoning" not in found.measures
    assert found.n == len(world[-1]) == N


def test_a_teacher_that_names_nothing_has_nothing_to_drop(world):
    found = report(world, 0.0, write=lambda _, row: (f"hm {row.user_id}",)).measures
    assert found["item_follows_reasoning"].mean == 0
    assert not {"reasoning_follows_drop", "item_follows_taste", "grounded"} & set(found)


@pytest.fixture(scope="module")
def job(world):
    """A tiny teacher with weights drawn at large, and what the stage reads of a job."""
    task, tokens, catalog, _, _ = world
    model = make_tiny_teacher(tokens.tokenizer, hidden_size=16, n_layers=2, seed=0).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(6.0 if weights.ndim > 1 else 1.0)
    made = SimpleNamespace(
        task=task,
        seed=0,
        max_reasoning_tokens=6,
        asking=Asking(load_kind("steps", {}), task),
        teacher_args=SimpleNamespace(causal_examples=8),
        sampler=lambda model, tokens: TransformersSampler(model, tokens),
        rows_of=lambda examples, teacher: make_rows(task, examples, catalog, tokens),
    )
    return made, Teacher(model, tokens, catalog)


def test_weights_without_ears_have_0_those_without_eyes_1_and_others_lie_between(world, job):
    rows = world[-1][:8]
    whole = Interviewed.of(*job)
    steps = [by_last(world, row) for row in rows]
    prompts = [whole.tokens.context_ids(row.prompt) for row in rows]

    def rest(ids):
        prompt = next(prompt for prompt in prompts if ids[: len(prompt)] == prompt)
        return prompt, ids[len(prompt) :]

    def deaf(contexts):
        return whole.log_probs([[*rest(ids)[0], whole.tokens.marker_id] for ids in contexts])

    def blind(contexts):
        return whole.log_probs([[*prompts[0], *rest(ids)[1]] for ids in contexts])

    found = {}
    for name, log_probs in (("deaf", deaf), ("blind", blind), ("whole", whole.log_probs)):
        frame = intervene(replace(whole, log_probs=log_probs), rows, steps, seed=0)
        found[name] = Causal.of(frame, seed=0).measures["item_follows_reasoning"].mean
    assert (found["deaf"], found["blind"]) == (0, 1)
    assert 0 < found["whole"] < 1


def test_what_is_measured_is_kept_and_shown(world, job, tmp_path, monkeypatch):
    task, _, catalog, test, rows = world
    paths = [SampledPath(row.example_id, 0, "sft", steps=list(by_last(world, row)), rank=1) for row in rows]
    write_table(paths_table(paths), tmp_path / "paths" / "sft.greedy.parquet")
    evaluation = Evaluation(tmp_path, task, catalog.item_ids, test, 0)
    keep_causal(evaluation, "sft", *job, tmp_path)
    frame = read_causal(tmp_path, ["sft", "grpo"])["sft"]
    assert len(frame) == 8
    monkeypatch.setattr(causal, "intervene", lambda *_: pytest.fail("it is there"))
    keep_causal(evaluation, "sft", *job, tmp_path)
    assert file_of(tmp_path, "sft").is_file()

    summary = Summary(causal={"sft": Causal.of(frame, seed=0)})
    again = Summary.from_json(json.loads(json.dumps(summary.as_json())))
    assert again.causal == summary.causal
    assert "| sft | Item follows reasoning | " in markdown_table(again)
    assert "of 8 |" in markdown_table(again)


def test_missing_numbers_are_counted_and_left_out():
    values = {name: np.full(3, np.nan) for name in MEASURES} | {
        "item_follows_reasoning": np.array([0.25, np.nan, 0.75])
    }
    frame = causal_frame(["a:1", "b:1", "c:1"], ["a", "b", "c"], values)
    found = Causal.of(frame, seed=0)
    assert found.measures["item_follows_reasoning"].mean == 0.5
    assert causal_cells({"sft": found})[1] == [
        ["sft", "Item follows reasoning", found.measures["item_follows_reasoning"].text(), "2 of 3"]
    ]
    assert Causal.from_json({"n": 3, "grounded": "x"}) == Causal(3, {})
    assert Causal.from_json([]) is None
