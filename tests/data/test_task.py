import dataclasses
import json
import logging

import numpy as np
import polars as pl
import pytest

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.data.toy.routines import LONGEST_LAP
from anyo_rl.data.toy.world import parse_intent
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import How, answer
from anyo_rl.stages.begin import parse


@pytest.fixture(scope="module")
def toy():
    return load_task(DataArguments(toy_users=90))


@pytest.fixture
def log(tmp_path):
    """A plain log of 12 users on 6 items with a brand each."""
    rng = np.random.default_rng(0)
    rows = [f"u{u},m{i},{t}" for u in range(12) for t, i in enumerate(rng.permutation(6))]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(rows) + "\n")
    items = [f"m{i},Mug {i},brand{i % 2}" for i in range(6)]
    (tmp_path / "items.csv").write_text("item_id,title,brand\n" + "\n".join(items) + "\n")
    return {"dataset": str(tmp_path / "log.csv"), "items_path": str(tmp_path / "items.csv"), "min_history": 2}


def test_a_split_with_a_limit_is_the_same_draw_each_time(toy):
    train = toy.split("train")
    assert set(train["split"]) == {"train"}
    assert toy.split("train", len(train)).equals(toy.split("train", 10**9)) is True
    drawn = toy.split("train", 7)
    assert drawn.equals(toy.split("train", 7))
    positions = [train["example_id"].to_list().index(example) for example in drawn["example_id"]]
    assert positions == sorted(set(positions))
    assert len(positions) == 7
    assert len(toy.split("train", 0)) == 0


def test_toy_rationales_are_true_and_of_training_examples(toy):
    train = set(toy.split("train")["example_id"])
    assert toy.rationales
    assert set(toy.rationales) < train
    users = dict(toy.examples.select("example_id", "user_id").iter_rows())
    for example, (steps,) in list(toy.rationales.items())[:50]:
        user, position = users[example], toy.position(example)
        assert parse_intent(steps) is not None
        assert toy.world.is_true(steps, user, position)


def test_rows_and_the_history_budget(toy, small_tokens):
    catalog = build_catalog(toy.interactions.items, small_tokens)
    examples = toy.split("test", 3)
    rows = make_rows(toy, examples, catalog, small_tokens)
    assert [row.example_id for row in rows] == examples["example_id"].to_list()
    names = {"prompt", "example_id", "user_id", "history", "target_id", "cold_item", "cold_user", "excluded"}
    for row in rows:
        assert set(row.columns()) == names
        lines = row.prompt.split("\n")
        assert (lines[0], lines[-2:]) == ("History:", ["Next:", ""])
        shown = [catalog.find(line) for line in lines[1:-2]]
        assert shown == row.history[-len(shown) :]  # the newest, oldest first
        assert sum(small_tokens.n_text_tokens(f"{line}\n") for line in lines[1:-2]) <= toy.args.history_tokens
        assert toy.position(row.example_id) >= toy.args.min_history


def test_the_tokenizers_texts_hold_titles_and_rationales(toy):
    texts = set(sample_texts(toy))
    assert set(toy.interactions.items["title"]) <= texts
    assert "\n".join(next(iter(toy.rationales.values()))[0]) in texts


@pytest.mark.parametrize(("share", "n_users"), [(0.0, 0), (0.5, 4), (1.0, 8)])
def test_attribute_rationales_go_to_a_share_of_training_users(log, share, n_users):
    args = DataArguments(**log, rationale_share=share, rationale_attributes=["brand"], split_ratios=[4, 1, 1])
    task = load_task(args)
    train = task.split("train")
    assert train["user_id"].n_unique() == 8  # 4 parts of 6, of 12 users
    users = dict(train.select("example_id", "user_id").iter_rows())
    assert len({users[example] for example in task.rationales}) == n_users
    targets = dict(train.select("example_id", "target_id").iter_rows())
    for example, (steps,) in task.rationales.items():
        assert steps[1] == f"wants: brand{int(targets[example][1:]) % 2}"
    assert task.world is None
    assert load_task(args).rationales == task.rationales


