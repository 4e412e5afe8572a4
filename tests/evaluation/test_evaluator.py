import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from anyo_rl.evaluation.answers import Answers
from anyo_rl.evaluation.evaluator import Evaluation, training_sequences
from anyo_rl.task import DataArguments, Task

EVENTS = {"u0": "i0 i1 i2 i3 i4", "u1": "i1 i2 i1 i0", "u2": "i3 i4", "u3": "i5 i6 i7"}
EXAMPLES = [
    ("u0:2", ["i0", "i1"], "i2", "train"),
    ("u0:3", ["i1", "i2"], "i3", "train"),  # a history cut to two events
    ("u0:4", ["i2", "i3"], "i4", "validation"),
    ("u1:1", ["i1"], "i2", "train"),
    ("u1:3", ["i2", "i1"], "i0", "test"),
    ("u2:1", ["i3"], "i4", "test"),
    ("u3:2", ["i5", "i6"], "i7", "validation"),
]


@pytest.fixture
def task() -> Task:
    frame = pl.DataFrame([{"user_id": u, "item_id": i} for u, items in EVENTS.items() for i in items.split()])
    examples = pl.DataFrame(
        [
            {"example_id": e, "user_id": e[:2], "history": h, "target_id": t, "split": s}
            | {"cold_item": t == "i4", "cold_user": e[:2] == "u2"}
            for e, h, t, s in EXAMPLES
        ]
    )
    return Task(SimpleNamespace(frame=frame), examples, {}, DataArguments(dataset="x.csv"), None)


@pytest.fixture
def evaluation(task, small_catalog, tmp_path) -> Evaluation:
    return Evaluation(tmp_path, task, small_catalog, task.split("test"))


def answers(*ranks: int, paths=()) -> Answers:
    return Answers(np.array(ranks), [["i0", "i1"], ["i1", "i2"]], list(paths))


def path(example: str, rank: int, steps: str = "likes tea\nwants a mug") -> dict:
    known = {"example_id": example, "sample_index": 0, "user_id": example[:2], "prompt": "p", "rank": rank, "seed": 0}
    ids = {"token_ids": [1, 2], "token_log_probs": None, "item_id": "i1", "target_id": "i0", "finish_reason": "stop"}
    return {**known, **ids, "completion": f"{steps} ->"}


def test_training_sequences_by_hand(task, small_catalog):
    sequences, (histories, targets) = training_sequences(task, small_catalog)
    assert sequences == [[0, 1, 2, 3], [1, 2]]  # whole logs up to the last train target
    assert histories == [[2, 3], [5, 6]]
    assert targets == [4, 7]


def test_training_sequences_of_given_examples(task, small_catalog):
    task.args.split = "given"
    assert training_sequences(task, small_catalog)[0] == [[1, 2, 3], [1, 2]]


def test_answers_are_kept_once(evaluation):
    calls = []

    def make() -> Answers:
        calls.append(1)
        return answers(1, 3)

    for _ in range(2):
        evaluation.keep("sft", "greedy", make)
    assert len(calls) == 1
    frame = pl.read_parquet(evaluation.file("sft", "greedy"))
    assert frame.to_dicts() == [
        {"example_id": "u1:3", "rank": 1, "top_ids": ["i0", "i1"]},
        {"example_id": "u2:1", "rank": 3, "top_ids": ["i1", "i2"]},
    ]
    assert not (evaluation.run_dir / "paths").exists()


