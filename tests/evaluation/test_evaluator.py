import dataclasses
import json
import os

import numpy as np
import polars as pl
import pytest

from anyo_rl.data.schema import Interactions
from anyo_rl.data.sequences import HeldOut, training_sequences
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.data.toy.oracle import break_ties
from anyo_rl.data.toy.world import parse_intent
from anyo_rl.evaluation.baselines import Fitting, choose_baseline, evaluate_oracles, fit_baseline
from anyo_rl.evaluation.evaluator import Evaluation, weights_of
from anyo_rl.evaluation.summarise import summarise
from anyo_rl.metrics.ranking import target_ranks
from anyo_rl.sampling.paths import PATHS_SCHEMA, SampledPath
from anyo_rl.search.answers import Answers

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
    events = [(u, i) for u, items in EVENTS.items() for i in items.split()]
    frame = pl.DataFrame(events, schema=["user_id", "item_id"], orient="row").with_row_index("timestamp")
    examples = pl.DataFrame(
        [
            {"example_id": e, "user_id": e[:2], "history": h, "target_id": t, "split": s}
            | {"cold_item": t == "i4", "cold_user": e[:2] == "u2"}
            for e, h, t, s in EXAMPLES
        ]
    )
    ids = sorted(frame["item_id"].unique())
    items = pl.DataFrame({"item_id": ids, "title": [f"title of {item}" for item in ids]})
    log = Interactions(frame, items, {}, "x")
    return Task(log, examples, {}, DataArguments(dataset="x.csv", split="leave_one_out"), None)


@pytest.fixture
def evaluation(task, small_catalog, tmp_path) -> Evaluation:
    return Evaluation(tmp_path, task, small_catalog.item_ids, task.split("test"))


def answers(*ranks: int, paths=()) -> Answers:
    return Answers(np.array(ranks), [["i0", "i1"], ["i1", "i2"]], list(paths))


def path(example: str, rank: int, steps: str = "likes tea\nwants a mug") -> SampledPath:
    return SampledPath(
        example_id=example,
        sample_index=0,
        user_id=example[:2],
        prompt="p",
        completion=f"{steps} ->",
        token_ids=[1, 2],
        item_id="i1",
        target_id="i0",
        rank=rank,
        finish_reason="stop",
    )


def test_training_sequences_by_hand(task, small_catalog):
    sequences, validation = training_sequences(task, small_catalog.index)
    assert sequences == [
        [0, 1, 2],
        [1, 2],
        [5],
    ]  # all but a user's last two events; u3 has no train target, and counts
    assert validation.histories == [[0, 1, 2, 3], [5, 6]]  # the whole past: u0's history was cut to two events
    assert validation.targets == [4, 7]
    assert validation.excluded == [[], []]
    assert validation[1:] == HeldOut([[5, 6]], [7], [[]])
    task.args.mask_history = True
    assert training_sequences(task, small_catalog.index)[1].excluded == [[0, 1, 2, 3], [5, 6]]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("global_time", [[0, 1, 2, 3, 4], [1, 2]]),  # the first 7 of 14 events
        ("users", [[0, 1, 2, 3, 4], [1, 2, 1, 0]]),  # u2 and u3 are held out: all events of the others
    ],
)
def test_training_sequences_are_all_train_events(task, small_catalog, split, expected):
    task.args.split, task.args.split_ratios, task.args.split_seed = split, [2, 1, 1], 3
    assert training_sequences(task, small_catalog.index)[0] == expected


@pytest.mark.parametrize("split", ["leave_one_out", "global_time", "users"])
def test_train_events_are_those_of_the_examples(split):
    args = DataArguments(split=split, toy_users=40, min_history=0)
    made = load_task(args)
    names = {item_id: item_id for item_id in made.interactions.items["item_id"]}
    sequences, _ = training_sequences(made, names)
    targets = made.split("train").group_by("user_id", maintain_order=True).agg("target_id")["target_id"].to_list()
    assert sequences == targets  # without a least history, each train event is a train target
    shorter = load_task(dataclasses.replace(args, min_history=13, train_targets=1))
    assert training_sequences(shorter, names)[0] == sequences


