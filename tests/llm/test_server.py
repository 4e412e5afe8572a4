"""Answers from a server with faults: each request comes out once, and counts are exact."""

import asyncio
import random
import threading
from collections import Counter

import pytest

import anyo_rl.llm.server as server_module
from anyo_rl.llm.http import Reply
from anyo_rl.llm.journal import Journal, read_answers
from anyo_rl.llm.server import Answer, Failure, Request, Server, ServerError, ask, ask_async

CAUSE = {429: "rate_limit", 500: "server_error", 503: "server_error", 529: "server_error"}
CAUSE |= {408: "timeout", "hang": "timeout", "reset": "connection", "cut": "cut"}
CAUSE |= dict.fromkeys(("html", "half", "empty", "no choices", "error", "odd", "odd usage"), "garbage")


class Highest(random.Random):
    """No luck: jitter is always the most that it may be."""

    def uniform(self, low, high):
        return high


def requests_of(n_examples, n_samples=1):
    return [Request(f"u{i}", s, f"prompt {i:02}") for i in range(n_examples) for s in range(n_samples)]


def run(fake_server, fake_clock, tmp_path, requests, rng=None, **settings):
    server = Server(fake_server.url, "m", seed=0, **{"timeout_s": 30.0, **settings})
    with Journal(tmp_path / "journal") as journal:
        return ask(requests, server, journal, sleep=fake_clock.sleep, clock=fake_clock, rng=rng)


def test_answers_come_in_the_order_of_their_requests(fake_server, fake_clock, tmp_path):
    requests = requests_of(5, n_samples=2)
    prices = {"prompt_price": 2.0, "completion_price": 8.0}
    outcome = run(fake_server, fake_clock, tmp_path, requests, parameters={"temperature": 0.5}, **prices)
    assert [(a.example_id, a.sample_index, a.text) for a in outcome.answers_R] == [
        (r.example_id, r.sample_index, f"echo of {r.prompt}") for r in requests
    ]
    assert {(a.finish_reason, a.prompt_tokens, a.completion_tokens, a.attempts) for a in outcome.answers_R} == {
        ("stop", 10, 5, 1)
    }
    assert all(a.money == pytest.approx(10 * 2e-6 + 5 * 8e-6) for a in outcome.answers_R)
    assert read_answers(tmp_path / "journal") == {answer.key: answer for answer in outcome.answers_R}
    report = outcome.report.as_json()
    assert (report.pop("money"), report.pop("money_in_all")) == (pytest.approx(6e-4), pytest.approx(6e-4))
    counts = {"requests": 10, "known": 0, "asked": 10, "answered": 10, "left": 0, "attempts": 10, "without_usage": 0}
    tokens = {"prompt_tokens": 100, "completion_tokens": 50, "tokens_in_all": 150}
    assert report == counts | tokens | {"retried": {}, "failed": {}, "seconds": 0.0, "stopped": None}


def test_prompts_go_to_their_endpoints(fake_server, fake_clock, tmp_path, sentinel_key):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello"}]
    requests = [Request("chat", 0, messages), Request("text", 1, "hi"), Request("ids", 2, [5, 6])]
    one_by_one = {"parameters": {"max_tokens": 7}, "concurrency": 1}
    outcome = run(fake_server, fake_clock, tmp_path, requests, **one_by_one)
    assert [answer.text for answer in outcome.answers_R] == ["echo of hello", "echo of hi", "echo of [5, 6]"]
    common = {"model": "m", "max_tokens": 7}
    assert [(path, body) for path, _, body in fake_server.bodies] == [
        ("/v1/chat/completions", {**common, "messages": messages, "seed": 0}),
        ("/v1/completions", {**common, "prompt": "hi", "seed": 1}),  # each sample with a seed of its own
        ("/v1/completions", {**common, "prompt": [5, 6], "seed": 2}),
    ]
    assert {headers["Authorization"] for _, headers, _ in fake_server.bodies} == {f"Bearer {sentinel_key}"}


