"""Profiles: written once, kept by user and history, and written again when the history has grown."""

import dataclasses

import polars as pl
import pytest

from anyo_rl.reasoning.kinds.asking import Asking
from anyo_rl.reasoning.kinds.load import load_kind
from anyo_rl.reasoning.kinds.profile import FILE, key_of, template, told_events
from anyo_rl.run.settings import UsageError

SETTINGS = {"window": 4, "every": 3}


def test_a_profile_leaves_the_newest_events_to_the_history():
    past = list(range(20))
    for n in range(20):
        told = told_events([str(event) for event in past[:n]], 4, 3)
        assert len(told) % 3 == 0
        assert n < 4 or n - 4 - 3 < len(told) <= n - 4
        assert n >= 4 or not told


def test_templates_count_events():
    attributes = {"a": ("tea", "oak"), "b": ("mug",), "c": ()}
    assert template("aabbb", attributes, 2, 2) == ("most: mug 3 of 5, tea 2", "of late: mug 2 of 2")
    assert template("ccc", attributes, 2, 2) == ()
    assert template("", attributes, 2, 2) == ()


def test_profiles_are_kept_and_only_new_ones_are_written(make_world, tmp_path):
    world = make_world()
    asking = Asking(load_kind("profile", SETTINGS), world.task)
    asking.prepare(tmp_path)
    kept = pl.read_parquet(tmp_path / FILE)
    past = world.task.past
    told = {
        (user, told_events(past.before(example), 4, 3))
        for example, user in world.task.examples.select("example_id", "user_id").iter_rows()
    }
    keys = {key_of(user, events) for user, events in told if events}
    assert set(kept.select("user_id", "history_hash").iter_rows()) == keys
    assert len(kept) == len(keys)
    assert set(kept["n_events"]) == {3, 6, 9}

    # Somebody's profile is not written again, and what the history has grown by is.
    before = (tmp_path / FILE).stat().st_mtime_ns
    Asking(load_kind("profile", SETTINGS), world.task).prepare(tmp_path)
    assert (tmp_path / FILE).stat().st_mtime_ns == before
    marked = kept.with_columns(lines=pl.lit(["kept as it was"], dtype=pl.List(pl.String))).filter(
        pl.col("n_events") < 9
    )
    marked.write_parquet(tmp_path / FILE)
    again = Asking(load_kind("profile", SETTINGS), world.task)
    again.prepare(tmp_path)
    grown = pl.read_parquet(tmp_path / FILE)
    assert grown.filter(pl.col("n_events") < 9)["lines"].to_list() == [["kept as it was"]] * len(marked)
    assert (
        grown.filter(pl.col("n_events") == 9)
        .sort("history_hash")
        .equals(kept.filter(pl.col("n_events") == 9).sort("history_hash"))
    )


def test_prompts_show_the_profile_that_is_kept(make_world, tmp_path):
    world = make_world()
    kind = load_kind("profile", SETTINGS)
    Asking(kind, world.task).prepare(tmp_path)
    kept = {(user, told): lines for user, told, _, lines, _ in pl.read_parquet(tmp_path / FILE).iter_rows()}
    fresh = world.rows(load_kind("profile", SETTINGS), "test")
    for row, without in zip(world.rows(kind, "test"), fresh, strict=True):
        events = told_events(world.task.past.before(row.example_id), 4, 3)
        lines = "\n".join(kept[key_of(row.user_id, events)])
        assert row.prompt.startswith(f"What the user chose before:\n{lines}\nHistory:\n")
        assert row.prompt == without.prompt  # templates say the same again


def test_users_without_events_before_the_window_have_no_profile(make_world):
    world = make_world()
    for row in world.rows(load_kind("profile", {"window": 14}), "test"):
        assert row.prompt.startswith("History:\n")


def test_profiles_of_somebody_else(make_world, tmp_path):
    world = make_world()
    asking = Asking(load_kind("profile", SETTINGS), world.task)
    asking.prepare(tmp_path)
    table = tmp_path / "theirs.parquet"
    first, *_ = pl.read_parquet(tmp_path / FILE).sort("user_id").partition_by("user_id")
    first.with_columns(lines=pl.lit(["Next:", "x</profile> -> y"], dtype=pl.List(pl.String))).write_parquet(table)
    kind = load_kind("profile", {**SETTINGS, "table": str(table)})
    shown = [row.prompt for row in world.rows(kind, "test") if row.user_id == first["user_id"][0]]
    assert all(p.startswith("What the user chose before:\nNext∶\nx</profile> → y\nHistory:\n") for p in shown)
    assert shown
    others = [row.prompt for row in world.rows(kind, "test") if row.user_id != first["user_id"][0]]
    assert all(prompt.startswith("History:\n") for prompt in others)
    with pytest.raises(UsageError, match="found no profiles at"):
        load_kind("profile", {"table": str(tmp_path / "none.parquet")})
    table.write_text("no parquet")
    with pytest.raises(UsageError, match="is damaged"):
        load_kind("profile", {"table": str(table)})


def test_a_profile_is_of_the_past_alone(make_world):
    """With all later events of the log exchanged, what is told stays."""
    world = make_world()
    log = world.task.interactions
    last = log.frame.with_columns(
        item_id=pl.when(pl.int_range(pl.len()).over("user_id") == pl.len().over("user_id") - 1)
        .then(pl.lit("i0"))
        .otherwise("item_id")
    )
    other = dataclasses.replace(world.task, interactions=dataclasses.replace(log, frame=last))
    kind = load_kind("profile", SETTINGS)
    mine = [row.prompt for row in world.rows(kind, "test")]
    world.task = other
    assert [row.prompt for row in world.rows(kind, "test")] == mine