def test_training_sequences_of_given_examples(task, small_catalog):
    task.args.split = "given"
    assert training_sequences(task, small_catalog.index)[0] == [[1, 2, 3], [1, 2]]


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
        {"example_id": "u1:3", "user_id": "u1", "rank": 1, "top_ids": ["i0", "i1"]},
        {"example_id": "u2:1", "user_id": "u2", "rank": 3, "top_ids": ["i1", "i2"]},
    ]
    assert not (evaluation.run_dir / "paths").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda e, made: (dataclasses.replace(e, seed=1), made),
        lambda e, made: (dataclasses.replace(e, test=e.test[::-1]), made),
        lambda e, made: (e, made | {"n_paths": 4}),
        lambda e, made: (e, {"n_paths": 8}),
        lambda e, made: (with_args(e, mask_history=True), made),
        lambda e, made: (with_args(e, max_history=3), made),
    ],
)
def test_answers_of_other_settings_are_made_again(evaluation, change):
    made_with = {"n_paths": 8, "weights": {"files": [["a", 1]]}}
    evaluation.keep("sft", "mixture", lambda: answers(1, 3), made_with)
    evaluation.keep("sft", "mixture", lambda: pytest.fail("made again"), json.loads(json.dumps(made_with)))
    other, other_made_with = change(evaluation, made_with)
    other.keep("sft", "mixture", lambda: answers(2, 2), other_made_with)
    assert pl.read_parquet(evaluation.file("sft", "mixture"))["rank"].to_list() == [2, 2]


def with_args(evaluation: Evaluation, **changes) -> Evaluation:
    task = dataclasses.replace(evaluation.task, args=dataclasses.replace(evaluation.task.args, **changes))
    return dataclasses.replace(evaluation, task=task)


def test_the_summary_leaves_out_what_is_of_others(evaluation, caplog):
    evaluation.keep("sft", "greedy", lambda: answers(1, 3))
    evaluation.keep("sft", "mixture", lambda: answers(1, 3), {"n_paths": 4})
    dataclasses.replace(evaluation, test=evaluation.test[:1]).keep("grpo", "greedy", lambda: one_answer())
    with_args(evaluation, mask_history=True).keep("direct", "plain", lambda: answers(1, 3))
    with caplog.at_level("WARNING"):
        found = summarise(evaluation, "likelihood", 8).as_json()
    assert {stage: list(modes) for stage, modes in found["stages"].items()} == {"sft": ["greedy"]}
    assert "grpo.greedy.parquet is left out: it was made with another users" in caplog.text
    assert "direct.plain.parquet is left out: it was made with another mask_history" in caplog.text
    assert "sft.mixture.parquet is left out: it was made with another n_paths" in caplog.text


def one_answer() -> Answers:
    return Answers(np.array([1]), [["i0"]], [])


def test_weights_are_known_by_size_and_time(tmp_path):
    assert weights_of("org/model") == {"teacher": "org/model", "files": []}
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"1234")
    first = weights_of(tmp_path)
    assert first["files"] == [["model.safetensors", 4, file.stat().st_mtime_ns]]
    os.utime(file, ns=(1, 1))
    assert weights_of(tmp_path) != first


def test_a_kill_while_writing_leaves_nothing_that_counts(evaluation, monkeypatch):
    def killed(frame, file, **settings) -> None:
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
    assert [(row["example_id"], row["policy"], row["split"], row["model"]) for row in table.to_dicts()] == [
        ("u1:3", "sft", "test", "sft"),
        ("u2:1", "sft", "test", "sft"),
    ]
    assert table.schema == PATHS_SCHEMA