def test_a_server_that_wants_no_key_gets_none(fake_server, fake_clock, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    run(fake_server, fake_clock, tmp_path, requests_of(1), key_variable=None)
    assert "Authorization" not in fake_server.bodies[0][1]
    with pytest.raises(ServerError, match="found no OPENAI_API_KEY in the environment"):
        run(fake_server, fake_clock, tmp_path, requests_of(1))


@pytest.mark.slow
def test_of_three_faults_in_ten_attempts_each_is_counted(fake_server, fake_clock, tmp_path):
    kinds = sorted(CAUSE, key=str)

    def plan(key, number):
        rng = random.Random(f"1 {key} {number}")
        return rng.choice(kinds) if rng.random() < 0.3 else "ok"

    requests, most = requests_of(100), 3
    retried, failed, attempts = Counter(), Counter(), {}
    for request in requests:
        for number in range(most):
            kind = plan((request.prompt, 0), number)
            attempts[request.example_id] = number + 1
            if kind == "ok":
                break
            (failed if number == most - 1 else retried)[CAUSE[kind]] += 1
    assert set(retried) == set(CAUSE.values())
    assert failed.total() >= 1
    fake_server.plan = plan
    outcome = run(fake_server, fake_clock, tmp_path, requests, max_attempts=most, concurrency=16, timeout_s=2.0)
    report = outcome.report
    assert report.retried == dict(retried)
    assert report.failed == dict(failed)
    assert report.attempts == sum(attempts.values()) == fake_server.tries.total()
    assert report.asked == 100
    assert report.answered == 100 - failed.total() == len(read_answers(tmp_path / "journal"))
    assert [a.attempts for a in outcome.answers_R] == list(attempts.values())
    failures = [a for a in outcome.answers_R if isinstance(a, Failure)]
    assert Counter(failure.cause for failure in failures) == failed
    # A failure is in no journal: started again, it and nothing else is asked for.
    fake_server.plan = lambda key, number: "ok"
    again = run(fake_server, fake_clock, tmp_path, requests)
    assert again.report.known == 100 - failed.total()
    assert again.report.attempts == again.report.answered == failed.total()
    assert all(isinstance(answer, Answer) for answer in again.answers_R)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_waited_for_by_all(fake_server, fake_clock, tmp_path, status):
    fake_server.clock = fake_clock
    first = ("prompt 00", 0)
    fake_server.plan = lambda key, number: (status, {"Retry-After": "7"}) if (key, number) == (first, 0) else "ok"
    outcome = run(fake_server, fake_clock, tmp_path, requests_of(1))
    assert outcome.answers_R[0].attempts == 2
    assert 7 <= fake_server.times[1] - fake_server.times[0] <= 8

    fake_server.times.clear()
    fake_server.tries.clear()
    fake_clock.sleeping.clear()
    fake_clock.sleeps.clear()
    fake_clock.together = 4
    # All four are in flight when one is refused, and the others come back while it sleeps.
    fake_server.gate = lambda key: fake_server.wait_for_requests(4) if key == first else fake_clock.sleeping.wait(60)
    outcome = run(fake_server, fake_clock, tmp_path / "many", requests_of(12), concurrency=4)
    begin = fake_server.times[0]
    assert fake_server.times.count(begin) == 4
    assert all(time >= begin + 7 for time in fake_server.times[4:])
    assert outcome.report.retried == {"rate_limit" if status == 429 else "server_error": 1}


def test_waits_double_up_to_a_limit(fake_server, fake_clock, tmp_path):
    fake_server.plan = lambda key, number: "ok" if number == 5 else 500
    settings = {"max_attempts": 6, "first_wait_s": 0.5, "max_wait_s": 3.0}
    run(fake_server, fake_clock, tmp_path, requests_of(1), rng=Highest(), **settings)
    assert fake_clock.sleeps == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_wait_that_is_too_long_ends_the_job(fake_server, fake_clock, tmp_path):
    fake_server.plan = lambda key, number: (429, {"Retry-After": "86400"})
    with pytest.raises(ServerError, match="asks for a wait of 86400 s, above max_wait_s 120"):
        run(fake_server, fake_clock, tmp_path, requests_of(3), concurrency=1)
    assert fake_server.tries.total() == 1
    assert fake_clock.sleeps == []


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, None, "answered with status 401: m says no to Bearer <redacted>. Expected 200: look at the key"),
        (404, None, "answered with status 404: m says no to Bearer <redacted>. Expected 200: look at the url"),
        (400, None, "answered with status 400: m says no to Bearer <redacted>. Expected 200: look at the parameters"),
        (301, None, "answered with status 301"),
        (429, "insufficient_quota", "has no money left for this key"),
    ],
)
def test_a_refusal_ends_the_job_and_keeps_what_arrived(fake_server, fake_clock, tmp_path, status, code, message):
    fake_server.code = code
    fake_server.plan = lambda key, number: status if key[0] == "prompt 03" else "ok"
    with pytest.raises(ServerError, match=message) as caught:
        run(fake_server, fake_clock, tmp_path, requests_of(9), concurrency=1)
    assert fake_server.tries.total() == 4
    assert len(read_answers(tmp_path / "journal")) == 3
    report = caught.value.report
    assert (report.answered, report.left, report.attempts) == (3, 6, 4)


