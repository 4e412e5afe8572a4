"""Takes secrets out of what is written down: settings by their names, command lines, and texts."""

import json
from collections.abc import Sequence
from typing import Any

REDACTED = "<redacted>"
NOT_SECRET = {"marker_token", "eos_token", "pad_token"}  # names of tokens of text


def is_secret(name: str) -> bool:
    """Whether a setting of this name holds a secret: `api_key`, `judge-token`, `PASSWORD`, ….

    >>> [is_secret(name) for name in ("api_key", "HF_TOKEN", "max_new_tokens", "marker_token")]
    [True, True, False, False]
    """
    name = name.lower().lstrip("-").replace("-", "_")
    ends = name in ("token", "key") or name.endswith(("_token", "_key", "apikey"))
    return name not in NOT_SECRET and (ends or any(word in name for word in ("secret", "password", "authorization")))


def redact(value: Any, name: str = "") -> Any:
    """A copy of nested settings in which `<redacted>` stands for every secret that is set."""
    if is_secret(name) and value is not None:
        return REDACTED
    if isinstance(value, dict):
        return {key: redact(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    return value


def redact_text(text: str, secrets: Sequence[str]) -> str:
    """A text of others (a server's error) without these secrets.

    >>> redact_text("no such key: sk-1", ["sk-1"])
    'no such key: <redacted>'
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(secret, REDACTED)
    return text


def redact_command(command: Sequence[str]) -> list[str]:
    """A command without its secrets: `--api_key X`, `--api_key=X`, `HF_TOKEN=X`, and those in JSON values."""
    parts: list[str] = []
    flag = ""
    for part in command:
        name, equals, value = part.partition("=")
        if flag and not part.startswith("--"):
            parts.append(REDACTED)
        elif equals and is_secret(name):
            parts.append(f"{name}={REDACTED}")
        elif equals and name.startswith("--"):
            parts.append(f"{name}={_redact_json(value)}")
        else:
            parts.append(_redact_json(part))
        flag = part if part.startswith("--") and not equals and is_secret(part) else ""
    return parts


def _redact_json(text: str) -> str:
    if not text.startswith(("{", "[")):
        return text
    try:
        return json.dumps(redact(json.loads(text)))
    except ValueError:
        return text