def test_every_stage_that_learned_from_ranks_is_compared_with_those_that_did_not(evaluation):
    for stage, second in (("sft", 3), ("star", 1), ("dpo", 7)):
        evaluation.keep(stage, "greedy", lambda second=second: answers(1, second))
    found = summarise(evaluation, "likelihood", 8).as_json()["differences"]
    assert {name: modes["greedy"]["ndcg@10"]["mean"] for name, modes in found.items()} == pytest.approx(
        {"star-sft": 0.25, "dpo-sft": (1 / 3 - 0.5) / 2}
    )
    evaluation.keep("direct", "plain", lambda: answers(30, 3))
    assert set(summarise(evaluation, "likelihood", 8).as_json()["differences"]) == {
        "sft-direct",
        *(f"{stage}-{other}" for stage in ("star", "dpo") for other in ("sft", "direct")),
    }
    for stage in ("item_only", "post_hoc", "direct_ensemble", "sasrec", "popularity"):
        evaluation.keep(stage, "plain", lambda: answers(30, 3))
    found = set(summarise(evaluation, "likelihood", 8).as_json()["differences"])
    assert {name for name in found if name.startswith("star")} == {
        f"star-{other}" for other in ("sft", "item_only", "post_hoc", "direct", "direct_ensemble", "sasrec")
    }
    assert {name for name in found if name.startswith("sft")} == {"sft-direct", "sft-post_hoc"}


def test_answers_of_other_data_are_made_again_or_left_out(evaluation, caplog):
    caplog.set_level("INFO")
    evaluation.keep("sft", "greedy", lambda: answers(1, 3))
    log = evaluation.task.interactions
    renamed = log.items.with_columns(pl.col("title").shift(1, fill_value="another"))
    other = dataclasses.replace(
        evaluation,
        task=dataclasses.replace(evaluation.task, interactions=dataclasses.replace(log, items=renamed)),
    )
    assert other.kept(None) == {}
    assert "sft.greedy.parquet is left out: it was made with another items" in caplog.text
    other.keep("sft", "greedy", lambda: answers(2, 2))
    assert "was made with another items: made again" in caplog.text
    assert other.kept(None)["sft"]["greedy"]["rank"].to_list() == [2, 2]


@pytest.mark.parametrize("left", [0, 0.5])
def test_damaged_answers_are_made_again(evaluation, caplog, left):
    evaluation.keep("sft", "greedy", lambda: answers(1, 3))
    file = evaluation.file("sft", "greedy")
    file.write_bytes(file.read_bytes()[: int(left * file.stat().st_size)])
    assert evaluation.kept(None) == {}
    assert f"{file} is no whole file of answers" in caplog.text
    evaluation.keep("sft", "greedy", lambda: answers(2, 2))
    assert evaluation.kept(None)["sft"]["greedy"]["rank"].to_list() == [2, 2]


def test_summary_by_hand(evaluation):
    evaluation.keep("sft", "greedy", lambda: answers(1, 3))
    evaluation.keep("sft", "mixture", lambda: answers(1, 1))
    evaluation.keep("grpo", "greedy", lambda: answers(1, 1))
    evaluation.keep("direct", "plain", lambda: answers(30, 3))
    found = json.loads(json.dumps(summarise(evaluation, "likelihood", 8).as_json(), allow_nan=False))
    expected = {
        "dataset": "x.csv",
        "split": "test (leave_one_out)",
        "mask_history": False,
        "n_users": 2,
        "n_items": 10,
    }
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
    assert set(found["differences"]) == {"grpo-sft", "grpo-direct", "sft-direct"}
    assert set(found["differences"]["grpo-sft"]) == {"greedy"}
    assert found["differences"]["grpo-sft"]["greedy"]["ndcg@10"]["mean"] == 0.25
    assert found["differences"]["grpo-direct"]["greedy"]["ndcg@10"]["mean"] == 0.75
    cold = found["slices"]["sft"]["greedy"]
    one = {"low": None, "high": None, "n": 1}  # of one user there is no interval
    hit = {"mean": 1.0, **one}
    assert cold["cold_item=true"] == {"n": 1, "ndcg@10": {"mean": 0.5, **one}, "hr@10": hit}
    assert cold["cold_item=false"] == {"n": 1, "ndcg@10": hit, "hr@10": hit}
    assert sum(cold[f"history={part}"]["n"] for part in ("short", "long")) == 2
    assert sum(part["n"] for name, part in cold.items() if name.startswith("popularity=")) == 2
    assert "true_intent" not in found


