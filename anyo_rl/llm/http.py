"""One attempt to get one answer from an OpenAI-compatible server: what is sent, and what can come of it.

Answers are not streamed: half a stream is no answer, and a whole one comes with its count of tokens.
"""

import asyncio
import dataclasses
import hashlib
import json
import math
import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal

import httpx2

from anyo_rl.llm.reply import Reply, read_body, read_json, read_reply
from anyo_rl.llm.report import Report
from anyo_rl.run.redact import is_secret, redact_text
from anyo_rl.run.settings import Bounds, check_bounds, fitted

if TYPE_CHECKING:  # a process that only asks a server does without transformers
    from anyo_rl.data.completion import Prompt

Cause = Literal["rate_limit", "server_error", "timeout", "connection", "cut", "garbage", "refused"]

OWN_FIELDS = {"model", "messages", "prompt", "n", "stream", "seed"}
MOST_CHARS = 500  # of a server's message in an error
FIXES = {
    400: "look at the parameters, the model and the length of the prompt",
    401: "look at the key",
    403: "look at the key and what it may do",
    404: "look at the url (it ends with /v1 for most servers) and at the model's name",
}


class ServerError(RuntimeError):
    """The job ended before its time. What had arrived is in the journal.

    Attributes:
        report: of the job until then; `None` where it had not begun.
    """

    report: Report | None = None


