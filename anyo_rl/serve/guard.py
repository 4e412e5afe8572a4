"""Around every request: the size of bodies, headers that keep pages to themselves, and what is counted."""

import base64
import hashlib
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException
from prometheus_client import CollectorRegistry, Counter, Histogram

MOST_BODY_BYTES = 64 * 1024
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
TOO_LARGE = f"the body has more than {MOST_BODY_BYTES} bytes: send fewer items, or their ids"


def policy(page: str) -> str:
    """The content security policy of a page: its own inline style and script, this server, and nothing else."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in found)

    sources = {"style-src": hashes("style"), "script-src": hashes("script")}
    told = "; ".join(f"{name} {value}" for name, value in sources.items() if value)
    return (
        f"default-src 'none'; {told}; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class Guard:
    """Wraps the application.

    Args:
        app: the application.
        registry: where counts go.
    """

    def __init__(self, app: App, registry: CollectorRegistry) -> None:
        self.app = app
        self.n_requests = Counter(
            "anyo_rl_requests", "Requests answered, by path and status.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "anyo_rl_request_seconds", "From the first byte to the last.", ["path"], registry=registry
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handles one request; whatever is none goes through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, n_bytes = time.perf_counter(), 500, 0

        async def limited() -> Message:
            nonlocal n_bytes
            message = await receive()
            n_bytes += len(message.get("body", b""))
            if n_bytes > MOST_BODY_BYTES:
                raise HTTPException(413, TOO_LARGE)
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]
                message["headers"] = [*message.get("headers", []), *own, (b"cache-control", b"no-store")]
            await send(message)

        try:
            await self.app(scope, limited, noted)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # a path that nobody knows is not to make a series
            self.n_requests.labels(path, str(status)).inc()
            self.seconds.labels(path).observe(time.perf_counter() - began)