@pytest.mark.parametrize(("mask_history", "expected"), [(False, [4, 2]), (True, [3, 1])])
def test_score_answers_by_hand(evaluation, mask_history, expected):
    evaluation.task.args.mask_history = mask_history

    def score(histories, rows) -> np.ndarray:
        assert histories == [[1, 2, 1], [3]]
        assert rows.equals(evaluation.test)
        table = np.zeros((2, 10))
        table[0, [5, 2, 6, 0]] = [9, 8, 7, 6]  # target 0 behind 5, 2 (in the history) and 6
        table[1, [3, 4]] = [9, 8]
        return table

    found = evaluation.score_answers(score)
    assert found.ranks_U.tolist() == expected
    assert found.top_ids_U_K[1][0] == ("i4" if mask_history else "i3")


def test_the_oracles_are_the_exact_ones_for_cut_histories(tmp_path):
    task = load_task(DataArguments(toy_users=60, toy_categories=4, max_history=8))
    evaluation = Evaluation(tmp_path, task, task.interactions.items["item_id"].to_list(), task.split("test"))
    evaluate_oracles(evaluation)
    world, test = task.world, evaluation.test
    histories = [[world.index[item] for item in history] for history in test["history"].to_list()]
    positions = [task.position(example) for example in test["example_id"]]
    starts = [position - 8 for position in positions]
    assert {len(history) for history in histories} == {8}
    assert max(starts) > 0
    assert not np.allclose(world.oracle_scores(histories), world.oracle_scores(histories, starts))
    targets = [world.index[target] for target in test["target_id"]]
    for stage, scores in {
        "oracle": world.oracle_scores(histories, starts),
        "intent_oracle": world.intent_scores(test["user_id"].to_list(), positions),
    }.items():
        expected = target_ranks(break_ties(scores, seed=0), targets)
        assert pl.read_parquet(evaluation.file(stage, "plain"))["rank"].to_list() == expected.tolist()


def test_a_chosen_baseline_is_fitted_again_as_it_was(tmp_path):
    task = load_task(DataArguments(toy_users=60, toy_categories=4))
    evaluation = Evaluation(tmp_path, task, task.interactions.items["item_id"].to_list(), task.split("test"))
    fitting = Fitting.of(evaluation)
    for name in ("popularity", "item_knn", "ease"):
        chosen, fitted = choose_baseline(name, fitting)
        again = fit_baseline(chosen, fitting, seed=3)
        histories = fitting.validation.histories
        np.testing.assert_allclose(again.scores(histories), fitted.scores(histories), rtol=1e-6)
        assert (chosen.validation_ndcg is None) == (name == "popularity")


def test_true_intents_are_counted_among_the_stated(small_tokens, tmp_path):
    task = load_task(DataArguments(toy_users=60, toy_categories=4))
    evaluation = Evaluation(tmp_path, task, task.interactions.items["item_id"].to_list(), task.split("test")[:4])
    rows = evaluation.test.select("example_id", "user_id", "target_id").rows()
    truths = ["\n".join(task.world.rationale(user, task.position(example))) for example, user, _ in rows]
    style = truths[1].rsplit(" ", 1)[1]
    false = truths[1].removesuffix(style) + ("oak" if style != "oak" else "pine")
    assert parse_intent(false.split("\n")) is not None
    texts = [truths[0], false, "nothing said", truths[3]]
    paths = [
        dataclasses.replace(path(example, 1), user_id=user, steps=text.split("\n"))
        for (example, user, target), text in zip(rows, texts, strict=True)
    ]
    evaluation.keep("sft", "greedy", lambda: Answers(np.ones(4, int), [["i0"]] * 4, paths))
    found = summarise(evaluation, "likelihood", 8).as_json()
    assert found["stated_intent"] == {"sft": 0.75}
    assert found["true_intent"] == {"sft": pytest.approx(2 / 3)}
