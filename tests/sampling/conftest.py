"""A server in a thread that answers like an OpenAI-compatible one, and has every fault that is asked of it."""

import asyncio
import json
import os
import socket
import struct
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

KEY = "sk-Sentinel0123456789"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        fake = self.server.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        key = (str(prompt), body.get("seed"))
        with fake.lock:
            fake.times.append(fake.clock())
            fake.bodies.append((self.path, dict(self.headers), body))
            number, fake.tries[key] = fake.tries[key], fake.tries[key] + 1
        fake.gate(key)
        kind, headers = fake.plan(key, number), {}
        if isinstance(kind, tuple):
            kind, headers = kind
        echo = self.headers.get("Authorization", "")
        message = f"{body['model']} says no to {echo}"
        texts = f"echo of {prompt} and of {echo}" if fake.echoes else f"echo of {prompt}"
        choice = {"text": texts} if "completions" in self.path and "chat" not in self.path else {}
        choice = choice or {"message": {"role": "assistant", "content": texts}}
        whole = json.dumps({"choices": [{**choice, "finish_reason": "stop"}], "usage": fake.usage}).encode()
        if kind == "ok":
            self.send(200, whole, headers)
            with fake.lock:
                fake.answered.append((key, self.client_address))
        elif isinstance(kind, int):
            self.send(kind, json.dumps({"error": {"message": message, "code": fake.code}}).encode(), headers)
        elif kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())
            self.close_connection = True
        elif kind == "hang":
            fake.closing.wait(20)
            self.close_connection = True
        elif kind == "trickle":
            self.send(200, b"", {"Content-Length": "1000"})
            while not fake.closing.wait(0.05):
                self.wfile.write(b" ")  # an error once the client has gone
        elif kind == "cut":
            self.send(200, whole[:20], {"Content-Length": str(len(whole))})
            self.close_connection = True
        else:
            garbage = {
                "html": f"<html>{message}</html>",
                "half": whole[:-7].decode(),
                "empty": "",
                "no choices": '{"choices": []}',
                "error": json.dumps({"error": {"message": message}}),
                "odd": '{"choices": [{"text": 3}], "usage": null}',
                "odd usage": '{"choices": [{"text": "x"}], "usage": {"prompt_tokens": "many"}}',
            }
            self.send(200, garbage[kind].encode(), headers)

    def send(self, status, content, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass  # clients that were killed, or gave up


class FakeServer:
    """Attributes that tests set and read.

    plan: (key, number of the attempt from 0) to the kind of reply, or (kind, headers); key is (prompt, seed).
    answered: (key, client's address) of answers that were sent to their end.
    tries: how often each key came. times: `clock` at each request. bodies: (path, headers, body) of each.
    """

    def __init__(self):
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.plan = lambda key, number: "ok"
        self.gate = lambda key: None
        self.clock = lambda: 0.0
        self.usage, self.code, self.echoes = USAGE, None, False
        self.answered, self.tries, self.times, self.bodies = [], Counter(), [], []
        self.http = QuietServer(("127.0.0.1", 0), Handler)
        self.http.fake = self
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def wait_for_requests(self, n):
        """Waits until n requests are there, this one included."""
        while len(self.times) < n and not self.closing.wait(0.005):
            pass

    def close(self):
        self.closing.set()
        self.http.shutdown()
        self.http.server_close()


class FakeClock:
    """A time that passes only at the end of a sleep: after `together` sleeps, or a second for whoever does not."""

    def __init__(self):
        self.now_s, self.together, self.sleeps = 0.0, 1, []
        self.sleeping = threading.Event()

    def __call__(self):
        return self.now_s

    async def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.sleeping.set()
        await asyncio.sleep(0)
        for _ in range(100):
            if len(self.sleeps) >= self.together:
                break
            await asyncio.sleep(0.01)
        self.now_s += seconds


@pytest.fixture
def fake_server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def fake_clock():
    return FakeClock()


@pytest.fixture
def sentinel_key():
    return KEY
