"""Answers that would fill the memory or stop later starts: they are garbage, asked for again, and never journalled."""

import gzip
import json
import tracemalloc
import zlib

import pytest

from anyo_rl.llm.journal import Journal, read_answers
from anyo_rl.llm.reply import MOST_BYTES
from anyo_rl.llm.server import Failure, Request, Server, ask

GOOD = {"choices": [{"text": "a mug", "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
BLANKS = b" " * (MOST_BYTES + 1)


def body(text="a mug", finish_reason="stop", **usage):
    choices = [{"text": text, "finish_reason": finish_reason}]
    return json.dumps({"choices": choices, "usage": {**GOOD["usage"], **usage}}).encode()


BAD = {
    "half an emoji": (body("a mug \ud83d"), "lone surrogate"),
    "half an emoji in bytes": (body("a mug").replace(b"mug", b"\xed\xa0\xbd"), "lone surrogate"),
    "half an emoji as reason": (body(finish_reason="\ud83d"), "lone surrogate"),
    "a long reason": (body(finish_reason="stop" * 100), "finish_reason has 400 characters"),
    "deep": (b'{"choices": ' + b"[" * 200_000, "nested too deep"),
    "many tokens": (body(prompt_tokens=10**400), "a count of its tokens"),
    "more digits than a number has": (body().replace(b" 3", b" " + b"9" * 5000), "digits"),
    "endless tokens": (body(completion_tokens=float("inf")), "a count of its tokens"),
    "true tokens": (body(completion_tokens=True), "a count of its tokens"),
    "large": (body() + BLANKS, "larger than 16,777,216 bytes"),
}


def run(fake_server, fake_clock, folder):
    with Journal(folder) as journal:
        server = Server(fake_server.url, "m", max_attempts=2, prompt_price=1.0, completion_price=1.0)
        return ask([Request("u0", 0, "hi"), Request("u1", 0, "ho")], server, journal, sleep=fake_clock.sleep)


@pytest.mark.parametrize(("content", "why"), BAD.values(), ids=BAD)
def test_they_are_asked_for_again_and_kept_nowhere(fake_server, fake_clock, tmp_path, content, why):
    fake_server.plan = lambda key, number: content if key[0] == "hi" else "ok"
    outcome = run(fake_server, fake_clock, tmp_path)
    assert (outcome.report.retried, outcome.report.failed) == ({"garbage": 1}, {"garbage": 1})
    failure = outcome.answers_R[0]
    assert isinstance(failure, Failure)
    assert why in failure.message
    assert len(failure.message) < 1500
    fake_server.plan = lambda key, number: "ok"
    again = run(fake_server, fake_clock, tmp_path)
    assert (again.report.known, again.report.answered) == (1, 1)
    assert len(read_answers(tmp_path)) == 2


def test_what_is_compressed_is_read_as_far_as_its_bound(fake_server, fake_clock, tmp_path):
    squeezed = {"Content-Encoding": "gzip"}
    fake_server.plan = lambda key, number: (gzip.compress(body()), squeezed)
    assert [answer.text for answer in run(fake_server, fake_clock, tmp_path / "good").answers_R] == ["a mug"] * 2
    fake_server.plan = lambda key, number: (zlib.compress(body()), {"Content-Encoding": "deflate"})
    assert run(fake_server, fake_clock, tmp_path / "deflate").report.answered == 2
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(body()) + b"".join(packer.compress(b" " * 2**20) for _ in range(400)) + packer.flush()
    assert len(bomb) < 2**20
    tracemalloc.start()
    fake_server.plan = lambda key, number: (bomb, squeezed) if key[0] == "hi" else "ok"
    outcome = run(fake_server, fake_clock, tmp_path / "bomb")
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "larger than 16,777,216 bytes" in outcome.answers_R[0].message
    assert most_bytes < 6 * MOST_BYTES
    for content, encoding in ((b"no gzip", "gzip"), (body(), "br"), (gzip.compress(body())[:20], "gzip")):
        answer = content, {"Content-Encoding": encoding}
        fake_server.plan = lambda key, number, answer=answer: answer if key[0] == "hi" else "ok"
        assert run(fake_server, fake_clock, tmp_path / f"{encoding}{len(content)}").report.failed == {"garbage": 1}


def test_a_refusal_says_enough_whatever_its_body(fake_server, fake_clock, tmp_path):
    fake_server.plan = lambda key, number: (503, {"Content-Encoding": "br"}) if key[0] == "hi" else "ok"
    outcome = run(fake_server, fake_clock, tmp_path)
    assert outcome.report.failed == {"server_error": 1}
    assert outcome.answers_R[0].message == "status 503: no message"
