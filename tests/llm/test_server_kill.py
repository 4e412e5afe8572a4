"""Jobs that are killed at any moment, jobs beside one another, and where the key must not be."""

import json
import logging
import random
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from anyo_rl.llm.journal import Journal, read_answers
from anyo_rl.llm.server import Request, Server, ServerError, ask

ROOT = Path(__file__).resolve().parents[2]
JOB = """
import json, sys
from pathlib import Path
from anyo_rl.llm.server import Journal, Request, Server, ask

url, folder, concurrency, n = sys.argv[1:]
server = Server(url, "m", seed=0, concurrency=int(concurrency), first_wait_s=0.01)
requests = [Request(f"u{i}", s, f"prompt {i}") for i in range(int(n)) for s in range(2)]
with Journal(Path(folder)) as journal:
    print(json.dumps(ask(requests, server, journal).report.as_json()))
"""


def start(url, folder, concurrency, n):
    command = [sys.executable, "-c", JOB, url, str(folder), str(concurrency), str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def lines_of(folder):
    """(example, sample) of each whole line, by means of nothing that is tested."""
    lines = [line for file in folder.glob("*") for line in file.read_bytes().split(b"\n")[:-1]]
    return [(row["example_id"], row["sample_index"]) for row in map(json.loads, lines)]


@pytest.mark.slow
@pytest.mark.parametrize(("concurrency", "n_kills"), [(1, 6), (6, 6)])
def test_killed_at_random_moments_nothing_that_arrived_is_asked_for_again(fake_server, tmp_path, concurrency, n_kills):
    rng, n = random.Random(concurrency), 60
    fake_server.gate = lambda key: fake_server.closing.wait(0.002 * concurrency)
    fake_server.plan = lambda key, number: random.Random(f"{key} {number}").choice(["ok"] * 7 + [500, "reset", "half"])

    def key_of(answered):
        return f"u{answered[0].split()[1]}", answered[1]

    for _ in range(n_kills):
        journalled = set(lines_of(tmp_path)) if tmp_path.exists() else set()
        n_before, n_answered = len(fake_server.bodies), len(fake_server.answered)
        job = start(fake_server.url, tmp_path, concurrency, n)
        wanted = rng.randrange(3, 14)  # requests after which it is killed, plus a moment
        while len(fake_server.bodies) < n_before + wanted and job.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.random() * 0.01)
        job.kill()
        assert job.wait() == -9
        job.stdout.close()
        time.sleep(0.1)  # the server's threads end too
        asked = {(f"u{body['prompt'].split()[1]}", body["seed"]) for _, _, body in fake_server.bodies[n_before:]}
        assert not asked & journalled
        # All that the server sent is there, but for what was on its way when the kill came.
        sent = {key_of(key) for key, _ in fake_server.answered[n_answered:]}
        assert len(sent - set(lines_of(tmp_path))) <= concurrency
    journalled = set(lines_of(tmp_path))
    assert 3 <= len(journalled) < 2 * n
    job = start(fake_server.url, tmp_path, concurrency, n)
    report = json.loads(job.communicate(timeout=60)[0])
    assert report["known"] == len(journalled)
    assert report["answered"] == 2 * n - len(journalled)
    # Each key once, and at most `concurrency` answers of each kill were sent twice.
    assert sorted(lines_of(tmp_path)) == sorted((f"u{i}", s) for i in range(n) for s in range(2))
    assert len(list(tmp_path.glob("*"))) == 1
    twice = {key: count for key, count in Counter(key for key, _ in fake_server.answered).items() if count > 1}
    assert sum(twice.values()) - len(twice) <= n_kills * concurrency
    attempts = len(fake_server.bodies)
    assert json.loads(start(fake_server.url, tmp_path, concurrency, n).communicate(timeout=60)[0])["known"] == 2 * n
    assert len(fake_server.bodies) == attempts


