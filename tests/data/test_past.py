"""What users had chosen before: what masked rankings leave out, and which targets are repeats."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from anyo_rl.data.past import GivenPast, Past, past_of, repeats
from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments, load_task


def write_items(folder: Path, names: set[str]) -> None:
    rows = "".join(f"{name},title of {name}\n" for name in sorted(names))
    (folder / "items.csv").write_text(f"item_id,title\n{rows}")


@pytest.fixture
def long_log(tmp_path) -> DataArguments:
    """Ten users of 61 events, none twice but item 0: it comes again as the 31st, and as the last of the first five."""
    rows = ["user_id,item_id,timestamp"]
    for user in range(10):
        items = [f"i{n}" for n in range(30)] + ["i0"] + [f"i{n}" for n in range(30, 59)]
        items.append("i0" if user < 5 else "i59")
        rows += [f"u{user},{item},{time}" for time, item in enumerate(items)]
    (tmp_path / "log.csv").write_text("\n".join(rows) + "\n")
    write_items(tmp_path, {f"i{n}" for n in range(60)})
    return DataArguments(
        dataset=str(tmp_path / "log.csv"), split="leave_one_out", max_history=10, rationale_attributes=[]
    )


def test_all_seen_items_are_masked_however_short_the_history_that_is_shown(long_log):
    task = load_task(dataclasses.replace(long_log, mask_history=True))
    sixtieth = task.examples.filter(pl.col("example_id") == "u0:59").row(0, named=True)
    assert sixtieth["history"] == [f"i{n}" for n in range(48, 58)]
    assert task.excluded("u0:59") == [f"i{n}" for n in range(58)]
    assert sixtieth["target_id"] == "i58"
    assert load_task(long_log).excluded("u0:59") == []


def test_repeat_targets_are_left_out_under_masking_and_counted(long_log):
    whole, masked = load_task(long_log), load_task(dataclasses.replace(long_log, mask_history=True))
    assert (len(whole.split("train")), len(whole.split("test"))) == (58 * 10, 10)
    assert (len(masked.split("train")), len(masked.split("test"))) == (57 * 10, 5)
    found = {name: count for name, count in masked.report.items() if "repeats" in name}
    assert found == {"train_repeats_left_out": 10, "validation_repeats_left_out": 0, "test_repeats_left_out": 5}
    assert not any("repeats" in name for name in whole.report)
    assert "i0" not in set(masked.examples["target_id"])


def test_a_split_of_repeats_alone_is_told(tmp_path):
    rows = "".join(f"u{user},{item},{time}\n" for user in range(4) for time, item in enumerate("abca"))
    (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    write_items(tmp_path, set("abc"))
    args = DataArguments(dataset=str(tmp_path / "log.csv"), split="leave_one_out", rationale_attributes=[])
    with pytest.raises(DataError, match=r"0 test examples.*4 of them were repeats"):
        load_task(dataclasses.replace(args, mask_history=True))


def test_the_past_by_hand():
    frame = pl.DataFrame({"user_id": list("aaabb"), "item_id": ["x", "y", "x", "y", "y"]})
    past = past_of(SimpleNamespace(frame=frame), "users")
    assert isinstance(past, Past)
    assert [past.before(example) for example in ("a:0", "a:2", "b:1")] == [[], ["x", "y"], ["y"]]
    examples = pl.DataFrame({"example_id": ["a:1", "a:2", "b:1"], "user_id": ["a", "a", "b"]})
    assert repeats(examples, SimpleNamespace(frame=frame), past).tolist() == [False, True, True]


def test_users_with_a_colon_in_their_name_are_found():
    frame = pl.DataFrame({"user_id": ["a:1", "a:1", "a"], "item_id": ["x", "y", "z"]})
    assert Past.of_log(SimpleNamespace(frame=frame)).before("a:1:1") == ["x"]


def test_what_pre_made_examples_tell_of_a_user():
    rows = pl.DataFrame(
        {
            "user_id": ["a", "b", "a", "a"],
            "history": [["x"], ["q"], ["y", "x"], ["z"]],
            "target_id": ["y", "x", "z", "x"],
        }
    )
    past = past_of(SimpleNamespace(given=rows), "given")
    assert isinstance(past, GivenPast)
    assert [past.before(example) for example in ("a:0", "a:1", "a:2", "b:0")] == [
        ["x"],
        ["x", "y"],
        ["x", "y", "z"],
        ["q"],
    ]
    examples = pl.DataFrame({"example_id": ["a:0", "a:2", "b:0"], "target_id": ["y", "x", "x"]})
    assert repeats(examples, SimpleNamespace(given=rows), past).tolist() == [False, True, False]