def test_chats_and_masks_are_arguments_of_the_task(log, small_tokens):
    task = load_task(DataArguments(**log, prompt_style="chat", rationale_share=0, split="leave_one_out"))
    catalog = build_catalog(task.interactions.items, small_tokens)
    prompt = make_rows(task, task.split("test", 1), catalog, small_tokens)[0].prompt
    assert [message["role"] for message in prompt] == ["system", "user"]


def test_data_that_cannot_be_used_is_refused(log, tmp_path):
    with pytest.raises(DataError):
        load_task(DataArguments(dataset=str(tmp_path / "nowhere.csv")))
    with pytest.raises(DataError):
        load_task(DataArguments(**{**log, "min_history": 40}))
    with pytest.raises(DataError, match="'colour' needs item column"):
        load_task(DataArguments(**log, rationale_attributes=["colour"]))
    assert isinstance(load_task(DataArguments(**log)).examples, pl.DataFrame)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k_core": 5}, "k_core is 5, but the toy world's .* leave k_core out"),
        ({"toy_noise": 1.5}, "toy world: noise is 1.5"),
        ({"toy_categories": 2}, "toy world: n_categories is 2"),
        ({"toy_users": 0}, "toy world: n_users is 0"),
        ({"split_ratios": [8, 1]}, r"split_ratios is \[8, 1\]: expected three numbers"),
        ({"split_ratios": []}, r"split_ratios is \[\]: expected three numbers"),
        ({"split_ratios": [8, -1, 1]}, "split_ratios is .*none negative"),
        ({"split_ratios": [0, 1, 1]}, "split_ratios is .*the first above 0"),
        ({"train_targets": 0}, "train_targets is 0: expected 1 or more, or leave it out"),
        ({"max_history": 0}, "max_history is 0: expected 1 or more"),
        ({"min_history": -1}, "min_history is -1: expected 0 or more"),
        ({"max_validation": 0}, "max_validation is 0: expected 1 or more"),
        ({"rationale_share": 1.5}, "rationale_share is 1.5: expected 0 to 1"),
        ({"rationale_share": -0.1}, "rationale_share is -0.1: expected 0 to 1"),
    ],
)
def test_an_argument_out_of_its_range_is_named(wrong, message):
    with pytest.raises(DataError, match=message):
        load_task(DataArguments(**{"toy_users": 60, **wrong}))


@pytest.fixture
def write_log(tmp_path):
    """Writes (user, item, timestamp) events and (id, title) items; returns what `DataArguments` needs."""

    def write(events, items, **arguments) -> DataArguments:
        frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row")
        frame.write_parquet(tmp_path / "log.parquet")
        pl.DataFrame(items, schema=["item_id", "title"], orient="row").write_parquet(tmp_path / "items.parquet")
        return DataArguments(dataset=str(tmp_path / "log.parquet"), **arguments)

    return write


def test_a_split_without_examples_is_refused(write_log):
    items = [(item, item) for item in "abcd"]
    one_moment = [(user, item, 5) for user in "uvw" for item in "abc"]
    with pytest.raises(DataError, match="global_time gives 6 train, 0 validation and 0 test examples"):
        load_task(write_log(one_moment, items, split="global_time"))
    two_events = [(user, item, time) for user in "uvw" for time, item in enumerate("ab")]
    with pytest.raises(DataError, match=r"leave_one_out gives 0 train, 0 validation and 3 test .*lower min_history"):
        load_task(write_log(two_events, items, split="leave_one_out"))
    with pytest.raises(DataError, match="users gives 2 train, 0 validation and 1 test examples"):
        load_task(write_log(two_events, items, split="users", split_ratios=[2, 0, 1]))