def test_a_kill_while_writing_leaves_nothing_that_counts(evaluation, monkeypatch):
    def killed(frame, file) -> None:
        file.write_bytes(b"PAR1half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pl.DataFrame, "write_parquet", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluation.keep("sft", "greedy", lambda: answers(1, 3))
    assert not evaluation.file("sft", "greedy").exists()
    evaluation.keep("sft", "greedy", lambda: answers(2, 2))
    assert pl.read_parquet(evaluation.file("sft", "greedy"))["rank"].to_list() == [2, 2]
    assert [f.name for f in evaluation.file("sft", "greedy").parent.iterdir()] == ["sft.greedy.parquet"]


def test_the_paths_table(evaluation):
    evaluation.keep("sft", "greedy", lambda: answers(1, 3, paths=[path("u1:3", 1), path("u2:1", 3, "x")]))
    table = pl.read_parquet(evaluation.run_dir / "paths" / "sft.greedy.parquet")
    first, second = table.to_dicts()
    assert first["history"] == ["Aliens", "Alien 3"]
    assert (first["steps"], second["steps"]) == (["likes tea", "wants a mug"], ["x"])
    assert (first["item_title"], first["target_title"], first["policy"], first["split"]) == (
        *("Alien 3", "Alien"),
        *("sft", "test"),
    )
    assert json.loads(second["rewards"]) == {"ndcg": 0.5}
    assert table.schema["token_log_probs"] == pl.List(pl.Float32)
    assert table.schema["cap"] == pl.Int64


def test_summary_by_hand(evaluation):
    evaluation.keep("sft", "greedy", lambda: answers(1, 3))
    evaluation.keep("sft", "mixture", lambda: answers(1, 1))
    evaluation.keep("grpo", "greedy", lambda: answers(1, 1))
    evaluation.keep("direct", "plain", lambda: answers(30, 3))
    found = json.loads(json.dumps(evaluation.summary("likelihood", 8), allow_nan=False))
    expected = {"dataset": "x.csv", "split": "test (users)", "mask_history": False, "n_users": 2, "n_items": 10}
    assert {name: found[name] for name in expected} == expected
    assert (found["ranker"], found["seed"], found["n_paths"]) == ("likelihood", 0, 8)
    assert {stage: sorted(modes) for stage, modes in found["stages"].items()} == {
        "sft": ["greedy", "mixture"],
        "grpo": ["greedy"],
        "direct": ["plain"],
    }
    greedy = found["stages"]["sft"]["greedy"]
    assert set(greedy) == {f"{m}@{k}" for m in ("hr", "ndcg") for k in (1, 5, 10, 20)} | {"mrr", "coverage@10"}
    assert (greedy["ndcg@10"]["mean"], greedy["ndcg@10"]["n"], greedy["hr@1"]["mean"]) == (0.75, 2, 0.5)
    assert greedy["mrr"]["mean"] == pytest.approx((1 + 1 / 3) / 2)
    assert greedy["coverage@10"] == {"mean": 0.3, "low": None, "high": None, "n": 2}
    assert found["stages"]["direct"]["plain"]["ndcg@10"]["mean"] == 0.25
    assert set(found["differences"]) == {"grpo-sft", "grpo-direct"}
    assert set(found["differences"]["grpo-sft"]) == {"greedy"}
    assert found["differences"]["grpo-sft"]["greedy"]["ndcg@10"]["mean"] == 0.25
    assert found["differences"]["grpo-direct"]["greedy"]["ndcg@10"]["mean"] == 0.75
    cold = found["slices"]["sft"]["greedy"]
    assert (cold["cold_item=true"], cold["cold_item=false"]) == ({"n": 1, "ndcg@10": 0.5}, {"n": 1, "ndcg@10": 1.0})
    assert sum(cold[f"history={part}"]["n"] for part in ("short", "long")) == 2
    assert sum(part["n"] for name, part in cold.items() if name.startswith("popularity=")) == 2
    assert "true_intent" not in found


@pytest.mark.parametrize(("mask_history", "expected"), [(False, [4, 2]), (True, [3, 1])])
def test_score_answers_by_hand(evaluation, mask_history, expected):
    evaluation.task.args.mask_history = mask_history

    def score(histories) -> np.ndarray:
        assert histories == [[2, 1], [3]]
        table = np.zeros((2, 10))
        table[0, [5, 2, 6, 0]] = [9, 8, 7, 6]  # target 0 behind 5, 2 (in the history) and 6
        table[1, [3, 4]] = [9, 8]
        return table

    found = evaluation.score_answers(score)
    assert found.ranks_U.tolist() == expected
    assert found.top_ids_U_K[1][0] == ("i4" if mask_history else "i3")
