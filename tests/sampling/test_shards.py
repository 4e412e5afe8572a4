"""Sampling jobs: killed, shared or cut otherwise, they come to the same table."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import anyo_rl.run.shards as shards_module
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.shards import MANIFEST, JobError, partition
from anyo_rl.sampling.paths import PATHS_SCHEMA, SampledPath, paths_table
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.shards import ShardedJob, read_paths, run_shards

ROWS = [Row(f"u{u}:{u % 3}", f"u{u}", [], "i1", prompt=f"Häufig, {u}\n") for u in range(20)]
SAMPLING = Sampling(n=2, seed=3)

# A job in a process of its own. It writes down which examples it has made.
WORKER = """
import hashlib, json, sys, time
from pathlib import Path
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.paths import SampledPath
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.shards import ShardedJob, run_shards

folder, n_shards, n_samples, pause, lease, seed = sys.argv[1], *map(float, sys.argv[2:])
rows = [Row(f"u{u}:{u % 3}", f"u{u}", [], "i1", prompt=f"Häufig, {u}\\n") for u in range(20)]


def make_paths(rows):
    paths = []
    for row in rows:
        for index in range(int(n_samples)):
            drawn = int(hashlib.sha256(f"{int(seed)} {row.example_id} {index}".encode()).hexdigest()[:12], 16)
            written = {"completion": f"wünscht {drawn} ->", "token_ids": [drawn % 7, 2]}
            paths.append(SampledPath(row.example_id, index, seed=drawn, prompt=row.prompt, **written))
        with open(folder + ".log", "a") as log:
            log.write(row.example_id + "\\n")
        time.sleep(pause)
    return paths[::-1]  # in any order


if __name__ == "__main__":
    job = ShardedJob(Path(folder), Sampling(n=int(n_samples), seed=int(seed)), policy="sft", n_shards=int(n_shards),
                     lease_s=lease, poll_s=0.05)
    run_shards(rows, job, make_paths)