def test_defaults_go_by_the_data_set(write_log, toy):
    assert (toy.ratios, toy.args.split_ratios, toy.args.min_history) == ((2, 1, 1), [2, 1, 1], LONGEST_LAP)
    events = [(f"u{user}", item, time) for user in range(10) for time, item in enumerate("abc")]
    args = write_log(events, [(item, item) for item in "abc"])
    task = load_task(args)
    assert (task.ratios, task.args.split_ratios, task.args.min_history) == ((8, 1, 1), [8, 1, 1], 1)
    assert (args.split_ratios, args.min_history) == (None, None)  # left as they were
    assert task.examples["split"].value_counts().sort("split").rows() == [
        ("test", 1),
        ("train", 16),
        ("validation", 1),
    ]
    own = load_task(dataclasses.replace(args, min_history=2, split_ratios=[6, 2, 2]))
    assert own.examples["split"].value_counts().sort("split").rows() == [("test", 2), ("train", 6), ("validation", 2)]


def test_the_report_counts_what_was_dropped_and_is_logged(write_log, caplog):
    events = [(f"u{user}", item, time) for user in range(10) for time, item in enumerate("abca")]
    events += [("u0", "a", 0), ("u1", None, 7), ("lonely", "a", 1)]
    with caplog.at_level(logging.INFO, "anyo_rl.data.task"):
        task = load_task(write_log(events, [("a", "A"), ("b", "A"), ("c", "C")], split="leave_one_out"))
    wanted = {"duplicate_events": 1, "null_key": 1, "single_event_users": 1, "colliding_titles": 1, "unknown_item": 0}
    wanted |= {"events": 41, "train_examples": 10, "validation_examples": 10, "test_examples": 10}
    wanted |= {"users_without_example": 1}
    assert {name: task.report[name] for name in wanted} == wanted
    (line,) = caplog.messages
    assert line.startswith("log: ")
    for said in ("duplicate_events 1", "null_key 1", "colliding_titles 1", "users_without_example 1"):
        assert said in line
    assert "unknown_item" not in line


def test_columns_and_separator_are_arguments_of_the_task(tmp_path):
    rows = [f"u{user};m{item};{item}" for user in range(10) for item in range(3)]
    (tmp_path / "log.csv").write_text("who;what;when\n" + "\n".join(rows) + "\n")
    (tmp_path / "goods.csv").write_text("sku;name\nm0;Mug\nm1;Lamp\nm2;Tea\n")
    columns = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    item_columns = {"item_id": "sku", "title": "name"}
    paths = {"dataset": str(tmp_path / "log.csv"), "items_path": str(tmp_path / "goods.csv"), "separator": ";"}
    task = load_task(DataArguments(**paths, columns=columns, item_columns=item_columns))
    assert task.interactions.items.rows() == [("m0", "Mug"), ("m1", "Lamp"), ("m2", "Tea")]
    as_text = DataArguments(**paths, columns=json.dumps(columns), item_columns=json.dumps(item_columns))
    assert load_task(as_text).examples.equals(task.examples)
    for wrong in ("who", "[1]", '"who"'):
        with pytest.raises(DataError, match=r"columns is .*JSON on the command line"):
            load_task(DataArguments(**paths, columns=wrong))
    # What the parser makes of them, from YAML and from flags.
    (tmp_path / "c.yaml").write_text(f"columns: {columns}\nseparator: ';'\n")
    flags = [
        "--config",
        str(tmp_path / "c.yaml"),
        "--item_columns",
        json.dumps(item_columns),
        "--split_ratios",
        *"811",
    ]
    (parsed, _) = parse((DataArguments,), args=flags)
    assert (parsed.columns, parsed.separator, parsed.split_ratios) == (columns, ";", [8, 1, 1])
    assert load_task(
        dataclasses.replace(parsed, dataset=paths["dataset"], items_path=paths["items_path"])
    ).examples.equals(task.examples)


HARD_TITLES = {
    "long": "日本語" * 3_334,
    "emoji": "👨‍👩‍👧🖍️" * 400,
    "html": "<b>Tea</b> &amp; <i>mug</i> &lt;script&gt;",
    "marker": "a -> b </think> <eos> <|im_end|>",
    "lines": "one\ntwo\u2028three\x00",
    "empty": "",
}