@pytest.mark.slow
def test_two_processes_in_one_folder(fake_server, tmp_path):
    n = 60
    meeting = threading.Barrier(2)
    met = Counter()

    def gate(key):  # the first request of each waits for the other: they do overlap
        with fake_server.lock:
            met["n"] += 1
            first_two = met["n"] <= 2
        if first_two:
            meeting.wait(60)

    fake_server.gate = gate
    jobs = [start(fake_server.url, tmp_path, 1, n) for _ in range(2)]
    reports = [json.loads(job.communicate(timeout=100)[0]) for job in jobs]
    assert [report["known"] + report["answered"] for report in reports] == [2 * n, 2 * n]
    assert len(list(tmp_path.glob("*"))) == 2
    assert len(lines_of(tmp_path)) == sum(report["answered"] for report in reports)
    assert sorted((a.example_id, a.sample_index) for a in read_answers(tmp_path).values()) == sorted(
        (f"u{i}", s) for i in range(n) for s in range(2)
    )
    with Journal(tmp_path) as journal:
        requests = [Request(f"u{i}", s, f"prompt {i}") for i in range(n) for s in range(2)]
        assert ask(requests, Server(fake_server.url, "m", seed=0), journal).report.known == 2 * n


def test_the_key_is_nowhere(fake_server, fake_clock, tmp_path, caplog, capfd, sentinel_key):
    """Not even where a server writes it into all that it says."""
    caplog.set_level(logging.DEBUG)
    fake_server.echoes = True
    kinds = {("prompt 1", 0): [500, "html", "error", "ok"], ("prompt 2", 0): ["html"] * 4, ("prompt 3", 0): [403]}
    fake_server.plan = lambda key, number: kinds.get(key, ["ok"])[number]
    server = Server(fake_server.url, "m", seed=0, max_attempts=4, concurrency=1)
    folder = tmp_path / "run"
    said = [repr(server), str(asdict(server))]
    with Journal(folder / "journal") as journal:
        common = {"sleep": fake_clock.sleep, "clock": fake_clock}
        outcome = ask([Request(f"u{i}", 0, f"prompt {i}") for i in range(3)], server, journal, **common)
        assert outcome.answers_R[0].text == "echo of prompt 0 and of Bearer <redacted>"
        assert outcome.report.failed == {"garbage": 1}
        said.append(repr(outcome))
        with pytest.raises(ServerError, match="status 403: m says no to Bearer <redacted>") as caught:
            ask([Request("u3", 0, "prompt 3")], server, journal, **common)
    said += traceback.format_exception(caught.value)
    said += [caplog.text, *capfd.readouterr(), *(str(vars(record)) for record in caplog.records)]
    said += [file.read_text() for file in folder.rglob("*") if file.is_file()]
    assert "attempt 1: server_error (status 500: m says no to Bearer <redacted>)" in caplog.text
    assert fake_server.bodies[0][1]["Authorization"] == f"Bearer {sentinel_key}"
    assert [text for text in said if sentinel_key in text] == []


@pytest.mark.parametrize("key", ["sk-sesame\n", " sk-sesame "])
def test_blanks_around_a_key_are_no_part_of_it(fake_server, tmp_path, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with Journal(tmp_path) as journal:
        ask([Request("u", 0, "hi")], Server(fake_server.url, "m", key_variable="MY_KEY"), journal)
    assert fake_server.bodies[0][1]["Authorization"] == "Bearer sk-sesame"


@pytest.mark.parametrize("key", ["sk\nsesame", "sesame key", "sésame"])
def test_what_cannot_be_a_key_is_not_shown(tmp_path, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with Journal(tmp_path) as journal, pytest.raises(ServerError, match="MY_KEY holds blanks or letters") as caught:
        ask([Request("u", 0, "hi")], Server("http://localhost:9/v1", "m", key_variable="MY_KEY"), journal)
    assert key not in "".join(traceback.format_exception(caught.value))
