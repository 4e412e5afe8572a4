"""Answers from any OpenAI-compatible server: a strong LLM that writes rationales, or `vllm serve`.

This is no `Sampler` (anyo_rl.sampling.protocol): that one is about token ids and log-probabilities of a teacher in
hand, and the server of a stranger has texts only. The contract is the smallest one that fits: requests in, and for
each of them, in their order, an `Answer`, a `Failure`, or `None` where the budget ended first. One request is one
sample, so that each answer is journalled by itself; a server that keeps prefixes reads a repeated prompt once.

    with Journal(run_dir / "rationales") as journal:
        outcome = ask([Request("u1", 0, "Say hello.")], Server(url, model, {"max_tokens": 64}), journal)

Left out: streaming, tools, and the hidden thoughts that some servers return beside the text.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import httpx2

from anyo_rl.llm.budget import Budget
from anyo_rl.llm.http import AttemptError, Cause, Server, ServerError, attempt, fingerprint
from anyo_rl.llm.journal import Answer, Journal, Key
from anyo_rl.llm.report import Report

if TYPE_CHECKING:  # a process that only asks a server does without transformers
    from anyo_rl.data.completion import Prompt

__all__ = [
    "Answer",
    "Answers",
    "Failure",
    "Journal",
    "Outcome",
    "Report",
    "Request",
    "Server",
    "ServerError",
    "Streak",
    "ask",
    "ask_async",
    "request_key",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One sample to ask for.

    Attributes:
        example_id: the example.
        sample_index: which of its samples, from 0.
        prompt: text or token ids for the completions endpoint, chat messages for chat completions.
    """

    example_id: str
    sample_index: int
    prompt: "Prompt | list[int]"


@dataclass(frozen=True)
class Failure:
    """A request without an answer after all its attempts. It is in no journal: the next start asks again.

    Attributes:
        cause: of the last attempt.
        message: what was seen, or what the server said.
        attempts: how often it was asked.
    """

    example_id: str
    sample_index: int
    cause: Cause
    message: str
    attempts: int


class Answers(Protocol):
    """Where answers are kept: a `Journal`, or what stands in for one."""

    def answers(self) -> Mapping[Key, Answer]:
        """Those there are."""

    def append(self, answer: Answer) -> None:
        """Keeps one, before anything else happens to it."""


@dataclass
class Streak:
    """Failures in a row over several calls, for a caller that asks about little at a time.

    A call on its own ends where none of its requests is answered; of one that shares a streak that says nothing, and
    only the streak is counted.
    """

    n: int = 0


@dataclass(frozen=True)
class Outcome:
    """What a job came to.

    Attributes:
        answers_R: for each of the R requests its answer, its failure, or `None` where the budget left it.
        report: its numbers.
    """

    answers_R: list[Answer | Failure | None]
    report: Report


def ask(
    requests_R: Sequence[Request],
    server: Server,
    journal: Answers,
    *,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
    rng: random.Random | None = None,
) -> Outcome:
    """Gets an answer to each request that the journal does not have yet.

    Each answer is in the journal before anything else happens to it. Killed and started again with the same requests,
    nothing that arrived is asked for again.

    Args:
        requests_R: what to ask; the key (example id, sample index, prompt and parameters) may come once.
        server: where, how and up to which budget.
        journal: open, of this process.
        sleep: for waits, in seconds.
        clock: seconds, of the same time as `sleep`.
        rng: of the jitter.

    Raises:
        ValueError: two requests are the same.
        ServerError: the server refuses, or nothing works any more: what was in flight is waited for and kept.
        RuntimeError: called where a loop runs already, as in a notebook: there `await ask_async(...)`.
    """
    outcome = asyncio.run(ask_async(requests_R, server, journal, sleep=sleep, clock=clock, rng=rng))
    logger.info("asked %s: %s", server.url, outcome.report.as_json())
    return outcome