@pytest.mark.parametrize("style", ["text", "chat"])
def test_hard_titles_go_through_to_the_prompt(write_log, small_tokens, style):
    names = list(HARD_TITLES)
    events = [(f"u{n}", name, time) for n in range(10) for time, name in enumerate(names[n % 6 :] + names[: n % 6])]
    task = load_task(write_log(events, list(HARD_TITLES.items()), history_tokens=40, prompt_style=style))
    catalog = build_catalog(task.interactions.items, small_tokens)
    rows = make_rows(task, task.examples, catalog, small_tokens)
    assert len(rows) == len(task.examples)
    for row in rows:
        text = row.prompt if style == "text" else row.prompt[1]["content"]
        before, after = ("History:\n", "Next:\n") if style == "text" else ("<history>\n", "</history>\n")
        lines = text.split(before)[1].split(after)[0].splitlines()
        assert 1 <= len(lines) <= len(row.history)
        assert sum(small_tokens.n_text_tokens(f"{line}\n") for line in lines) <= 40
        newest = catalog.titles[catalog.index[row.history[-1]]]
        assert lines[-1] == newest or (lines[-1].endswith("…") and newest.startswith(lines[-1][:-1]))
        assert small_tokens.marker_id not in small_tokens.context_ids(text)
    assert {row.history[-1] for row in rows} == set(names)
    assert catalog.titles[catalog.index["html"]] == "Tea & mug"


def test_a_catalog_of_one_item(write_log, small_tokens, small_teacher):
    events = [(user, "a", time) for user in "uvw" for time in range(4)]
    task = load_task(write_log(events, [("a", "Alien")], split="leave_one_out", rationale_share=1.0))
    catalog = build_catalog(task.interactions.items, small_tokens)
    rows = make_rows(task, task.split("test"), catalog, small_tokens)
    assert [row.target_id for row in rows] == ["a", "a", "a"]
    rows = [dataclasses.replace(row, excluded=["a"]) for row in rows]  # never the target
    ranker, sampler = LikelihoodRanker(catalog, small_teacher), TransformersSampler(small_teacher, small_tokens)
    for mode, n_each in (("plain", 0), ("greedy", 1), ("mixture", 2)):
        found = answer(rows, ranker, sampler, small_tokens, How(mode, Sampling(n=2, max_new_tokens=4)))
        assert found.ranks_U.tolist() == [1, 1, 1]
        assert found.top_ids_U_K == [["a"], ["a"], ["a"]]
        assert [(path.item_id, path.rank) for path in found.paths] == [("a", 1)] * 3 * n_each


def test_rationales_of_a_file_are_those_of_the_task(log, tmp_path):
    args = DataArguments(**log, rationale_share=0, split_ratios=[4, 1, 1])
    task = load_task(args)
    train, validation = task.split("train"), task.split("validation")
    ids, targets = train["example_id"].to_list(), train["target_id"].to_list()
    rows = {
        "example_id": [ids[3], ids[0], ids[3]],
        "target_id": [targets[3], targets[0], targets[3]],
        "completion": ["likes a\nwants b -> x", "likes c -> y", "likes d -> x"],
    }
    file = tmp_path / "mine.parquet"
    pl.DataFrame(rows).write_parquet(file)
    args = dataclasses.replace(args, rationales_path=str(file))
    assert load_task(args).rationales == {ids[3]: [("likes a", "wants b"), ("likes d",)], ids[0]: [("likes c",)]}
    rows["example_id"][1] = validation["example_id"][0]
    pl.DataFrame(rows).write_parquet(file)
    with pytest.raises(DataError, match=f"1 of its 2 examples, as '{validation['example_id'][0]}', are none of the"):
        load_task(args)
    with pytest.raises(DataError, match="found no rationales at rationales_path"):
        load_task(dataclasses.replace(args, rationales_path=str(tmp_path / "nowhere")))