"""


@pytest.fixture
def start(repo_root, tmp_path):
    """Starts a job in a process of its own."""
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    started = []

    def run(folder: Path, n_shards: int, pause: float = 0.03, lease: float = 60.0, seed: int = 3) -> subprocess.Popen:
        command = [sys.executable, str(script), str(folder), *map(str, (n_shards, 4, pause, lease, seed))]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def made(folder: Path) -> Counter[str]:
    """How often each example was made."""
    log = Path(f"{folder}.log")
    return Counter(log.read_text().split() if log.exists() else [])


def finish(process: subprocess.Popen) -> None:
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


def paths_of(rows, n_samples: int = 2) -> list[SampledPath]:
    return [
        SampledPath(row.example_id, index, completion=f"{row.prompt}{index}", seed=1)
        for row in rows
        for index in range(n_samples)
    ]


def run(folder: Path, rows=ROWS, make_paths=paths_of, **changes) -> None:
    job = ShardedJob(folder, SAMPLING, policy="sft", n_shards=3, poll_s=0.01)
    run_shards(rows, replace(job, **changes), make_paths)


@given(st.integers(0, 500), st.integers(1, 60))
def test_each_row_is_in_one_shard(n_rows, n_shards):
    parts = partition(n_rows, n_shards)
    assert [row for part in parts for row in part] == list(range(n_rows))
    assert len(parts) == n_shards
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 6))
def test_the_table_does_not_depend_on_the_number_of_shards(tmp_path_factory, n_shards, n_samples, n_rows):
    folder = tmp_path_factory.mktemp("job")
    rows = ROWS[:n_rows]
    sampling = replace(SAMPLING, n=n_samples)
    run(folder, rows, lambda part: paths_of(part, n_samples)[::-1], n_shards=n_shards, sampling=sampling)
    expected = paths_table([replace(path, policy="sft") for path in paths_of(rows, n_samples)])
    assert read_paths(folder).equals(expected)
    assert read_paths(folder).schema == PATHS_SCHEMA


def test_what_is_done_is_not_done_again(tmp_path):
    run(tmp_path / "job")
    names = sorted(file.name for file in (tmp_path / "job").iterdir())
    assert names == [MANIFEST, *(f"shard-0000{i}-of-00003.parquet" for i in range(3))]
    run(tmp_path / "job", make_paths=lambda rows: pytest.fail("made again"))
    (tmp_path / "job" / names[2]).unlink()
    asked = []
    run(tmp_path / "job", make_paths=lambda rows: asked.append([row.example_id for row in rows]) or paths_of(rows))
    assert asked == [[row.example_id for row in ROWS[6:13]]]


@pytest.mark.slow
@pytest.mark.parametrize("n_shards", [pytest.param(1, marks=pytest.mark.on_request), 7])
def test_killed_at_any_moment_it_goes_on(start, tmp_path, n_shards):
    finish(start(tmp_path / "calm", 1, pause=0))
    expected = read_paths(tmp_path / "calm")
    assert len(expected) == 20 * 4
    folder, rng = tmp_path / "killed", random.Random(n_shards)
    underway, kept = 0, {}
    for _ in range(8):
        before = made(folder).total()
        process = start(folder, n_shards)
        deadline = time.monotonic() + 30
        while made(folder).total() == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)  # until it is at work
        time.sleep(rng.uniform(0, 0.25))
        process.kill()
        process.communicate()
        underway += bool(list(folder.glob("*.claim.*")))
        for file in folder.glob("*.parquet"):
            done = set(pl.read_parquet(file)["example_id"])
            kept = {example: n for example, n in made(folder).items() if example in done} | kept
        if process.returncode == 0:
            break
    assert underway >= 3
    finish(start(folder, n_shards))
    found = read_paths(folder)
    assert found.equals(expected)
    columns = ["example_id", "sample_index", "policy", "seed", "completion"]
    assert found.select(columns).write_csv().encode() == expected.select(columns).write_csv().encode()
    assert not [file.name for file in folder.iterdir() if "claim" in file.name or "partial" in file.name]
    assert max(made(folder).values()) > 1  # shards that were under way were begun anew
    assert {example: made(folder)[example] for example in kept} == kept  # those that were done were not
    assert n_shards == 1 or kept


@pytest.mark.slow
def test_processes_at_once_share_the_work(start, tmp_path):
    finish(start(tmp_path / "calm", 1, pause=0))
    folder = tmp_path / "shared"
    for process in [start(folder, 7) for _ in range(3)]:
        finish(process)
    assert made(folder) == dict.fromkeys((row.example_id for row in ROWS), 1)
    assert read_paths(folder).equals(read_paths(tmp_path / "calm"))
    finish(start(folder, 7))
    assert made(folder).total() == 20


@pytest.mark.slow
def test_a_slow_owner_keeps_its_claim(start, tmp_path):
    folder = tmp_path / "slow"
    first = start(folder, 1, pause=0.15, lease=0.6)  # five leases long
    while not made(folder):
        time.sleep(0.01)
    second = start(folder, 1, pause=0.15, lease=0.6)
    finish(first)
    finish(second)
    assert made(folder).total() == 20
    assert len(read_paths(folder)) == 80


@pytest.mark.slow
def test_two_jobs_at_once_are_not_mixed(start, tmp_path):
    for turn in range(3):
        folder = tmp_path / f"job{turn}"
        processes = [start(folder, 7, pause=0, seed=seed) for seed in (1, 2, 1, 2)]
        said = [process.communicate(timeout=180)[1] for process in processes]
        seeds = json.loads((folder / MANIFEST).read_text())["arguments"]["seed"]
        assert [process.returncode for process in processes] == [int(seed != seeds) for seed in (1, 2, 1, 2)]
        assert all("of a job with seed=" in text for text in said if text)
        assert len(read_paths(folder)) == 80


def leave_claim(folder: Path, shard: int, owner: str, age_s: float, number: int = 0) -> Path:
    claim = folder / f"shard-{shard:05d}-of-00003.claim.{number}"
    claim.write_text(owner)
    os.utime(claim, (time.time() - age_s,) * 2)
    return claim


def test_half_written_files_are_ignored(tmp_path, caplog):
    run(tmp_path / "calm")
    run(tmp_path)
    whole = (tmp_path / "shard-00001-of-00003.parquet").read_bytes()
    for cut in (0, 3, len(whole) // 2, len(whole) - 1):
        (tmp_path / "shard-00000-of-00003.parquet").write_bytes(whole[:cut])
        (tmp_path / "shard-00001-of-00003.parquet").unlink(missing_ok=True)
        (tmp_path / "shard-00001-of-00003.partial.0").write_bytes(whole[:cut])
        leave_claim(tmp_path, 1, "", age_s=1000)  # killed between making the claim and signing it
        with pytest.raises(JobError, match=r"2 of 3 shards .* are not done, such as shard-00000-of-00003.parquet"):
            read_paths(tmp_path)
        run(tmp_path)
        assert read_paths(tmp_path).equals(read_paths(tmp_path / "calm"))
    assert "is no complete parquet file" in caplog.text
    assert len(list(tmp_path.glob("shard-*"))) == 3


def test_claims(tmp_path, monkeypatch):
    owner = json.dumps({"place": "elsewhere", "pid": 2**22 + 1})  # no process of ours
    leave_claim(tmp_path, 0, owner, age_s=1000)
    leave_claim(tmp_path, 0, owner, age_s=900, number=1)
    held = leave_claim(tmp_path, 1, owner, age_s=0)
    asked = []

    def others_finish(_):  # while we wait
        assert asked == [["u0:0"], ["u13:1"]]
        held.unlink()

    monkeypatch.setattr(shards_module.time, "sleep", others_finish)
    run(tmp_path, make_paths=lambda rows: asked.append([rows[0].example_id]) or paths_of(rows))
    assert asked == [["u0:0"], ["u13:1"], ["u6:0"]]
    assert not list(tmp_path.glob("*.claim.*"))
    assert len(read_paths(tmp_path)) == 40


def test_a_number_that_was_given_again_is_no_owner(tmp_path, monkeypatch):
    """A killed process's number may be another's by now: ours, here."""
    here = {"place": shards_module._place(), "pid": os.getpid()}
    began = shards_module._began(os.getpid())
    if began is None:
        pytest.skip("no /proc")
    monkeypatch.setattr(shards_module.time, "sleep", lambda _: pytest.fail("waited"))
    leave_claim(tmp_path, 0, json.dumps(here | {"began": f"{began}0"}), age_s=1)
    run(tmp_path)
    assert len(read_paths(tmp_path)) == 40
    assert shards_module._is_alive(os.getpid(), began)
    assert shards_module._is_alive(os.getpid(), None)


def test_what_a_killed_owner_left_beside_a_finished_shard_goes(tmp_path):
    run(tmp_path)
    leave_claim(tmp_path, 0, "", age_s=0)
    leave_claim(tmp_path, 2, json.dumps({"place": "elsewhere", "pid": 7}), age_s=1, number=1)
    (tmp_path / "shard-00002-of-00003.partial.0").write_bytes(b"PAR1")
    run(tmp_path, make_paths=lambda rows: pytest.fail("made again"))
    assert len(list(tmp_path.glob("shard-*"))) == 3
    assert len(read_paths(tmp_path)) == 40


def test_an_owner_that_was_overtaken_does_no_harm(tmp_path, monkeypatch):
    def overtaken(rows):
        claim = tmp_path / "shard-00000-of-00001.claim.0"
        os.utime(claim, (0, 0))
        run(tmp_path, n_shards=1)
        assert not claim.exists()
        return paths_of(rows)

    run(tmp_path, n_shards=1, make_paths=overtaken)
    assert len(read_paths(tmp_path)) == 40
    (tmp_path / "shard-00000-of-00001.parquet").unlink()
    write_table = shards_module.write_table

    def tidied_up(frame, file, metadata, partial):
        write_table(frame, file, metadata, partial)
        raise FileNotFoundError

    monkeypatch.setattr(shards_module, "write_table", tidied_up)
    run(tmp_path, n_shards=1)
    monkeypatch.setattr(shards_module, "write_table", lambda *_: (_ for _ in ()).throw(FileNotFoundError("disk gone")))
    (tmp_path / "shard-00000-of-00001.parquet").unlink()
    with pytest.raises(FileNotFoundError, match="disk gone"):
        run(tmp_path, n_shards=1)


def test_an_error_gives_the_claim_up(tmp_path):
    def broken(rows):
        raise RuntimeError("no answer")

    with pytest.raises(RuntimeError, match="no answer"):
        run(tmp_path, make_paths=broken)
    assert [file.name for file in tmp_path.iterdir()] == [MANIFEST]
    run(tmp_path)


def test_another_job_is_refused_with_what_differs(tmp_path):
    run(tmp_path)
    before = read_paths(tmp_path)
    sampling = replace(SAMPLING, temperature=0.7, top_p=0.9)
    with pytest.raises(JobError) as refused:
        run(tmp_path, policy="grpo", n_shards=4, sampling=sampling, arguments={"rank_cap": 1000})
    assert str(refused.value).splitlines() == [
        f"{tmp_path} is of a job with n_shards=3, now 4",
        f"{tmp_path} is of a job with policy='sft', now 'grpo'",
        f"{tmp_path} is of a job with rank_cap='unset', now 1000",
        f"{tmp_path} is of a job with temperature=1.0, now 0.7",
        f"{tmp_path} is of a job with top_p=1.0, now 0.9",
        "name another folder, or remove this one",
    ]
    with pytest.raises(JobError, match="other prompts, or other columns"):
        run(tmp_path, [replace(row, prompt="x") for row in ROWS])
    with pytest.raises(JobError, match=r"n_rows=20, now 19\n.*other examples, or with these in another order"):
        run(tmp_path, ROWS[1:])
    with pytest.raises(JobError, match="other examples, or with these in another order"):
        run(tmp_path, ROWS[::-1])
    assert read_paths(tmp_path).equals(before)
    manifest = tmp_path / MANIFEST
    manifest.write_text(manifest.read_text().replace('"sft"', '"other"'))
    with pytest.raises(JobError, match=r"shard-00000.* is of another job than job.json beside it"):
        read_paths(tmp_path)


def test_wrong_paths_are_refused(tmp_path):
    cases = {
        "gave 39 paths": lambda rows: paths_of(rows)[1:],
        "gave 41 paths": lambda rows: [*paths_of(rows), paths_of(rows)[0]],
        r"1 lack, such as \[\('u0:0', 1\)\], and 1 were not asked for, such as \[\('u0:0', 2\)\]": lambda rows: [
            replace(path, sample_index=2) if (path.example_id, path.sample_index) == ("u0:0", 1) else path
            for path in paths_of(rows)
        ],
    }
    for message, make_paths in cases.items():
        with pytest.raises(ValueError, match=message):
            run(tmp_path, n_shards=1, make_paths=make_paths)
    assert [file.name for file in tmp_path.iterdir()] == [MANIFEST]
    with pytest.raises(TypeError, match="'colour'"):  # of no column
        run(tmp_path, n_shards=1, make_paths=lambda rows: [replace(path, colour=1) for path in paths_of(rows)])
    assert [file.name for file in tmp_path.iterdir()] == [MANIFEST]
    with pytest.raises(ValueError, match="path 0 of example 'u0:0' has no policy: expected one"):
        paths_table(paths_of(ROWS[:1]))
    with pytest.raises(JobError, match="20 rows have 1 different example ids"):
        run(tmp_path / "twins", [ROWS[0]] * 20)
    with pytest.raises(ValueError, match="n_shards 0, n_samples 2: expected at least 1"):
        run(tmp_path / "none", n_shards=0)
    with pytest.raises(JobError, match=r"found no .*job.json"):
        read_paths(tmp_path / "none")


def test_each_path_must_be_there_once(tmp_path):
    run(tmp_path)
    file = tmp_path / "shard-00001-of-00003.parquet"
    whole, metadata = pl.read_parquet(file), pl.read_parquet_metadata(file)
    job = {"job": metadata["job"]}
    for spoilt in (whole[1:], pl.concat([whole[:-1], whole[:1]]), whole.with_columns(example_id=pl.lit("u0:0"))):
        spoilt.write_parquet(file, metadata=job)
        with pytest.raises(JobError, match=r"expected 2 of each of 20: remove its shards"):
            read_paths(tmp_path)
    whole.drop("rank").write_parquet(file, metadata=job)
    with pytest.raises(JobError, match="other columns than the paths table"):
        read_paths(tmp_path)
