"""make_profiles as it is started: killed while it asks, and a teacher's prompts show what it wrote."""

import json

import polars as pl
import pytest

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.kinds.asking import Asking
from anyo_rl.reasoning.kinds.load import load_kind

pytestmark = pytest.mark.slow


def test_killed_it_asks_for_nothing_twice(fake_server, launcher, tmp_path):
    run, world = tmp_path / "run", {"toy_users": 30, "toy_categories": 4}
    fake_server.say = lambda prompt, seed: "comes back to tea\nhas moved to oak"
    fake_server.gate = lambda key: fake_server.closing.wait(0.02)
    of_data = [part for name, value in world.items() for part in (f"--{name}", value)]
    of_server = ("--url", fake_server.url, "--model", "fake", "--concurrency", 2)
    flags = (*of_data, *of_server, "--window", 4, "--every", 2, "--output_dir", run)
    launcher.start("make_profiles", *flags).kill_when(lambda: len(fake_server.answered) > 5)
    output = launcher.finish("make_profiles", *flags)
    counts = json.loads((run / "profiles.json").read_text())
    assert f"{counts['requests']:,} of {counts['requests']:,} profiles" in output
    answered = [key for key, _ in fake_server.answered]
    assert len(answered) <= counts["requests"] + 2  # what a kill lost is what was on its way
    table = run / "profiles.parquet"
    assert len(pl.read_parquet(table)) == counts["requests"]
    task = load_task(DataArguments(**world))
    kind = load_kind("profile", {"window": 4, "every": 2, "table": str(table)})
    shown = [kind.show(Asking(kind, task).asked(row)) for row in task.split("test").iter_rows(named=True)]
    assert all(section.lines == ("comes back to tea", "has moved to oak") for (section,) in shown)


def test_a_teacher_writes_what_is_not_there_yet(finished_run, launcher, tmp_path):
    run = tmp_path / "run"
    of_data = ("--toy_users", 120, "--toy_categories", 5)  # as the smoke run
    flags = (*of_data, "--teacher", finished_run.folder, "--window", 4, "--every", 8, "--output_dir", run)
    output = launcher.finish("make_profiles", *flags)
    counts, table = json.loads((run / "profiles.json").read_text()), run / "profiles.parquet"
    first = pl.read_parquet(table)
    assert f"{counts['kept']:,} of {counts['requests']:,} profiles" in output
    assert len(first) == counts["kept"] == counts["requests"] - counts["empty"] > 0
    assert set(first["writer"]) == {str(finished_run.folder)}

    first.head(3).with_columns(writer=pl.lit("somebody")).write_parquet(table)
    launcher.finish("make_profiles", *flags)
    again = pl.read_parquet(table)
    assert again["writer"].to_list()[:3] == ["somebody"] * 3  # what is there stays
    assert (
        again.drop("writer")
        .sort("user_id", "history_hash")
        .equals(first.drop("writer").sort("user_id", "history_hash"))
    )

    refused = launcher.start("make_profiles", *flags[4:], "--toy_categories", 6).wait()
    assert refused.process.returncode == 1
    assert "give the data that it was trained on" in refused.output