@pytest.fixture
def stopped(monkeypatch):
    """Is set once a job has been told to stop."""
    event, stop = threading.Event(), server_module._Job.stop

    def told(job, error):
        stop(job, error)
        event.set()

    monkeypatch.setattr(server_module._Job, "stop", told)
    return event


def test_what_is_in_flight_at_a_refusal_is_kept(fake_server, fake_clock, tmp_path, stopped):
    fake_server.gate = lambda key: (
        fake_server.wait_for_requests(4) if key[0] == "prompt 03" else stopped.wait(60)  # the refusal comes first
    )
    fake_server.plan = lambda key, number: 401 if key[0] == "prompt 03" else "ok"
    with pytest.raises(ServerError, match="status 401"):
        run(fake_server, fake_clock, tmp_path, requests_of(9), concurrency=4)
    assert len(read_answers(tmp_path / "journal")) == 3
    assert fake_server.tries.total() == 4


def test_a_status_of_single_prompts_can_be_named(fake_server, fake_clock, tmp_path):
    fake_server.plan = lambda key, number: 400 if key[0] == "prompt 03" else "ok"
    outcome = run(fake_server, fake_clock, tmp_path, requests_of(9), skip_statuses=(400,))
    assert outcome.report.failed == {"refused": 1}
    assert outcome.answers_R[3] == Failure("u3", 0, "refused", "status 400: m says no to Bearer <redacted>", 1)
    assert outcome.report.answered == 8


def test_where_nothing_works_the_job_ends(fake_server, fake_clock, tmp_path):
    fake_server.plan = lambda key, number: 500
    with pytest.raises(ServerError, match=r"nothing works: the last 2 requests .*server_error 2.*status 500"):
        run(fake_server, fake_clock, tmp_path, requests_of(2), max_attempts=2)
    fake_server.tries.clear()
    with pytest.raises(ServerError, match="the last 3 requests"):
        run(fake_server, fake_clock, tmp_path, requests_of(50), concurrency=1, max_attempts=2, max_failures_in_a_row=3)
    assert fake_server.tries.total() == 6


def test_a_server_that_is_not_there(fake_server, fake_clock, tmp_path):
    fake_server.close()
    with pytest.raises(ServerError, match=r"nothing works.*connection 1"):
        run(fake_server, fake_clock, tmp_path, requests_of(1), max_attempts=3)
    assert len(fake_clock.sleeps) == 2


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize("unit", ["tokens", "money"])
def test_a_budget_is_kept_and_a_larger_one_goes_on(fake_server, fake_clock, tmp_path, concurrency, unit):
    # An answer takes 15 tokens; set aside are 11 bytes of prompt in quotes and 9 for the answer, 20 in all.
    requests = requests_of(20)
    common = {
        "parameters": {"max_tokens": 9},
        "concurrency": concurrency,
        "prompt_price": 1e6,
        "completion_price": 1e6,
    }

    def within(limit):
        budget = {"max_tokens_in_all": limit} if unit == "tokens" else {"max_money": float(limit)}
        return run(fake_server, fake_clock, tmp_path, requests, **common, **budget)

    outcome = within(100)  # 20 fit beside 75, and not beside 90
    assert outcome.report.stopped == "budget"
    assert (outcome.report.answered, outcome.report.left) == (6, 14)
    assert (outcome.report.tokens_in_all, outcome.report.money_in_all) == (90, 90.0)
    assert outcome.answers_R.count(None) == 14
    assert within(100).report.attempts == 0
    outcome = within(160)  # beside 135, and not beside 150
    assert (outcome.report.known, outcome.report.answered, outcome.report.left) == (6, 4, 10)
    outcome = within(1000)
    assert (outcome.report.known, outcome.report.left, outcome.report.stopped) == (10, 0, None)
    assert set(fake_server.tries.values()) == {1}


