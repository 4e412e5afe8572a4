import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.data.schema import EXAMPLES_SCHEMA, DataError, Interactions
from anyo_rl.data.splits import k_core, make_examples


def log(events):
    """A log of (user, item, timestamp), in any order."""
    frame = pl.DataFrame(
        events, schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, orient="row"
    )
    frame = frame.sort("user_id", "timestamp", maintain_order=True)
    ids = sorted({item for _, item, _ in events})
    return Interactions(frame, pl.DataFrame({"item_id": ids, "title": ids}), {}, "test")


SMALL = log(
    [
        *[("u", item, t) for t, item in enumerate("abcde")],
        ("v", "a", 1),
        ("v", "z", 9),
        ("w", "c", 3),
        ("x", "b", 0),
        ("x", "a", 5),
        ("x", "e", 6),
    ]
)


def test_leave_one_out_by_hand():
    examples = make_examples(SMALL)
    assert examples.schema == EXAMPLES_SCHEMA
    assert examples.rows() == [
        ("u:1", "u", ["a"], "b", 1, "train", False, False),
        ("u:2", "u", ["a", "b"], "c", 2, "train", False, False),
        ("u:3", "u", ["a", "b", "c"], "d", 3, "validation", True, False),
        ("u:4", "u", ["a", "b", "c", "d"], "e", 4, "test", True, False),
        ("v:1", "v", ["a"], "z", 9, "test", True, True),
        ("x:1", "x", ["b"], "a", 5, "validation", False, False),
        ("x:2", "x", ["b", "a"], "e", 6, "test", True, False),
    ]


def test_history_bounds():
    examples = make_examples(SMALL, min_history=2, max_history=2)
    assert examples.select("example_id", "history").rows() == [
        ("u:2", ["a", "b"]),
        ("u:3", ["b", "c"]),
        ("u:4", ["c", "d"]),
        ("x:2", ["b", "a"]),
    ]
    assert make_examples(SMALL, min_history=0).filter(pl.col("user_id") == "w").rows() == [
        ("w:0", "w", [], "c", 3, "test", False, True)
    ]


@pytest.mark.parametrize(
    ("keep", "ids"),
    [("last", ["u:2"]), (1, ["u:2"]), (2, ["u:1", "u:2"]), (9, ["u:1", "u:2"]), ("all", ["u:1", "u:2"])],
)
def test_train_targets(keep, ids):
    examples = make_examples(SMALL, train_targets=keep)
    assert examples.filter(pl.col("split") == "train")["example_id"].to_list() == ids
    others = make_examples(SMALL).filter(pl.col("split") != "train")
    assert examples.filter(pl.col("split") != "train").equals(others)


def test_global_time_by_hand():
    events = [("u", "a", 0), ("u", "b", 1), ("v", "a", 1), ("v", "b", 2), ("u", "c", 2), ("v", "c", 3), ("u", "a", 4)]
    # 7 events: 60% is 4.2, so the fifth (time 2) ends train; 80% is 5.6, so the sixth (time 3) ends validation.
    examples = make_examples(log(events), "global_time", ratios=(6, 2, 2))
    assert examples.select("example_id", "split", "cold_item").rows() == [
        ("u:1", "train", False),
        ("u:2", "train", False),
        ("u:3", "test", False),
        ("v:1", "train", False),
        ("v:2", "validation", False),
    ]


def test_ties_at_a_cut_go_to_the_earlier_part():
    events = [("u", "a", 0), *[("u", item, 5) for item in "bcdefgh"], ("u", "i", 6), ("u", "j", 7)]
    examples = make_examples(log(events), "global_time", ratios=(2, 4, 4))
    assert examples["split"].to_list() == ["train"] * 7 + ["test"] * 2


def test_held_out_users():
    events = [(f"u{n}", item, t) for n in range(20) for t, item in enumerate("abc")]
    examples = make_examples(log(events), "users", seed=1)
    parts = {split: examples.filter(pl.col("split") == split) for split in ("train", "validation", "test")}
    assert [part["user_id"].n_unique() for part in parts.values()] == [16, 2, 2]
    assert [len(part) for part in parts.values()] == [32, 2, 2]
    assert set(parts["test"]["target_id"]) == {"c"}
    assert parts["test"]["cold_user"].all()
    assert examples.equals(make_examples(log(events), "users", seed=1))
    assert not examples.equals(make_examples(log(events), "users", seed=2))
    assert make_examples(log(events), "users", ratios=(1, 0, 1))["split"].unique().sort().to_list() == [
        "test",
        "train",
    ]
    with pytest.raises(DataError, match="found 2 users, expected more than 2"):
        make_examples(log(events[:6]), "users")


