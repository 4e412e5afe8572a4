"""The service by real HTTP on the loopback: bad questions are told what was wrong, and no answer is lost."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx2 as httpx
import pytest

from anyo_rl.run.settings import UsageError
from anyo_rl.serve.app import N_EXAMPLES, Limits, make_app
from anyo_rl.serve.guard import MOST_BODY_BYTES
from anyo_rl.serve.recommender import Request
from anyo_rl.serve.worker import ClosedError, FullError, Question, Worker
from tests.serve.services import TITLES, Slow, served


@pytest.fixture(scope="module")
def url(request, run_folder, open_folder):
    with served({"teacher": open_folder(run_folder), "student": open_folder(run_folder / "student")}) as url:
        yield url


def post(url, **asked):
    return httpx.post(f"{url}/recommend", json=asked, timeout=60, trust_env=False)


def get(url, path, **params):
    return httpx.get(f"{url}{path}", params=params, timeout=60, trust_env=False)


def events(url, **asked):
    """The server-sent events of one question."""
    text = httpx.post(f"{url}/recommend/stream", json=asked, timeout=60, trust_env=False).text
    pairs = [part.split("\n") for part in text.strip().split("\n\n")]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in pairs]


def test_answers_are_the_recommenders(url, teacher, student):
    some = teacher.examples(1)[0]
    for name, recommender in {"teacher": teacher, "student": student}.items():
        (expected,) = recommender.answer([some], k=4)
        told = post(url, model=name, example=some.name, k=4).json()
        assert [item["item_id"] for item in told["items"]] == [item.item_id for item in expected.items]
        assert [item["title"] for item in told["items"]] == [item.title for item in expected.items]
        assert (told["target"]["item_id"], told["target"]["rank"]) == (some.target, expected.target_rank)
        assert told["reasons"] == list(expected.reasons)
    titles = [teacher.titles[item].upper() for item in some.history]
    told = post(url, history=titles, k=2, search="mixture", n=2, target=some.target, exclude=[titles[0]]).json()
    (expected,) = teacher.answer([Request(some.history, exclude=some.history[:1])], k=2, search="mixture", n=2)
    assert [item["item_id"] for item in told["items"]] == [item.item_id for item in expected.items]
    assert told["tree"][0] == {
        "number": 0,
        "parent": -1,
        "text": "",
        "value": None,
        "visits": 0,
        "draws": 1,
        "weight": None,
    }
    assert sum(node["weight"] or 0 for node in told["tree"]) == pytest.approx(1)
    assert post(url, history=titles, reasons=False).json()["tree"] is None


@pytest.mark.parametrize(
    ("asked", "status", "told"),
    [
        ({"history": ["no such thing"]}, 422, "no item is called 'no such thing'; the nearest are"),
        ({"history": []}, 422, "the history is empty, and grpo never met one"),
        ({}, 422, "give a history, or the id of one of /examples"),
        ({"example": "nobody:1"}, 422, "no example is called 'nobody:1'"),
        ({"history": ["{0}"], "k": 0}, 422, "k: Input should be greater than or equal to 1"),
        ({"history": ["{0}"], "k": 1001}, 422, "k: Input should be less than or equal to 1000"),
        ({"history": ["{0}"], "k": "5"}, 422, "k: Input should be a valid integer"),
        ({"history": ["{0}"], "n": 65}, 422, "n: Input should be less"),
        ({"history": ["{0}"], "search": "astar"}, 422, "search: Input should be"),
        ({"history": ["{0}"], "model": "oracle"}, 422, "model is 'oracle': expected one of teacher, student"),
        ({"history": ["{0}"], "model": "student", "search": "mcts"}, 422, "student answers at once"),
        ({"history": ["{0}"] * 1001}, 422, "history: List should have at most 1000 items"),
        ({"history": ["x" * 501]}, 422, "history.0: String should have at most 500 characters"),
        ({"history": ["{0}"], "only": []}, 422, "nothing is left to recommend"),
        ({"history": ["{0}"], "rank": 1}, 422, "rank: Extra inputs are not permitted"),
        ({"history": "{0}"}, 422, "history: Input should be a valid list"),
    ],
)
def test_bad_questions_are_told_what_is_wrong(url, teacher, asked, status, told):
    known = next(iter(teacher.titles))
    body = json.dumps(asked).replace("{0}", known)
    for path in ("/recommend", "/recommend/stream"):
        headers = {"Content-Type": "application/json"}
        found = httpx.post(f"{url}{path}", content=body, headers=headers, timeout=60, trust_env=False)
        assert (found.status_code, list(found.json())) == (status, ["error"])
        assert told in found.json()["error"]


def test_wrong_json_and_huge_bodies(url):
    headers = {"Content-Type": "application/json"}

    def send(content):
        return httpx.post(f"{url}/recommend", content=content, headers=headers, trust_env=False)

    assert send(b'{"history": [').status_code == 400
    assert send(b'{"history": [').json()["error"].startswith("the body is no JSON: ")
    assert send(b"[1]").status_code == 422
    assert send(b"\xff\xfe").status_code in (400, 422)
    huge = json.dumps({"history": ["x" * 100] * MOST_BODY_BYTES}).encode()
    assert (send(huge).status_code, "bytes" in send(huge).json()["error"]) == (413, True)
    parts = (huge[start : start + 1000] for start in range(0, len(huge), 1000))  # no Content-Length
    assert send(parts).status_code == 413


def test_more_items_than_there_are(url, teacher):
    history = teacher.examples(1)[0].history
    for name in ("teacher", "student"):
        told = post(url, history=history, k=1000, model=name).json()
        assert sorted(item["item_id"] for item in told["items"]) == sorted(teacher.titles)


def test_what_there_is_to_look_at(url, teacher):
    about = get(url, "/about").json()
    assert [model["model"] for model in about["models"]] == ["teacher", "student"]
    assert about["models"][0]["searches"][:2] == ["plain", "greedy"]
    assert about["models"][1]["searches"] == ["plain"]
    found = get(url, "/items", query="oak", limit=3).json()
    assert len(found) == 3
    assert set(found[0]) == {"item_id", "title"}
    assert get(url, "/items", limit=1000).status_code == 422
    example = get(url, "/examples", limit=2).json()[0]
    first = teacher.examples(N_EXAMPLES)[0]
    assert (example["example"], example["target"]["item_id"]) == (first.name, first.target)
    assert get(url, "/health").json() == {"status": "ok", "waiting": {"teacher": 0, "student": 0}}
    metrics = get(url, "/metrics").text
    assert 'anyo_rl_requests_total{path="/health",status="200"}' in metrics
    assert get(url, "/nothing/there").json() == {"error": "Not Found"}
    assert 'path="other",status="404"' in get(url, "/metrics").text


def test_pages_load_nothing_from_elsewhere(url):
    for path in ("/", "/docs"):
        page = get(url, path)
        guarded = page.headers["content-security-policy"]
        assert "default-src 'none'" in guarded
        assert "unsafe" not in guarded
        assert "http" not in guarded
        assert "://" not in page.text
        assert page.headers["x-content-type-options"] == "nosniff"
    paths = get(url, "/openapi.json").json()["paths"]
    assert {"/recommend", "/recommend/stream", "/items", "/examples", "/health", "/metrics", "/about"} == set(paths)
    assert all(path in get(url, "/docs").text for path in paths)


@pytest.mark.parametrize("search", ["mixture", "step_beam"])
def test_steps_come_before_the_answer(url, teacher, search):
    some = teacher.examples(1)[0]
    *steps, (kind, answer) = events(url, example=some.name, search=search, n=2)
    assert kind == "answer"
    assert {kind for kind, _ in steps} == {"steps"}
    assert set(answer["reasons"]) <= {step for _, told in steps for step in told["steps"]}
    plain = post(url, example=some.name, search=search, n=2).json()
    assert (answer["items"], answer["tree"]) == (plain["items"], plain["tree"])
    ((kind, _),) = events(url, example=some.name, model="student")
    assert kind == "answer"


class TestQueue:
    @pytest.fixture
    def slow(self, student):
        return Slow(student)

    def test_a_full_queue_is_told_at_once(self, slow):
        with served({"student": slow}, Limits(most_waiting=2)) as url, ThreadPoolExecutor(8) as pool:
            first = pool.submit(post, url, history=["mug"])
            assert slow.begun.acquire(timeout=10)
            queued = [pool.submit(post, url, history=["mug"], k=2) for _ in range(2)]
            while get(url, "/health").json()["waiting"] != {"student": 2}:
                time.sleep(0.01)
            refused = post(url, history=["mug"])
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"].startswith("too many questions are waiting")
            slow.go.set()
            assert [one.result().status_code for one in (first, *queued)] == [200, 200, 200]
            assert len(slow.asked) == 2  # the two that were alike were answered together
            assert post(url, history=["mug"]).status_code == 200

    def test_what_takes_too_long_is_told_and_not_begun(self, slow):
        with served({"student": slow}, Limits(timeout_s=0.3)) as url, ThreadPoolExecutor(2) as pool:
            late = [pool.submit(post, url, history=["mug"]), pool.submit(post, url, history=["mug"], k=3)]
            assert [one.result().status_code for one in late] == [504, 504]
            assert "no answer within 0.3 s" in late[0].result().json()["error"]
            assert events(url, history=["mug"])[0][0] == "problem"
            slow.go.set()
            assert post(url, history=["mug"], k=4).status_code == 200
            assert len(slow.asked) == 2  # the first one, and the last

    def test_one_that_cannot_be_answered_spoils_no_other(self, slow):
        with served({"student": slow}) as url, ThreadPoolExecutor(4) as pool:
            blocker = pool.submit(post, url, history=["mug"], k=2)
            assert slow.begun.acquire(timeout=10)
            both = [pool.submit(post, url, history=[name]) for name in ("mug", "lamp")]
            while get(url, "/health").json()["waiting"] != {"student": 2}:
                time.sleep(0.01)
            slow.go.set()
            assert blocker.result().status_code == 200
            assert [one.result().status_code for one in both] == [200, 422]
            assert both[1].result().json() == {"error": "no lamps"}

    def test_markup_in_titles_stays_text(self, slow):
        slow.go.set()
        with served({"student": slow}) as url:
            told = post(url, example="u:2")
            assert told.json()["items"][0]["title"] == TITLES
            assert told.json()["target"] == {"item_id": "i1", "title": TITLES, "rank": 2}
            assert told.headers["content-type"] == "application/json"
            assert post(url, history=[TITLES]).status_code == 200

    def test_shutting_down_answers_what_has_begun(self, slow):
        worker = Worker(slow, most_waiting=4)
        begun, queued = worker.submit(Question(Request(("i0",)), 1)), worker.submit(Question(Request(("i0",)), 2))
        assert slow.begun.acquire(timeout=10)
        threading.Timer(0.2, slow.go.set).start()
        worker.close(10)
        assert [one.result(1).items[0].item_id for one in (begun, queued)] == ["i1", "i1"]
        with pytest.raises(ClosedError):
            worker.submit(Question(Request(("i0",)), 1))

    def test_closing_waits_no_longer_than_told(self, slow):
        worker = Worker(slow, most_waiting=1)
        worker.submit(Question(Request(("i0",)), 1))
        assert slow.begun.acquire(timeout=10)
        queued = worker.submit(Question(Request(("i0",)), 2))
        with pytest.raises(FullError):
            worker.submit(Question(Request(("i0",)), 2))
        worker.close(0.1)
        assert queued.cancelled()
        slow.go.set()

    def test_models_of_other_items(self, slow, student):
        with pytest.raises(UsageError, match="other recommends other items than student"):
            make_app({"student": student, "other": slow})


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def command(run_folder: Path, port: int, log: Path):
    """The documented command, until the end of the block."""
    flags = [run_folder, "--student", run_folder / "student", "--port", port]
    with log.open("a") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "anyo_rl.serve", *map(str, flags)], stdout=stream, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + 120
        while True:
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(httpx.HTTPError):
                if get(f"http://127.0.0.1:{port}", "/health").status_code == 200:
                    break
            assert time.monotonic() < end
            time.sleep(0.2)
        yield SimpleNamespace(process=process, url=f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
class TestCommand:
    def test_killed_mid_request_and_started_again(self, run_folder, tmp_path, teacher):
        port, some = free_port(), teacher.examples(1)[0]
        asked = {"example": some.name, "search": "mixture", "n": 64, "k": 100}
        with command(run_folder, port, tmp_path / "log") as running, ThreadPoolExecutor(1) as pool:
            cut = pool.submit(post, running.url, **asked)
            time.sleep(0.1)
            assert not cut.done()
            os.kill(running.process.pid, signal.SIGKILL)
            with pytest.raises(httpx.HTTPError):
                cut.result()
        with command(run_folder, port, tmp_path / "log") as running:
            first, again = (post(running.url, **asked) for _ in range(2))
            assert first.status_code == again.status_code == 200
            assert first.json()["items"] == again.json()["items"]
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(30) in (0, -signal.SIGTERM)

    def test_the_benchmark_reports_both(self, run_folder, tmp_path, repo_root):
        flags = [run_folder, "--student", run_folder / "student", "--requests", 4, "--at_once", 2]
        flags += ["--port", free_port(), "--json", tmp_path / "numbers.json"]
        command = [sys.executable, repo_root / "benchmarks" / "serve.py", *flags]
        subprocess.run([*map(str, command)], check=True)
        rows = json.loads((tmp_path / "numbers.json").read_text())["rows"]
        assert [row["name"].partition(" ")[0] for row in rows] == ["teacher", "teacher", "student", "student"]
        assert {row["agree"] for row in rows} == {1.0}

    def test_wrong_flags_end_in_a_line(self, run_folder, tmp_path):
        for flags, told in (
            ([tmp_path / "none"], "found no folder"),
            ([run_folder, "--stage", "ppo"], "has no finished stage 'ppo'; it has grpo"),
            ([run_folder, "--most_waiting", "0"], "most_waiting is 0: expected 1 or more"),
        ):
            ended = subprocess.run(
                [sys.executable, "-m", "anyo_rl.serve", *map(str, flags)], capture_output=True, text=True, check=False
            )
            assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)
            assert told in ended.stderr


@pytest.mark.slow
@pytest.mark.parametrize("model", ["teacher", "student"])
def test_two_hundred_requests_at_twenty_at_once(url, teacher, student, model):
    """None ends in an error, and each gets its own answer."""
    recommender = teacher if model == "teacher" else student
    asked = recommender.examples(8)
    expected = [[item.item_id for item in one.items] for one in recommender.answer(asked, k=5)]
    with httpx.Client(trust_env=False, timeout=120) as client, ThreadPoolExecutor(20) as pool:

        def ask(number: int) -> list[str]:
            told = client.post(
                f"{url}/recommend", json={"example": asked[number % len(asked)].name, "k": 5, "model": model}
            )
            assert told.status_code == 200, told.text
            return [item["item_id"] for item in told.json()["items"]]

        found = list(pool.map(ask, range(200)))
    assert found == [expected[number % len(asked)] for number in range(200)]