def test_a_budget_needs_a_server_that_counts(fake_server, fake_clock, tmp_path):
    fake_server.usage = None
    outcome = run(fake_server, fake_clock, tmp_path / "free", requests_of(2))
    assert (outcome.report.without_usage, outcome.report.tokens_in_all) == (2, 0)
    budget = {"parameters": {"max_tokens": 5}, "max_tokens_in_all": 1000}
    with pytest.raises(ServerError, match="does not count tokens"):
        run(fake_server, fake_clock, tmp_path, requests_of(9), concurrency=1, **budget)
    assert len(read_answers(tmp_path / "journal")) == 1


def test_other_parameters_or_prompts_are_asked_for_anew(fake_server, fake_clock, tmp_path):
    requests = requests_of(2)
    assert run(fake_server, fake_clock, tmp_path, requests).report.answered == 2
    assert run(fake_server, fake_clock, tmp_path, requests, concurrency=3).report.known == 2
    assert run(fake_server, fake_clock, tmp_path, requests, parameters={"top_p": 0.9}).report.known == 0
    changed = [Request("u0", 0, "other"), requests[1]]
    assert run(fake_server, fake_clock, tmp_path, changed).report.known == 1
    with pytest.raises(ValueError, match="1 requests come twice, the first: example 'u0', sample 0"):
        run(fake_server, fake_clock, tmp_path, [*requests, requests[0]])


def test_an_error_of_the_disk_ends_the_job_and_others_in_flight_are_kept(
    fake_server, fake_clock, tmp_path, monkeypatch, stopped
):
    append = Journal.append

    def full(journal, answer):
        if answer.example_id == "u0":
            raise OSError(28, "No space left on device")
        append(journal, answer)

    fake_server.gate = lambda key: fake_server.wait_for_requests(2) if key[0] == "prompt 00" else stopped.wait(60)
    monkeypatch.setattr(Journal, "append", full)
    with pytest.raises(OSError, match="No space left"):
        run(fake_server, fake_clock, tmp_path, requests_of(9), concurrency=2)
    assert fake_server.tries.total() == 2
    assert [key[0] for key in read_answers(tmp_path / "journal")] == ["u1"]


def test_an_answer_is_journalled_before_anything_else_happens(tmp_path, monkeypatch):
    events = []

    async def arrive(*_):
        asyncio.get_running_loop().call_soon(events.append, "the loop went on")
        return Reply("text", "stop", 1, 1)

    monkeypatch.setattr(server_module, "attempt", arrive)
    monkeypatch.setattr(Journal, "append", lambda journal, answer: events.append(answer.text))
    with Journal(tmp_path) as journal:
        ask(requests_of(1), Server("http://host/v1", "m", key_variable=None), journal)
    assert events == ["text", "the loop went on"]


def test_blanks_for_ever_are_no_answer(fake_server, fake_clock, tmp_path):
    fake_server.plan = lambda key, number: "ok" if number else "trickle"
    outcome = run(fake_server, fake_clock, tmp_path, requests_of(1), timeout_s=1.0)
    assert outcome.report.retried == {"timeout": 1}