class AttemptError(Exception):
    """An attempt that may be made again."""

    def __init__(self, cause: Cause, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.cause, self.message, self.retry_after_s = cause, message, retry_after_s


@dataclass(frozen=True)
class Server:
    """A server, what it is asked for, and when to stop. It can be written down: the key is in the environment only.

    Attributes: each says in its metadata what it is, which recipes show as a help text; `free` marks those that a run
    may be started again with (`anyo_rl.run.folder`): what arrived is in the journal, and stays what was asked for.
    """

    url: str = field(
        metadata={
            "help": "Up to `/chat/completions`, for instance `https://api.openai.com/v1` or "
            "`http://localhost:8000/v1`.",
            "free": True,
        }
    )
    model: str = field(metadata={"help": "The model's name there."})
    parameters: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "help": "What goes into each request besides (`temperature`, `max_tokens`, `stop`, …), in the server's "
            "own words. `vllm serve` leaves out special tokens unless `skip_special_tokens` is false, and what it "
            "stopped at unless `include_stop_str_in_output` is true."
        },
    )
    seed: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(),
            "help": "Sample i of an example is asked for with seed + i; none is sent if unset.",
        },
    )
    key_variable: str | None = field(
        default="OPENAI_API_KEY",
        metadata={
            "help": "Environment variable with the key; null for a server that wants none.",
            "free": True,
        },
    )
    concurrency: int = field(
        default=8, metadata={"bounds": Bounds(1), "help": "Most requests in flight.", "free": True}
    )
    connect_timeout_s: float = field(
        default=10.0, metadata={"bounds": Bounds(above=0), "help": "Longest wait for a connection.", "free": True}
    )
    timeout_s: float = field(
        default=600.0,
        metadata={
            "bounds": Bounds(above=0),
            "help": "Longest wait for a whole answer, connection included.",
            "free": True,
        },
    )
    max_attempts: int = field(
        default=6, metadata={"bounds": Bounds(1), "help": "After which a request has failed.", "free": True}
    )
    max_failures_in_a_row: int = field(
        default=10,
        metadata={
            "bounds": Bounds(1),
            "help": "After which the job ends, since nothing works any more.",
            "free": True,
        },
    )
    first_wait_s: float = field(
        default=1.0,
        metadata={
            "bounds": Bounds(0),
            "help": "The wait before attempt k + 1 is drawn between 0 and first_wait_s · 2^(k - 1).",
            "free": True,
        },
    )
    max_wait_s: float = field(
        default=120.0,
        metadata={
            "bounds": Bounds(0),
            "help": "The most that it is drawn from; a server that asks for a longer one by Retry-After ends the job.",
            "free": True,
        },
    )
    skip_statuses: tuple[int, ...] = field(
        default=(),
        metadata={
            "help": "Of 400 and above, after which this one request has failed and the job goes on (400 where a "
            "server refuses single prompts by it). Any other that is not worth a second attempt ends the job.",
            "free": True,
        },
    )
    prompt_price: float | None = field(
        default=None,
        metadata={
            "bounds": Bounds(0),
            "help": "Money for a million prompt tokens; unset where it does not matter.",
            "free": True,
        },
    )
    completion_price: float | None = field(
        default=None, metadata={"bounds": Bounds(0), "help": "Money for a million completion tokens.", "free": True}
    )
    max_tokens_in_all: int | None = field(
        default=None,
        metadata={
            "bounds": Bounds(0),
            "help": "Budget of prompt and completion tokens of the whole journal.",
            "free": True,
        },
    )
    max_money: float | None = field(
        default=None,
        metadata={
            "bounds": Bounds(0),
            "help": "Budget in the currency of the prices, of the whole journal.",
            "free": True,
        },
    )

    def __post_init__(self) -> None:
        """Refuses what can't be honoured.

        Raises:
            ValueError: a setting is out of its range, holds a secret, or lacks another one.
        """
        self._check_url()
        if not (isinstance(self.model, str) and self.model):
            raise ValueError(f"model is {self.model!r}: expected the model's name at the server")
        if self.key_variable is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(self.key_variable)):
            raise ValueError("key_variable is no name of an environment variable; it names the one that holds the key")
        self._check_parameters()
        for item in dataclasses.fields(self):
            if "bounds" in item.metadata:
                fitted(item.name, getattr(self, item.name), item.type)
        check_bounds(self)
        statuses = self.skip_statuses
        if not isinstance(statuses, list | tuple) or not all(type(s) is int and 400 <= s <= 599 for s in statuses):
            raise ValueError(f"skip_statuses is {statuses!r}: expected a list of whole numbers from 400 to 599")
        if (self.prompt_price is None) != (self.completion_price is None):
            raise ValueError("one price is set: expected prompt_price and completion_price, or neither")
        if self.max_money is not None and self.prompt_price is None:
            raise ValueError("max_money is set without prices: set prompt_price and completion_price")
        if self.has_budget and self.most_completion_tokens is None:
            raise ValueError("a budget is set, and answers have no limit: put max_tokens into parameters")

    def _check_url(self) -> None:
        """Refuses what is no URL. It is not shown where it may hold a secret."""
        shown = f"url {self.url!r}" if not set("@?") & set(str(self.url)) else "url (not shown: it may hold a secret)"
        try:
            url = httpx2.URL(self.url)
        except (httpx2.InvalidURL, TypeError) as error:
            why = f" ({error})" if repr(self.url) in shown else ""
            raise ValueError(f"{shown} is none{why}: expected one as http://localhost:8000/v1") from None
        if url.userinfo or url.query:
            raise ValueError("url holds a user, a password or a query; a key goes into the environment (key_variable)")
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{shown}: expected http:// or https:// and a host")

    def _check_parameters(self) -> None:
        """Refuses parameters that can't be sent, that are ours to set, or that hold a secret."""
        if not isinstance(self.parameters, Mapping) or not all(isinstance(name, str) for name in self.parameters):
            raise ValueError('parameters are no mapping of names: expected one as {"max_tokens": 300}')
        wrong = sorted(OWN_FIELDS & self.parameters.keys())
        wrong += sorted(name for name in self.parameters if is_secret(name))
        if wrong:
            raise ValueError(f"parameters hold {', '.join(wrong)}: expected none of {sorted(OWN_FIELDS)}, no secrets")
        for name, value in self.parameters.items():
            try:
                json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
            except (TypeError, ValueError, RecursionError) as error:
                raise ValueError(f"{name} in parameters can't be sent as JSON: {error}") from None
        for name in ("max_tokens", "max_completion_tokens"):
            most = self.parameters.get(name)
            if most is not None and (type(most) is not int or most < 1):
                raise ValueError(f"{name} in parameters is {most!r}: expected a whole number of 1 or more")

    @property
    def has_budget(self) -> bool:
        """Whether tokens or money are limited."""
        return self.max_tokens_in_all is not None or self.max_money is not None

    @property
    def most_completion_tokens(self) -> int | None:
        """The most tokens of one answer, where the parameters say so."""
        return self.parameters.get("max_completion_tokens", self.parameters.get("max_tokens"))

    def money(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        """What tokens cost; `None` without prices or counts."""
        if self.prompt_price is None or self.completion_price is None:
            return None
        if prompt_tokens is None or completion_tokens is None:
            return None
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 1e6

    def key(self) -> str | None:
        """The key.

        Raises:
            ServerError: it is not in the environment, or can't be a key.
        """
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ServerError(
                f"found no {self.key_variable} in the environment: export it with the key of {self.url}, or set "
                f"key_variable to null for a server that wants none"
            )
        if not re.fullmatch(r"[!-~]+", key):  # libraries would show it in their errors
            raise ServerError(f"{self.key_variable} holds blanks or letters that no key can have")
        return key

    @staticmethod
    def secrets(key: str | None) -> list[str]:
        """What must not be shown: the key. A short one is a placeholder (`EMPTY`), and may be a word of an answer."""
        return [key] if key is not None and len(key) >= 8 else []

    def wait_s(self, fault: "AttemptError", number: int, rng: random.Random) -> float | None:
        """How long to wait after attempt `number` has failed, from 1; `None` where it is not to be asked again."""
        if number >= self.max_attempts or fault.cause == "refused":
            return None
        return fault.retry_after_s + rng.uniform(
            0, min(self.max_wait_s, self.first_wait_s * 2.0 ** min(number - 1, 99))
        )

    def body(self, prompt: "Prompt | list[int]", sample_index: int) -> dict[str, Any]:
        """What is sent: messages to chat completions, text or token ids (`vllm serve` takes them) to completions."""
        is_chat = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], dict)
        body = {"model": self.model, "messages" if is_chat else "prompt": prompt, **self.parameters}
        return body if self.seed is None else {**body, "seed": self.seed + sample_index}


