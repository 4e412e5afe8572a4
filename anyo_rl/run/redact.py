"""Takes secrets out of what is written down: settings, command lines and texts, by their names and by their values.

A value shows itself as a secret by its form: a URL's user and password, a secret in its query, a header, a private
key, a key of a known maker, `name: value` or `name=value` with a secret's name. JSON inside a text is settings too.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

REDACTED = "<redacted>"
NOT_SECRET = {"marker_token", "bos_token", "eos_token", "pad_token", "unk_token"}  # names of tokens of text

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_SECRET_WORDS = {"auth", "bearer", "cookie", "cookies", "jwt", "pem", "pwd"}
# Anywhere in a name, however its words are put together.
_SECRET_PARTS = (
    *("secret", "password", "passwd", "passphrase", "authorization", "credential", "apikey", "accesskey", "authkey"),
    *("privatekey", "signingkey", "encryptionkey", "sshkey", "accesstoken", "authtoken", "refreshtoken"),
    *("sessiontoken", "bearertoken"),
)
_QUERY_WORDS = {"sig", "signature", "hmac"}
_UNSET = {"null", "None", "~"}
_TOO_SHORT = {"key", "token"}  # in a free text they may be any word

_VALUE = r"(?![\"']?<redacted>)(?P<value>\"[^\"]*\"?|'[^']*'?|(?:(?:Bearer|Basic|Digest|Token)\s+)?[^\s,;&\"'})\]]+)"
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
# A password may hold what a URL should not; what follows a colon is a port only where it is a number.
_USER = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]{0,20}://)"
    r"(?:[^/\s?#'\"]*@|[^/\s:@'\"]+:(?!\d+(?:[/?#\s'\"]|\Z))[^\s@'\"]*@)"
)
_QUERY = re.compile(r"(?<=[?&;])(?P<name>[\w.%-]+)(?P<between>=)(?P<value>[^&#\s'\"]*)")
_HEADER = re.compile(r"(?P<name>(?:Proxy-)?Authorization|(?:Set-)?Cookie)(?P<between>:\s*)(?P<value>[^\n]+)", re.I)
_NAMED = re.compile(r"(?P<quote>[\"']?)(?P<name>[A-Za-z][\w-]{0,60})(?P=quote)(?P<between>\s*[:=]\s*)" + _VALUE)
_FLAG = re.compile(r"(?<!\S)(?P<name>--[\w.-]+)(?P<between>\s+)(?!-)" + _VALUE)
_SCHEME = re.compile(r"\b(Bearer|Basic)\s+(?=[\w.~+/-]*[\d=])[\w.~+/=-]{8,}")
_OF_MAKERS = re.compile(
    r"(?<![\w/.-])(?:[sprk]k-(?=[\w-]*\d)[\w-]{16,}|hf_\w{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|xox[abprs]-[\w-]{10,}"
    r"|AKIA[A-Z0-9]{16}\b|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
)


def is_secret(name: str) -> bool:
    """Whether a setting of this name holds a secret: `api_key`, `judge-token`, `PASSWORD`, `privateKeyPem`, ….

    >>> [is_secret(name) for name in ("api_key", "HF_TOKEN", "max_new_tokens", "marker_token")]
    [True, True, False, False]
    """
    words = _words(name)
    if "_".join(words) in NOT_SECRET or not words:
        return False
    joined = "".join(words)
    return (
        words[-1] in _TOO_SHORT
        or joined == "pass"
        or not _SECRET_WORDS.isdisjoint(words)
        or any(part in joined for part in _SECRET_PARTS)
    )


def redact(value: Any, name: str = "") -> Any:
    """A copy of nested settings in which `<redacted>` stands for every secret that is set."""
    if is_secret(name) and value is not None:
        return REDACTED
    if isinstance(value, dict):
        # Headers are also written as {name: Authorization, value: …}, or as pairs.
        named = any(isinstance(value.get(key), str) and is_secret(value[key]) for key in ("name", "key", "header"))
        return {key: redact(inner, "secret" if named and key == "value" else str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        if len(value) == 2 and all(isinstance(one, str) for one in value) and is_secret(value[0]):
            return [value[0], REDACTED]
        return [redact(inner) for inner in value]
    return redact_forms(value) if isinstance(value, str) else value


def redact_forms(text: str) -> str:
    """A text without what its form tells to be a secret; all other text stays as it is.

    >>> redact_forms("http://me:sesame@host:8000/v1?key=open&n=1")
    'http://<redacted>@host:8000/v1?key=<redacted>&n=1'
    >>> redact_forms("Authorization: Basic bWU6c2VzYW1l")
    'Authorization: <redacted>'
    """
    if text.lstrip().startswith(("{", "[")):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict | list):
            clean = redact(found)
            return text if clean == found else json.dumps(clean)
    text = _PRIVATE_KEY.sub(REDACTED, text)
    text = _USER.sub(rf"\1{REDACTED}@", text)
    for form in (_QUERY, _HEADER, _FLAG, _NAMED):
        text = form.sub(_without_value, text)
    text = _SCHEME.sub(rf"\1 {REDACTED}", text)
    return _OF_MAKERS.sub(REDACTED, text)


def redact_text(text: str, secrets: Sequence[str]) -> str:
    """A text of others (a server's error) without these secrets.

    >>> redact_text("no such key: sk-1", ["sk-1"])
    'no such key: <redacted>'
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):  # one may be the beginning of another
        text = text.replace(secret, REDACTED)
    return text


def redact_command(command: Sequence[str]) -> list[str]:
    """A command without its secrets: `--api_key X`, `--api_key=X`, `HF_TOKEN=X`, and those that their form tells."""
    parts: list[str] = []
    flag = ""
    for part in command:
        name, equals, value = part.partition("=")
        if flag and not part.startswith("--"):
            parts.append(REDACTED)
        elif equals and re.fullmatch(r"[\w.-]+", name) and is_secret(name):
            parts.append(f"{name}={REDACTED}")
        elif equals and name.startswith("--"):
            parts.append(f"{name}={redact_forms(value)}")
        else:
            parts.append(redact_forms(part))
        flag = part if part.startswith("--") and not equals and is_secret(part) else ""
    return parts


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def _without_value(found: re.Match[str]) -> str:
    """What a form has found, its value redacted if its name is a secret's."""
    groups = found.groupdict()
    name, value, quote = groups["name"], groups["value"], groups.get("quote") or ""
    secret = is_secret(name)
    if found.re is _QUERY:
        secret = secret or not _QUERY_WORDS.isdisjoint(_words(name))
    elif found.re is _NAMED and not quote:
        secret = secret and name.lower() not in _TOO_SHORT
    if not secret or value in _UNSET:
        return found[0]
    around = value[0] if value[:1] in ('"', "'") else ""
    return f"{quote}{name}{quote}{groups['between']}{around}{REDACTED}{around}"
