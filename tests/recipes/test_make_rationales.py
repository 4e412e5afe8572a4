"""make_rationales as it is started from the command line, against a server that fails a third of the time.

It is killed ANYO_RL_KILLS times, once by default; with -s the test says what it counted.
"""

import json
import os
import random
import runpy
import sys
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from anyo_rl.data.task import DataArguments, load_task

pytestmark = pytest.mark.slow

N_KILLS = int(os.environ.get("ANYO_RL_KILLS", "1"))
N_EXAMPLES = 40 + 20 * N_KILLS
N_SAMPLES, CONCURRENCY = 2, 4  # as in the config
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMOKE = Path(__file__).parent / "configs"
FLAGS = ("--config", SMOKE / "rationales.yaml")
FAULTS = [429, 500, "reset", "cut", "html", "half", "odd", "hang"]


def plan(key, number):
    """What the server does with an attempt: a fault for 30% of them."""
    rng = random.Random(f"{key} {number}")
    fault = rng.choice(FAULTS)
    return "ok" if rng.random() >= 0.3 else (fault, {"Retry-After": "0"}) if fault == 429 else fault


def say(key):
    """Answers that are good, bad in some way, and tell the key, which a server could do."""

    def text(prompt, seed):
        rng = random.Random(f"{prompt} {seed}")
        target = prompt.split("<target>\n")[1].split("\n")[0]
        tastes = " and ".join(rng.sample(["tea", "books", "lamps", "pens", "wood", "linen", "colour", "order"], 3))
        steps = f"this user has cared for {tastes} of late\nnow something like that, a grade higher, is missing"
        item = rng.choice([target] * 5 + ["no such item"])
        leak = rng.choice([""] * 4 + [f"\nso {target} it is"])
        return f"{steps}{leak}\n-> {item}\nAuthorization: Bearer {key}"

    return text


def journalled(run: Path) -> list[tuple[str, int]]:
    """(example, sample) of each whole line, by means of nothing that is tested."""
    lines = [line for file in (run / "journal").glob("*") for line in file.read_bytes().split(b"\n")[:-1]]
    return [(row["example_id"], row["sample_index"]) for row in map(json.loads, lines)]


def asked(bodies) -> set[tuple[str, int]]:
    """(prompt, sample) of requests."""
    return {(body["messages"][-1]["content"], body["seed"]) for _, _, body in bodies}


def everything_written(run: Path) -> str:
    """All bytes of a folder as text; what is in tables comes unpacked as well."""
    files = [file for file in run.rglob("*") if file.is_file()]
    tables = [str(pl.read_parquet(file).rows()) for file in files if file.suffix == ".parquet"]
    return "\n".join([*(file.read_bytes().decode("latin-1") for file in files), *tables])


