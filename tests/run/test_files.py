"""Files of a run folder: read from the path that is named, and where damaged named in one line with what to do."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from anyo_rl.run.files import MADE_AGAIN, read_json, read_table, readable, scan_table, write_table
from anyo_rl.run.folder import append_metrics, check_same, read_arguments, read_metrics
from anyo_rl.run.settings import UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["a[1]", "a*", "a?", "a[!2]", "{a1}", "**"])
def test_a_table_is_read_from_the_path_that_is_named(tmp_path, name):
    for folder in ("a1", "a2", name):
        for file in ("t1.parquet", "t[1].parquet"):
            write_table(pl.DataFrame({"x": [f"{folder}/{file}"], "y": [0]}), tmp_path / folder / file, {"at": folder})
    for file in ("t1.parquet", "t[1].parquet"):
        whole = tmp_path / name / file
        assert read_table(whole).rows() == [(f"{name}/{file}", 0)]
        assert read_table(whole, ["y", "x"]).rows() == [(0, f"{name}/{file}")]
        assert scan_table(whole).select("x").collect().item() == f"{name}/{file}"
        assert pl.read_parquet_metadata(whole)["at"] == name
    with pytest.raises((OSError, pl.exceptions.PolarsError)):
        read_table(tmp_path / "a[0-9]" / "t1.parquet")


def test_tables_are_read_in_two_places_only():
    """Elsewhere it would be forgotten that polars takes a path for a pattern."""
    reads = re.compile(r"\bpl\.(read|scan)_(?!parquet_metadata|parquet_schema)\w+\(|\bglob\.i?glob\(")
    folders = ("anyo_rl", "recipes", "reward", "benchmarks")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    found = {file.relative_to(ROOT).as_posix() for file in files if reads.search(file.read_text(encoding="utf-8"))}
    assert found == {"anyo_rl/run/files.py", "anyo_rl/data/tables.py"}


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"null", b"3", b"\xff\xfe{}"])
def test_damaged_json_is_named(tmp_path, content):
    file = tmp_path / "chosen.json"
    file.write_bytes(content)
    with pytest.raises(UsageError) as told:
        read_json(file)
    assert str(told.value).startswith(f"{file} is damaged (")
    assert str(told.value).endswith(f": {MADE_AGAIN}")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("left", [0, 0.5])
def test_a_damaged_table_is_named(tmp_path, left):
    file = tmp_path / "kept.parquet"
    pl.DataFrame({"a": [1, 2]}).write_parquet(file)
    assert read_table(file)["a"].to_list() == [1, 2]
    file.write_bytes(file.read_bytes()[: int(left * file.stat().st_size)])
    with pytest.raises(UsageError, match=r"kept\.parquet is damaged"):
        read_table(file)


def test_what_lacks_a_name_is_damaged_too(tmp_path):
    with pytest.raises(UsageError, match=r"is damaged .KeyError: .kept..: do that"), readable(tmp_path, "do that"):
        {}["kept"]
    with pytest.raises(FileNotFoundError), readable(tmp_path):
        (tmp_path / "nowhere").read_text()


@pytest.mark.parametrize("content", ["", "[1, 2]", "DataArguments: toy", "a: [1", "a: {b: 1}\n\tc: 2"])
def test_damaged_arguments_are_not_taken_for_other_ones(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    for read in (read_arguments, lambda folder: check_same(folder, {})):
        with pytest.raises(UsageError, match=r"config.yaml is damaged .*: put it back as it was, or name another"):
            read(tmp_path)


@pytest.mark.parametrize("torn", ["", '{"stage": "gr', '{"stage": "grpo", "step": 1}\n'])
def test_a_line_is_appended_after_a_torn_one(tmp_path, torn):
    file = tmp_path / "run" / "metrics.jsonl"
    file.parent.mkdir()
    if torn:
        file.write_text(torn)
    append_metrics(file, {"stage": "sft", "step": 2})
    assert json.loads(file.read_text().splitlines()[-1]) == {"stage": "sft", "step": 2}
    rows, broken = read_metrics(file)
    assert (len(rows), broken) == {"": (1, 0), '{"stage": "gr': (1, 1)}.get(torn, (2, 0))
