"""Times are sorted and compared as finely as they were written."""

import polars as pl
import pytest

from anyo_rl.data.load import load_interactions
from anyo_rl.data.schema import DataError, Interactions
from anyo_rl.data.splits import k_core, make_examples

ITEMS = "item_id,title\n" + "".join(f"{n},T{n}\n" for n in range(1, 10))
SECOND = 1_700_000_000


@pytest.fixture
def load(tmp_path):
    def write_and_load(times, items=None, dtype=None, users=None):
        """Events of items 1, 2, … at these times: text of a csv, or a parquet file where a type is given."""
        n = len(times)
        items, users = [str(item) for item in items or range(1, n + 1)], users or ["u"] * n
        (tmp_path / "items.csv").write_text(ITEMS)
        if dtype is None:
            rows = "".join(f"{u},{i},{t}\n" for u, i, t in zip(users, items, times, strict=True))
            (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
            return load_interactions(tmp_path / "log.csv")
        columns = {"user_id": users, "item_id": items, "timestamp": pl.Series(times, dtype=dtype)}
        pl.DataFrame(columns).write_parquet(tmp_path / "log.parquet")
        return load_interactions(tmp_path / "log.parquet")

    return write_and_load


def order(interactions):
    return interactions.frame["item_id"].to_list()


def test_the_newest_first_within_a_second(load):
    times = [t + 1_000_000 * user for user in range(6) for t in (1700000005900, 1700000005600, 1700000001000)]
    found = load(times, items=[3, 2, 1] * 6, users=[f"u{n // 3}" for n in range(18)])
    assert order(found) == ["1", "2", "3"] * 6
    test = make_examples(found).filter(split="test")
    assert test.select("history", "target_id").rows() == [(["1", "2"], "3")] * 6


def test_milliseconds_of_one_second(load):
    found = load([1700000000900, 1700000000100, 1700000001000], items=[2, 1, 3])
    assert order(found) == ["1", "2", "3"]
    assert found.frame["timestamp"].to_list() == [SECOND, SECOND, SECOND + 1]
    assert found.frame["fraction"].to_list() == [0.1, 0.9, 0.0]
    assert found.report["unsorted_events"] == 1


def test_a_repeat_within_a_second_is_no_duplicate(load):
    times = [1700000000100, 1700000000700, 1700000009000, 1700000019000, 1700000019000]
    found = load(times, items=[1, 1, 2, 3, 3])
    assert order(found) == ["1", "1", "2", "3"]
    assert found.report["duplicate_events"] == 1


@pytest.mark.parametrize(
    "times",
    [
        ["1700000000.25", "1700000000.125"],
        ["1700000000.123456790", "1700000000.123456789"],  # a float has both alike
        ["1700000000123.5", "1700000000123.25"],
        ["1700000000123456", "1700000000123455"],
        ["1700000000123456789", "1700000000123456788"],
        ["1.70000000025e9", "1700000000.125"],
        [".75", "5e-1"],
        ["-1.25", "-1.5"],
        ["-5", "-5.25"],
        ["0.2500000000001", "0.25"],
    ],
)
def test_text_is_sorted_as_it_is_written(load, times):
    assert order(load(times)) == ["2", "1"]
    assert order(load(times[::-1])) == ["1", "2"]
    assert order(load([times[0], times[0]], items=[1, 1])) == ["1"]


@pytest.mark.parametrize(
    ("times", "dtype"),
    [
        ([SECOND * 10**9 + 2, SECOND * 10**9 + 1], pl.Int64),
        ([SECOND * 10**9 + 2, SECOND * 10**9 + 1], pl.UInt64),
        ([SECOND * 10**6 + 2, SECOND * 10**6 + 1], pl.UInt64),
        ([SECOND + 1, SECOND], pl.UInt32),
        ([SECOND + 0.5, SECOND + 0.25], pl.Float64),
        ([1.5, 1.25], pl.Float32),
        ([0.25, -0.25], pl.Float64),
        ([SECOND * 10**9 + 2, SECOND * 10**9 + 1], pl.Datetime("ns")),
        ([SECOND * 10**6 + 2, SECOND * 10**6 + 1], pl.Datetime("us")),
        ([SECOND * 10**3 + 2, SECOND * 10**3 + 1], pl.Datetime("ms")),
        ([SECOND * 10**6 + 2, SECOND * 10**6 + 1], pl.Datetime("us", "Europe/Berlin")),
        ([-1, -2], pl.Datetime("ms")),
        ([20_000, 19_999], pl.Date),
        (["1700000000.2", "1700000000.10"], pl.Categorical),
        (["1700000000.2", "1700000000.1"], pl.String),
    ],
)
def test_columns_of_parquet_are_sorted_as_they_are(load, times, dtype):
    physical = pl.Int64 if isinstance(times[0], int) else dtype
    found = load(pl.Series(times, dtype=physical).cast(dtype), dtype=dtype)
    assert order(found) == ["2", "1"]
    assert order(load(pl.Series(times[::-1], dtype=physical).cast(dtype), dtype=dtype)) == ["1", "2"]
    assert found.report["duplicate_events"] == 0


def test_decimals_of_parquet(load):
    dtype = pl.Decimal(30, 9)
    times = pl.Series(["1700000000.123456790", "1700000000.123456789"]).cast(dtype)
    assert order(load(times, dtype=dtype)) == ["2", "1"]


def test_whole_seconds_have_no_fraction(load):
    assert "fraction" not in load([1700000005000, 1700000001000]).frame.columns
    assert "fraction" not in load([5.0, 1.0], dtype=pl.Float64).frame.columns


@pytest.mark.parametrize(
    ("times", "dtype", "said"),
    [
        ([2**63 + 1], pl.UInt64, "found 9223372036854775809 as timestamp .1 of 1 rows., expected seconds"),
        ([1e300], pl.Float64, "found 1e[+]300 as timestamp"),
        ([True], pl.Boolean, "found True as timestamp"),
        ([1], pl.Duration("us"), "the column for timestamp is Duration.*expected text or numbers"),
        ([1], pl.Time, "the column for timestamp is Time"),
        ([[1]], pl.List(pl.Int64), "the column for timestamp is List"),
    ],
)
def test_what_is_no_time_is_one_clear_error(load, times, dtype, said):
    physical = pl.Series(times) if dtype != pl.UInt64 else pl.Series(times, dtype=dtype)
    with pytest.raises(DataError, match=said):
        load(physical.cast(dtype), dtype=dtype)


def test_global_time_cuts_within_a_second(load):
    found = load([f"{SECOND}.{n}" for n in (5, 1, 3, 2, 4)] + [str(SECOND)], users=["u", "u", "v", "v", "u", "v"])
    # In time: 6 (v), 2 (u), 4 (v), 3 (v), 5 (u), 1 (u). Four in train, one in validation, one in test.
    examples = make_examples(found, "global_time", ratios=(4, 1, 1))
    assert examples.select("target_id", "split").rows() == [
        ("5", "validation"),
        ("1", "test"),
        ("4", "train"),
        ("3", "train"),
    ]


def test_k_core_keeps_fractions(load):
    found = load(["1.5", "1.25", "1.75"], items=[1, 1, 2], users=["u", "v", "v"])
    assert k_core(found, 1).frame["fraction"].to_list() == [0.5, 0.25, 0.75]
    assert k_core(load(["1.5", "1.25"], items=[1, 1]), 2).frame["fraction"].to_list() == [0.25, 0.5]


def test_the_latest_of_given_targets_are_the_latest_in_time():
    given = pl.DataFrame(
        {
            "user_id": ["u"] * 4,
            "history": [["a"]] * 4,
            "target_id": ["c", "b", "d", "e"],
            "timestamp": [5, 5, 4, 9],
            "fraction": [0.5, 0.25, 0.0, 0.0],
            "split": ["train", "train", "train", "test"],
        }
    )
    items = pl.DataFrame({"item_id": list("abcde"), "title": list("abcde")})
    log = Interactions(given.rename({"target_id": "item_id"}), items, {}, "test", given)
    targets = {
        keep: make_examples(log, "given", train_targets=keep).select("example_id", "target_id").rows()
        for keep in (1, 2, "all")
    }
    assert targets[1] == [("u:0", "c"), ("u:3", "e")]
    assert targets[2] == [("u:0", "c"), ("u:1", "b"), ("u:3", "e")]
    assert [target for _, target in targets["all"]] == ["c", "b", "d", "e"]
