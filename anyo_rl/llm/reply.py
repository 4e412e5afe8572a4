"""What a server sends, bounded and validated before anything keeps it: strangers may send anything.

What is refused here is garbage, and is asked for again as any other bad answer: a body that is too large, compressed
or not, or nested too deep; text that is no Unicode (half an emoji, which no table could hold); counts that are none.
"""

import json
import zlib
from dataclasses import dataclass
from typing import Any

import httpx2

from anyo_rl.run.redact import redact_text

MOST_BYTES = 16 * 2**20  # an answer of 100,000 tokens has about half a million
MOST_TOKENS = 10**9
MOST_REASON_CHARS = 100
ENCODINGS = {"", "identity", "gzip", "x-gzip", "deflate"}
GZIP_OR_ZLIB = 47  # as wbits of zlib: whichever it is


class TooDeepError(ValueError):
    """JSON whose lists and objects are nested so deep that it can't be read."""


@dataclass(frozen=True)
class Reply:
    """What an answer says; see `Answer`.

    Raises:
        ValueError: a part of it is none, or out of its bounds.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not isinstance(self.finish_reason, str | None):
            raise ValueError(
                f"text and finish_reason are {type(self.text).__name__} and {type(self.finish_reason).__name__}"
            )
        try:
            self.text.encode()
            (self.finish_reason or "").encode()
        except UnicodeEncodeError:
            raise ValueError("its text is no Unicode: it holds half a character (a lone surrogate)") from None
        if len(self.finish_reason or "") > MOST_REASON_CHARS:
            raise ValueError(f"its finish_reason has {len(self.finish_reason or '')} characters")
        for count in (self.prompt_tokens, self.completion_tokens):
            if count is not None and (type(count) is not int or not 0 <= count <= MOST_TOKENS):
                raise ValueError(f"a count of its tokens is none from 0 to {MOST_TOKENS:,}")


async def read_body(response: httpx2.Response) -> bytes:
    """The body of a response that is streamed, decompressed, as far as `MOST_BYTES`.

    Raises:
        ValueError: it is larger, or can't be decompressed.
    """
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding not in ENCODINGS:
        raise ValueError(f"its encoding is {encoding[:MOST_REASON_CHARS]!r}, expected gzip or none")
    unzip = zlib.decompressobj(GZIP_OR_ZLIB) if "zip" in encoding or encoding == "deflate" else None
    content = bytearray()
    async for chunk in response.aiter_raw():  # the client's own decoding has no bound
        try:
            content += unzip.decompress(chunk, MOST_BYTES + 1 - len(content)) if unzip else chunk
        except zlib.error as error:
            raise ValueError(f"it can't be decompressed: {error}") from None
        if len(content) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
    return bytes(content)


def read_json(content: bytes) -> Any:
    """What a body says in JSON.

    Raises:
        ValueError: it is no JSON.
        TooDeepError: it may be some, nested too deep.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise TooDeepError("it is nested too deep") from None


def read_reply(content: bytes, secrets: list[str]) -> Reply:
    """Reads a completion.

    Args:
        content: the body.
        secrets: what is taken out of everything that the server says.

    Raises:
        ValueError: it is none.
    """
    answer = read_json(content)
    try:
        (choice,) = answer["choices"]
        # Thoughts that use up all tokens, or a filter, leave no content at all.
        text = (choice["message"]["content"] or "") if "message" in choice else choice["text"]
        finish_reason = choice.get("finish_reason")
        usage = answer.get("usage") or {}
        reply = Reply(text, finish_reason, usage.get("prompt_tokens"), usage.get("completion_tokens"))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError("it is no completion") from error
    finish_reason = reply.finish_reason and redact_text(reply.finish_reason, secrets)
    return Reply(redact_text(reply.text, secrets), finish_reason, reply.prompt_tokens, reply.completion_tokens)