async def ask_async(
    requests_R: Sequence[Request],
    server: Server,
    journal: Answers,
    *,
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    clock: Callable[[], float] = time.monotonic,
    rng: random.Random | None = None,
    streak: Streak | None = None,
) -> Outcome:
    """`ask`, for callers that have a loop; those whose calls belong together share a `streak`."""
    job = _Job(requests_R, server, journal, _Timing(sleep, clock, rng or random.Random()), streak)
    headers = {"Accept-Encoding": "gzip"}
    if job.key is not None:
        headers["Authorization"] = f"Bearer {job.key}"
    limits = httpx2.Limits(max_connections=server.concurrency, max_keepalive_connections=server.concurrency)
    timeout = httpx2.Timeout(server.timeout_s, connect=server.connect_timeout_s)
    async with httpx2.AsyncClient(headers=headers, limits=limits, timeout=timeout) as client:
        await asyncio.gather(*(job.work(client) for _ in range(min(server.concurrency, len(requests_R)))))
    report = job.report()
    if job.error is not None:
        if isinstance(job.error, ServerError):
            job.error.report = report
        raise job.error
    return Outcome(job.results_R, report)


def request_key(request: Request, server: Server) -> Key:
    """The journal's key of the answer to a request; url, key, waits and budget are no part of it."""
    body = server.body(request.prompt, request.sample_index)
    return request.example_id, request.sample_index, fingerprint(body)


@dataclass(frozen=True)
class _Timing:
    """How waits pass and jitter falls; see `ask`."""

    sleep: Callable[[float], Awaitable[Any]]
    clock: Callable[[], float]
    rng: random.Random