def fingerprint(body: Mapping[str, Any]) -> str:
    """What tells what was asked from anything else: of url, key, waits and budget it knows nothing."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:32]


async def attempt(client: httpx2.AsyncClient, server: Server, body: Mapping[str, Any], secrets: list[str]) -> Reply:
    """Asks once.

    Args:
        client: knows the key.
        server: the server.
        body: from `Server.body`.
        secrets: what is taken out of everything that the server says.

    Raises:
        AttemptError: it may be asked again, except after `refused`, a status of `skip_statuses`.
        ServerError: asking again is of no use, for this request or any other.
    """
    path = "chat/completions" if "messages" in body else "completions"
    begun = False
    try:
        async with (
            asyncio.timeout(server.timeout_s),  # the whole of it: a server may send blanks for ever
            client.stream("POST", f"{server.url.rstrip('/')}/{path}", json=dict(body)) as response,
        ):
            begun = True
            content, fault = await _body(response)
    except httpx2.ConnectTimeout:
        raise AttemptError("timeout", f"no connection within {server.connect_timeout_s:g} s") from None
    except (TimeoutError, httpx2.TimeoutException):
        raise AttemptError("timeout", f"no whole answer within {server.timeout_s:g} s") from None
    except httpx2.TransportError as error:
        message = redact_text(str(error), secrets) or type(error).__name__
        raise AttemptError("cut" if begun else "connection", message) from None
    if response.status_code != 200:
        raise _refusal(server, response, content, redact_text(_message(content), secrets))
    try:
        if fault is not None:
            raise fault
        return read_reply(content, secrets)
    except ValueError as error:
        found = redact_text(content.decode(errors="replace"), secrets)[:MOST_CHARS]
        why = redact_text(str(error), secrets)
        raise AttemptError("garbage", f"expected a completion in JSON, found {found!r}: {why}") from None


async def _body(response: httpx2.Response) -> tuple[bytes, ValueError | None]:
    """The body, or why there is none: of a refusal the status says enough."""
    try:
        return await read_body(response), None
    except ValueError as error:
        return b"", error


def _message(content: bytes) -> str:
    """What a server says in an error, wherever it says it."""
    text = content.decode(errors="replace")
    try:
        found = read_json(content)
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and name in found:
                found = found[name]
        if isinstance(found, dict):
            found = found.get("message", found)
        text = found if isinstance(found, str) else json.dumps(found)
    except (ValueError, RecursionError):
        pass
    return " ".join(text.split())


def _refusal(server: Server, response: httpx2.Response, content: bytes, message: str) -> AttemptError | ServerError:
    status, message = response.status_code, message[:MOST_CHARS]
    said = f"status {status}: {message.rstrip('.') or 'no message'}"
    if status in server.skip_statuses:
        return AttemptError("refused", said)
    # Without money left it is the same status as after too many requests, and waiting does not help.
    if status in (408, 429) or status >= 500:
        if status == 429 and b"insufficient_quota" in content:
            return ServerError(f"{server.url} has no money left for this key ({said}); fill it up, then start again")
        wait_s = retry_after_s(response.headers.get("retry-after"), datetime.now(UTC))
        if wait_s > server.max_wait_s:
            return ServerError(
                f"{server.url} asks for a wait of {wait_s:.0f} s, above max_wait_s {server.max_wait_s:g} ({said}); "
                f"start again then, or raise max_wait_s"
            )
        cause: Cause = "timeout" if status == 408 else "rate_limit" if status == 429 else "server_error"
        return AttemptError(cause, said, wait_s)
    fix = FIXES.get(status, "look at url, model and parameters")
    if status not in (401, 403, 404):
        fix += "; a status that concerns single prompts alone can be named in skip_statuses"
    return ServerError(f"{server.url} answered with {said}. Expected 200: {fix}")


def retry_after_s(value: str | None, now: datetime) -> float:
    """Seconds that a server asks to wait for, 0 where it does not say or can't be understood.

    Args:
        value: of the header: seconds, or a date.
        now: with a time zone.

    >>> retry_after_s("2.5", datetime(2026, 1, 1, tzinfo=UTC))
    2.5
    >>> retry_after_s("Thu, 01 Jan 2026 00:00:30 GMT", datetime(2026, 1, 1, tzinfo=UTC))
    30.0
    >>> [retry_after_s(value, datetime(2026, 1, 1, tzinfo=UTC)) for value in (None, "soon", "-3", "nan", "inf")]
    [0.0, 0.0, 0.0, 0.0, 0.0]
    """
    try:
        seconds = float(value or 0)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value or "").astimezone(UTC) - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
