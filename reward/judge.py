"""An LLM's judgement of the reasoning, from any OpenAI-compatible server.

What it is told is in `judge.txt` beside this file; a file of your own goes into `prompt_file`. The key is read from
the environment. What comes from data or from the teacher is shown as `anyo_rl.llm.judge` has it; a judge may
still be talked round by a teacher that learns to, which is why its score should stand next to a reward from ranks.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2

from anyo_rl.data.completion import completion_text, parse
from anyo_rl.llm.http import AttemptError, Server, ServerError, attempt, fingerprint
from anyo_rl.llm.journal import Answer, Journal
from anyo_rl.llm.judge import judge_messages, read_score

PROMPT = Path(__file__).with_name("judge.txt")
EXAMPLE = "judge"  # what a journal knows an answer by is the fingerprint alone


class Kept:
    """The answers of a journal, read once, and added to from any thread.

    Args:
        folder: of the journal; each process writes a file of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder)
        self.texts = {answer.fingerprint: answer.text for answer in self.journal.answers().values()}
        self.lock = threading.Lock()

    def add(self, answer: Answer) -> None:
        """Writes an answer down, before anything else happens to it."""
        with self.lock:
            self.journal.append(answer)
            self.texts[answer.fingerprint] = answer.text


_OPENING = threading.Lock()