class _Job:
    """What the workers of one call share. They run in one thread: nothing needs a lock."""

    def __init__(
        self, requests_R: Sequence[Request], server: Server, journal: Answers, timing: _Timing, streak: Streak | None
    ) -> None:
        self.requests_R, self.server, self.journal, self.timing = requests_R, server, journal, timing
        self.keys_R = [request_key(request, server) for request in requests_R]
        twice = [key for key, count in Counter(self.keys_R).items() if count > 1]
        if twice:
            example_id, sample, _ = twice[0]
            raise ValueError(f"{len(twice)} requests come twice, the first: example {example_id!r}, sample {sample}")
        self.key = server.key()
        self.secrets = server.secrets(self.key)
        self.is_whole, self.streak = streak is None, streak or Streak()
        known = journal.answers()
        self.budget = Budget(server, known.values())
        self.results_R: list[Answer | Failure | None] = [known.get(key) for key in self.keys_R]
        self.n_known = sum(result is not None for result in self.results_R)
        self.todo = iter([row for row, result in enumerate(self.results_R) if result is None])
        self.error: Exception | None = None
        self.stopped: str | None = None
        self.arrived: list[Answer] = []
        self.retried: Counter[Cause] = Counter()
        self.failed: Counter[Cause] = Counter()
        self.n_asked = self.n_attempts = 0
        self.started_s = timing.clock()
        self.open_s = timing.clock()  # no attempt before this time: the server asked for it
        self.sleepers: set[asyncio.Future[Any]] = set()

    async def work(self, client: httpx2.AsyncClient) -> None:
        """Takes requests until there are none, or the job ends."""
        for row in self.todo:
            try:
                if not await self.budget.hold(row, self.requests_R[row].prompt):
                    self.stopped = "budget" if self.error is None else None
                if self.error is not None or self.stopped:
                    return
                await self.answer(client, row)
            except Exception as error:  # whatever it is: what is in flight elsewhere has cost money, and is kept
                request = self.requests_R[row]
                logger.error("example %r, sample %d ends the job: %s", request.example_id, request.sample_index, error)
                self.stop(error)
                return
            finally:
                self.budget.release(row)

    async def answer(self, client: httpx2.AsyncClient, row: int) -> None:
        """Asks for one answer until it comes or its attempts are used up."""
        request, server = self.requests_R[row], self.server
        body = server.body(request.prompt, request.sample_index)
        for number in range(1, server.max_attempts + 1):
            while self.error is None and self.timing.clock() < self.open_s:
                await self.pause(self.open_s - self.timing.clock())
            if self.error is not None:
                return
            self.n_asked += number == 1
            self.n_attempts += 1
            try:
                reply = await attempt(client, server, body, self.secrets)
            except AttemptError as fault:
                # A limit is on the key, not on one request: the others wait too.
                self.open_s = max(self.open_s, self.timing.clock() + fault.retry_after_s)
                wait_s = server.wait_s(fault, number, self.timing.rng)
                if wait_s is None:
                    self.fail(row, fault, number)
                    return
                self.retried[fault.cause] += 1
                logger.info("attempt %d: %s (%s); %.1f s", number, fault.cause, fault.message, wait_s)
                await self.pause(wait_s)
            else:
                counts = reply.prompt_tokens, reply.completion_tokens
                money = server.money(*counts)
                answer = Answer(*self.keys_R[row], reply.text, reply.finish_reason, *counts, money, number)
                self.journal.append(answer)
                self.results_R[row] = answer
                self.arrived.append(answer)
                self.streak.n = 0
                self.budget.pay(answer)
                if server.has_budget and None in counts:
                    raise ServerError(
                        f"{server.url} does not count tokens (`usage`), so a budget can't be kept: set no budget, or "
                        f"make the server count"
                    )
                return

    def fail(self, row: int, fault: AttemptError, attempts: int) -> None:
        """Records a failure; where no request is answered any more, the job ends."""
        request = self.requests_R[row]
        self.results_R[row] = Failure(request.example_id, request.sample_index, fault.cause, fault.message, attempts)
        self.failed[fault.cause] += 1
        self.streak.n += 1
        none_arrived = not self.arrived and not self.n_known and self.failed.total() == len(self.requests_R)
        if (self.is_whole and none_arrived) or self.streak.n >= self.server.max_failures_in_a_row:
            causes = ", ".join(f"{cause} {count}" for cause, count in sorted(self.failed.items()))
            self.stop(
                ServerError(
                    f"nothing works: the last {self.streak.n} requests to {self.server.url} have failed, "
                    f"after up to {self.server.max_attempts} attempts each ({causes}); the last one, example "
                    f"{request.example_id!r}: {fault.message}"
                )
            )

    def stop(self, error: Exception) -> None:
        """Ends the job: what is in flight may arrive, and nothing new goes out. The first error is the one told."""
        self.error = self.error or error
        for sleeper in self.sleepers:
            sleeper.cancel()

    async def pause(self, seconds: float) -> None:
        """Sleeps until the time is up or the job ends."""
        sleeper = asyncio.ensure_future(self.timing.sleep(seconds))
        self.sleepers.add(sleeper)
        try:
            await asyncio.wait([sleeper])
        finally:
            self.sleepers.discard(sleeper)
            sleeper.cancel()

    def report(self) -> Report:
        """The numbers so far."""
        has_prices = self.server.prompt_price is not None
        return Report(
            requests=len(self.requests_R),
            known=self.n_known,
            asked=self.n_asked,
            answered=len(self.arrived),
            left=sum(result is None for result in self.results_R),
            attempts=self.n_attempts,
            retried=dict(sorted(self.retried.items())),
            failed=dict(sorted(self.failed.items())),
            without_usage=sum(None in (a.prompt_tokens, a.completion_tokens) for a in self.arrived),
            prompt_tokens=sum(answer.prompt_tokens or 0 for answer in self.arrived),
            completion_tokens=sum(answer.completion_tokens or 0 for answer in self.arrived),
            money=sum(answer.money or 0.0 for answer in self.arrived) if has_prices else None,
            seconds=self.timing.clock() - self.started_s,
            tokens_in_all=self.budget.tokens,
            money_in_all=self.budget.money if has_prices else None,
            stopped=self.stopped,
        )