def test_given_thins_train_only_and_is_none_elsewhere():
    rows = [("u", [], "a", 1, "train"), ("u", ["a"], "b", 2, "train"), ("u", ["a", "b"], "c", 3, "test")]
    made = pl.DataFrame(rows, schema=["user_id", "history", "target_id", "timestamp", "split"], orient="row")
    made = made.with_columns(pl.col("history").cast(pl.List(pl.String)))
    source = Interactions(SMALL.frame, SMALL.items, {}, "test", made)
    examples = make_examples(source, "given", train_targets="last", max_history=1)
    assert examples.schema == EXAMPLES_SCHEMA
    assert examples.rows() == [
        ("u:1", "u", ["a"], "b", 2, "train", False, False),
        ("u:2", "u", ["a", "b"], "c", 3, "test", True, False),
    ]
    with pytest.raises(DataError, match="has no pre-made examples"):
        make_examples(SMALL, "given")
    with pytest.raises(DataError, match=r"k_core dropped its 3 pre-made examples.*leave k_core out"):
        make_examples(k_core(source, 1), "given")
    with pytest.raises(DataError, match="has no pre-made examples"):
        make_examples(k_core(SMALL, 1), "given")


def test_k_core_is_repeated_until_nothing_changes():
    # z falls first, then v has one event, then b has one, then nothing of u but a and c.
    events = [("u", "a", 0), ("u", "c", 1), ("u", "b", 2), ("v", "b", 3), ("v", "z", 4), ("w", "a", 5), ("w", "c", 6)]
    core = k_core(log(events), 2)
    assert core.frame.select("user_id", "item_id").rows() == [("u", "a"), ("u", "c"), ("w", "a"), ("w", "c")]
    assert core.items["item_id"].to_list() == ["a", "c"]
    assert core.report["k_core_dropped_events"] == 3
    assert core.report["k_core_dropped_users"] == 1
    assert core.report["k_core_dropped_items"] == 2
    assert k_core(log(events), 1).frame.equals(log(events).frame)
    with pytest.raises(DataError, match="nothing is left of 7 events in the 3-core: lower k"):
        k_core(log(events), 3)


def test_bad_arguments():
    with pytest.raises(DataError, match=r"no user has an event with 1 earlier ones .2 events of 2 users"):
        make_examples(log([("u", "a", 0), ("v", "a", 0)]))
    for wrong in ({"train_targets": 0}, {"train_targets": "some"}, {"min_history": -1}, {"max_history": 0}):
        with pytest.raises(ValueError, match="expected"):
            make_examples(SMALL, **wrong)
    for ratios in ((8, 1), (0, 1, 1), (8, -1, 1)):
        with pytest.raises(ValueError, match="ratios"):
            make_examples(SMALL, ratios=ratios)
    with pytest.raises(ValueError, match="method is 'random'"):
        make_examples(SMALL, "random")


EVENTS = st.lists(
    st.tuples(st.sampled_from(["u", "v", "w:1", "x", "y"]), st.sampled_from("abcd"), st.integers(0, 6)),
    min_size=1,
    max_size=30,
)


@given(
    EVENTS,
    st.sampled_from(["leave_one_out", "global_time", "users"]),
    st.integers(0, 3),
    st.integers(1, 4),
    st.sampled_from(["all", "last", 2]),
)
def test_splits_against_a_slow_loop(events, method, min_history, max_history, train_targets):
    source = log(events)
    try:
        examples = make_examples(source, method, (2, 1, 1), min_history, max_history, train_targets)
    except DataError:
        return
    sequences = {}
    for user, item, time in source.frame.rows():
        sequences.setdefault(user, []).append((item, time))
    assert examples["example_id"].n_unique() == len(examples)
    for row in examples.iter_rows(named=True):
        user, position = row["example_id"].rsplit(":", 1)
        position = int(position)
        assert user == row["user_id"]
        assert sequences[user][position] == (row["target_id"], row["timestamp"])
        assert position >= min_history
        before = sequences[user][:position]
        assert row["history"] == [item for item, _ in before][-max_history:]
        assert all(time <= row["timestamp"] for _, time in before)
    latest = {s: examples.filter(pl.col("split") == s)["timestamp"] for s in ("train", "validation", "test")}
    train = examples.filter(pl.col("split") == "train")
    assert not train["cold_item"].any()
    assert not train["cold_user"].any()
    if train_targets != "all":
        assert (train.group_by("user_id").len()["len"] <= (1 if train_targets == "last" else 2)).all()
    if method == "global_time":
        for early, late in (("train", "validation"), ("validation", "test"), ("train", "test")):
            if len(latest[early]) and len(latest[late]):
                assert latest[early].max() < latest[late].min()
    if method == "users":
        assert (examples.group_by("user_id").agg(pl.col("split").n_unique())["split"] == 1).all()
    if method == "leave_one_out":
        for user, rows in examples.group_by("user_id"):
            order = rows.sort(pl.col("example_id").str.split(":").list.last().cast(pl.Int64))["split"].to_list()
            assert order == sorted(order, key=["train", "validation", "test"].index), user
            assert order.count("test") == 1