class JudgeReward:
    """The judge's score of a reasoning, over 10: 0 … 1; `None` where it gave none.

    A completion that does not parse is not sent and gets `floor`. No answer after `max_attempts`, or one without a
    score in its last line, is `None`; `judge/failed` and `judge/unparseable` are the shares of what was sent. Equal
    completions of a prompt in a batch are asked about once.

    Args:
        url: of the server, up to `/chat/completions`.
        model: the model's name there.
        prompt_file: what the judge is told; `judge.txt` if unset.
        parameters: what goes into each request besides; temperature 0 if unset.
        key_variable: environment variable with the key; `None` for a server that wants none.
        concurrency: most requests in flight.
        timeout_s: longest wait for an answer.
        max_attempts: after which a request has failed.
        max_failures_in_a_row: after which the run stops, since nothing works any more.
        first_wait_s: the wait before attempt k + 1 is drawn between 0 and first_wait_s · 2^(k − 1).
        floor: reward of a completion that does not parse.
        journal: folder in which answers are kept as they arrive, and looked up: a run that was killed does not pay
            twice. The same question is asked once then, so take it with temperature 0. `None` keeps nothing.

    Raises:
        ValueError: a setting is out of its range, or `parameters` holds a secret.
        FileNotFoundError: there is no such prompt file.
        ServerError: the key is not in the environment.
    """

    calls_out = True

    def __init__(
        self,
        url: str,
        model: str,
        prompt_file: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        key_variable: str | None = "OPENAI_API_KEY",
        concurrency: int = 16,
        timeout_s: float = 60.0,
        max_attempts: int = 3,
        max_failures_in_a_row: int = 50,
        first_wait_s: float = 1.0,
        floor: float = 0.0,
        journal: str | None = None,
    ) -> None:
        self.server = Server(
            url,
            model,
            {"temperature": 0.0, "max_tokens": 300} if parameters is None else dict(parameters),
            key_variable=key_variable,
            concurrency=concurrency,
            timeout_s=timeout_s,
            max_attempts=max_attempts,
            max_failures_in_a_row=max_failures_in_a_row,
            first_wait_s=first_wait_s,
        )
        self.server.key()  # a key that is not there is said now, and not after the warm start
        self.instructions = (PROMPT if prompt_file is None else Path(prompt_file)).read_text(encoding="utf-8").strip()
        self.concurrency = concurrency
        self.floor = floor
        self.journal = journal
        self.__name__ = "judge"
        self._titles: dict[str, str] = {}
        self._n_failed_in_a_row = 0
        self._kept: Kept | None = None
        self._rng = random.Random()

    def fit(self, task: Any, catalog: Any, seed: int = 0) -> None:
        """Takes the titles of the catalog, to name the item that an answer is read off as."""
        self._titles = dict(zip(catalog.item_ids, catalog.titles, strict=True))

    def messages(self, prompt: Any, completion: Any, item_id: str | None) -> list[dict[str, str]]:
        """What is sent about a completion."""
        parsed = parse(completion_text(completion))
        item = (parsed.item if item_id is None else self._titles.get(item_id, item_id)) or ""
        parts = {"history": completion_text(prompt), "reasoning": "\n".join(parsed.steps), "item": item}
        return judge_messages(self.instructions, parts)

    async def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        item_id: list[str | None],
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """One reward per completion.

        Raises:
            ServerError: the server refuses, or nothing works any more.
        """
        asked: dict[tuple[str, ...], list[dict[str, str]]] = {}
        keys: list[tuple[str, ...] | None] = []
        for prompt, completion, item in zip(prompts, completions, item_id, strict=True):
            if not parse(completion_text(completion)).marked:
                keys.append(None)
                continue
            messages = self.messages(prompt, completion, item)
            key = tuple(message["content"] for message in messages)
            keys.append(key)
            asked.setdefault(key, messages)
        answers = await self._ask(list(asked.values()))
        of_key = dict(zip(asked, answers, strict=True))
        scores = {key: None if answer is None else read_score(answer) for key, answer in of_key.items()}
        if log_metric is not None and asked:
            log_metric("judge/failed", sum(answer is None for answer in answers) / len(asked))
            unread = sum(scores[key] is None and of_key[key] is not None for key in asked)
            log_metric("judge/unparseable", unread / len(asked))
        return [self.floor if key is None else scores[key] for key in keys]

    async def _ask(self, prompts: list[list[dict[str, str]]]) -> list[str | None]:
        """The answer to each prompt; `None` where there is none after all attempts."""
        with _OPENING:  # when first asked, which may be by several threads at once
            if self.journal is not None and self._kept is None:
                self._kept = Kept(Path(self.journal))
        key = self.server.key()
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        secrets = self.server.secrets(key)
        gate = asyncio.Semaphore(self.concurrency)
        timeout = httpx2.Timeout(self.server.timeout_s, connect=self.server.connect_timeout_s)
        async with httpx2.AsyncClient(headers=headers, timeout=timeout) as client:

            async def one(messages: list[dict[str, str]]) -> str | None:
                async with gate:
                    return await self._answer(client, self.server.body(messages, 0), secrets)

            tasks = [asyncio.ensure_future(one(messages)) for messages in prompts]
            try:
                return await asyncio.gather(*tasks)
            finally:
                for task in tasks:  # of which none is left, save after an error
                    task.cancel()

    async def _answer(self, client: httpx2.AsyncClient, body: Mapping[str, Any], secrets: list[str]) -> str | None:
        asked = fingerprint(body)
        if self._kept is not None and asked in self._kept.texts:
            return self._kept.texts[asked]
        for number in range(1, self.server.max_attempts + 1):
            try:
                reply = await attempt(client, self.server, body, secrets)
            except AttemptError as fault:
                wait_s = self.server.wait_s(fault, number, self._rng)
                if wait_s is not None:
                    await asyncio.sleep(wait_s)
                    continue
                self._n_failed_in_a_row += 1
                if self._n_failed_in_a_row >= self.server.max_failures_in_a_row:
                    raise ServerError(
                        f"nothing works: the last {self._n_failed_in_a_row} requests to {self.server.url} have "
                        f"failed; the last one: {fault.message}"
                    ) from None
                return None
            else:
                self._n_failed_in_a_row = 0
                if self._kept is not None:
                    counts = reply.prompt_tokens, reply.completion_tokens
                    found = Answer(EXAMPLE, 0, asked, reply.text, reply.finish_reason, *counts, None, number)
                    self._kept.add(found)
                return reply.text
        return None