def test_killed_again_and_again_every_example_comes_once_and_sft_trains_on_it(
    fake_server, launcher, tmp_path, sentinel_key
):
    run, rng = tmp_path / "run", random.Random(0)
    flags = (*FLAGS, "--url", fake_server.url, "--max_examples", N_EXAMPLES, "--output_dir", run)
    fake_server.say = say(sentinel_key)
    fake_server.gate = lambda key: fake_server.closing.wait(0.03)
    kinds = Counter()

    def counted(key, number):
        kind = plan(key, number)
        with fake_server.lock:
            kinds[kind if kind in ("ok", *FAULTS) else kind[0]] += 1
        return kind

    fake_server.plan = counted
    starts = []  # what was in the journal at each start, and the first of its requests
    for _ in range(N_KILLS):
        starts.append((set(journalled(run)), len(fake_server.bodies)))
        wanted = len(fake_server.bodies) + rng.randrange(5, N_EXAMPLES * N_SAMPLES // (N_KILLS + 1))
        launched = launcher.run_command([sys.executable, *map(str, (RECIPES / "make_rationales.py", *flags))])
        launched.kill_when(lambda wanted=wanted: len(fake_server.bodies) >= wanted)
        assert not (run / "paths.parquet").exists()
        time.sleep(0.1)  # the server's threads end too
    starts.append((set(journalled(run)), len(fake_server.bodies)))
    assert 0 < len(starts[-1][0]) < N_EXAMPLES * N_SAMPLES
    output = launcher.finish("make_rationales", *flags)

    report = json.loads((run / "rationales.json").read_text())
    counts = report["counts"]
    assert sum(counts.values()) == report["requests"] == N_EXAMPLES * N_SAMPLES
    assert counts["failed"] == counts["left"] == 0
    assert report["this_start"]["known"] == len(starts[-1][0])
    assert min(counts[name] for name in ("kept", "wrong_item", "leak", "duplicate")) > 0
    assert f"| kept | {counts['kept']} |" in output

    paths = pl.read_parquet(run / "paths.parquet")
    keys = paths.select("example_id", "sample_index").rows()
    assert len(keys) == len(set(keys)) == N_EXAMPLES * N_SAMPLES
    assert sorted(journalled(run)) == sorted(keys)  # each answer once there too
    prompts = dict(paths.select("example_id", "prompt").iter_rows())
    assert len(set(prompts.values())) == len(prompts) == N_EXAMPLES
    for known, first in starts:
        assert not asked(fake_server.bodies[first:]) & {(prompts[example], sample) for example, sample in known}
    # What a kill lost is what was on its way.
    answered = [key for key, _ in fake_server.answered]
    assert len(answered) - len(set(answered)) <= N_KILLS * CONCURRENCY
    print(
        f"{N_KILLS} kills, with {[len(known) for known, _ in starts[1:]]} answers in the journal after each; "
        f"{len(fake_server.bodies)} attempts at {len(keys)} requests: {dict(kinds)}; {len(answered)} whole answers "
        f"sent, {len(answered) - len(set(answered))} of them twice; outcomes: {counts}"
    )

    dataset = pl.read_parquet(run / "rationales" / "train.parquet")
    assert len(dataset) == counts["kept"]
    assert set(dataset.select("example_id", "sample_index").rows()) <= set(keys)
    task = load_task(
        DataArguments(toy_users=120, toy_categories=5, rationale_share=0.5, rationales_path=str(run / "rationales"))
    )
    assert set(task.rationales) == set(dataset["example_id"])
    assert sentinel_key not in everything_written(run)
    assert sentinel_key not in output
    assert all("Authorization: Bearer <redacted>" in text for text in paths["completion"])

    sft = tmp_path / "sft"
    launcher.finish("sft_teacher", "--config", SMOKE / "sft.yaml", "--rationales_path", run, "--output_dir", sft)
    assert (sft / "sft" / "teacher").exists()


def started_here(monkeypatch, capsys, *flags) -> str:
    """What the recipe says, and how it ends, in this process: to start another takes longer than it does."""
    monkeypatch.setattr(sys, "argv", [str(part) for part in ("make_rationales.py", *flags)])
    end = ""
    try:
        runpy.run_path(str(RECIPES / "make_rationales.py"))["main"]()
    except SystemExit as stop:
        end = f"{stop.code}"
    return "".join(capsys.readouterr()) + end


def test_a_budget_ends_a_run_well_and_an_error_with_its_message(
    fake_server, tmp_path, sentinel_key, monkeypatch, capsys
):
    run = tmp_path / "run"
    flags = (*FLAGS, "--url", fake_server.url, "--max_examples", 8, "--n_samples", 1, "--output_dir", run)
    fake_server.say = say(sentinel_key)
    fake_server.usage = {"prompt_tokens": 900, "completion_tokens": 100}
    output = started_here(monkeypatch, capsys, *flags, "--max_tokens_in_all", 5000)
    report = json.loads((run / "rationales.json").read_text())
    assert report["stopped"] == "budget"
    assert 0 < report["counts"]["left"] < 8
    assert len(pl.read_parquet(run / "paths.parquet")) == 8 - report["counts"]["left"]
    assert "the budget ended: the same command with a larger one" in output

    fake_server.plan = lambda key, number: 401
    refused = started_here(monkeypatch, capsys, *flags)
    assert "error: http://127.0.0.1" in refused
    assert "look at the key" in refused
    report = json.loads((run / "rationales.json").read_text())
    assert (report["stopped"], sum(report["counts"].values())) == ("error", 8)

    fake_server.plan = lambda key, number: "ok"
    assert "to train on them: --rationales_path" in started_here(monkeypatch, capsys, *flags)
    paths = pl.read_parquet(run / "paths.parquet")
    assert len(paths) == 8

    # Nothing is asked for a start that finds all.
    n_before = len(fake_server.bodies)
    started_here(monkeypatch, capsys, *flags)
    assert len(fake_server.bodies) == n_before
    assert pl.read_parquet(run / "paths.parquet").equals(paths)

    # With another prompt all would be paid for anew.
    mine = tmp_path / "mine.yaml"
    mine.write_text("user: 'Why? {{ history }} {{ target }}'\n")
    other = started_here(monkeypatch, capsys, *flags, "--prompt_path", mine)
    assert "name another --output_dir" in other
    assert sentinel_key not in everything_written(run) + output + refused + other