def test_a_refusal_wakes_those_that_wait_for_another_attempt(fake_server, tmp_path):
    asleep = threading.Event()

    async def for_long(seconds):
        asleep.set()
        await asyncio.sleep(600)

    fake_server.gate = lambda key: key[0] == "prompt 00" or asleep.wait(60)
    fake_server.plan = lambda key, number: 500 if key[0] == "prompt 00" else 401

    async def main():
        with Journal(tmp_path) as journal:
            job = ask_async(requests_of(2), Server(fake_server.url, "m"), journal, sleep=for_long)
            await asyncio.wait_for(job, timeout=60)

    with pytest.raises(ServerError, match="status 401"):
        asyncio.run(main())


def test_failures_between_answers_do_not_end_the_job(fake_server, fake_clock, tmp_path):
    fake_server.plan = lambda key, number: 500 if int(key[0].split()[1]) % 3 else "ok"
    settings = {"concurrency": 1, "max_attempts": 1, "max_failures_in_a_row": 3}
    report = run(fake_server, fake_clock, tmp_path, requests_of(12), **settings).report
    assert (report.answered, report.failed) == (4, {"server_error": 8})


def test_inside_a_loop(fake_server, tmp_path):
    async def notebook(requests):
        with Journal(tmp_path) as journal:
            return await ask_async(requests, Server(fake_server.url, "m"), journal)

    assert asyncio.run(notebook(requests_of(2))).report.answered == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "localhost:8000"}, "expected http:// or https://"),
        ({"url": "http://user:sesame@host/v1"}, "url holds a user, a password or a query"),
        ({"url": "http://host/v1?api_key=sesame"}, "url holds a user, a password or a query"),
        ({"key_variable": "sk-sesame"}, "key_variable is no name"),
        ({"parameters": {"api_key": "sesame", "n": 2}}, "parameters hold n, api_key"),
        ({"concurrency": 0}, "concurrency is 0: expected 1 or more"),
        ({"timeout_s": float("nan")}, "timeout_s is nan"),
        ({"first_wait_s": -1.0}, "first_wait_s is -1.0: expected 0 or more"),
        ({"prompt_price": 1.0}, "one price is set"),
        ({"max_money": 1.0}, "max_money is set without prices"),
        ({"max_tokens_in_all": 100}, "answers have no limit: put max_tokens into parameters"),
        ({"url": "http://[::1"}, r"url 'http://\[::1' is none \(Invalid port: ':1'\): expected one as http://local"),
        ({"url": "http://user:sesame@[::1"}, r"url \(not shown: it may hold a secret\) is none: expected one as"),
        ({"url": "user:sesame@host/v1"}, r"url \(not shown: it may hold a secret\): expected http:// or https://"),
        ({"url": 5}, "url 5 is none"),
        ({"model": None}, "model is None: expected the model's name"),
        ({"key_variable": 5}, "key_variable is no name"),
        ({"parameters": "x"}, "parameters are no mapping"),
        ({"parameters": {"max_tokens": "x"}}, "max_tokens in parameters is 'x': expected a whole number of 1 or more"),
        ({"parameters": {"max_completion_tokens": 0}}, "max_completion_tokens in parameters is 0: expected a whole"),
        ({"parameters": {"top_p": float("nan")}}, "top_p in parameters can't be sent as JSON"),
        ({"parameters": {"stop": ["\ud800"]}}, "stop in parameters can't be sent as JSON"),
        ({"parameters": {"bias": {1, 2}}}, "bias in parameters can't be sent as JSON"),
        ({"concurrency": "8"}, "concurrency is '8'; expected a whole number"),
        ({"concurrency": 0.5}, "concurrency is 0.5; expected a whole number"),
        ({"max_attempts": None}, "max_attempts is null; expected a whole number"),
        ({"max_attempts": True}, "max_attempts is true; expected a whole number"),
        ({"seed": "x"}, "seed is 'x'; expected a whole number"),
        ({"timeout_s": float("inf")}, "timeout_s is inf: expected above 0"),
        ({"prompt_price": "cheap"}, "prompt_price is 'cheap'; expected a number"),
        ({"skip_statuses": 400}, "skip_statuses is 400: expected a list of whole numbers from 400 to 599"),
        ({"skip_statuses": (200,)}, r"skip_statuses is \(200,\): expected a list"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        Server(**{"url": "http://host/v1", "model": "m", **settings})
    assert "sesame" not in str(caught.value)
