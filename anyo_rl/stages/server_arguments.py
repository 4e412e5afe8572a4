"""Settings of a server: the settings of `anyo_rl.llm.http.Server`, with its words and defaults."""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from anyo_rl.llm.server import Server

_OF_SERVER = {item.name: item.metadata for item in dataclasses.fields(Server)}
# It is not shown, since it may hold a secret.
_NO_MAPPING = 'parameters is no mapping: expected one in YAML, or JSON as a flag: {"max_tokens": 300}'


@dataclass
class ServerArguments:
    """Which server is asked, how, and up to which budget."""

    url: str = field(default="http://localhost:8000/v1", metadata=_OF_SERVER["url"])
    model: str | None = field(default=None, metadata=_OF_SERVER["model"])
    parameters: dict[str, Any] | str | None = field(default=None, metadata=_OF_SERVER["parameters"])
    seed: int | None = field(default=Server.seed, metadata=_OF_SERVER["seed"])
    key_variable: str | None = field(default=Server.key_variable, metadata=_OF_SERVER["key_variable"])
    concurrency: int = field(default=Server.concurrency, metadata=_OF_SERVER["concurrency"])
    connect_timeout_s: float = field(default=Server.connect_timeout_s, metadata=_OF_SERVER["connect_timeout_s"])
    timeout_s: float = field(default=Server.timeout_s, metadata=_OF_SERVER["timeout_s"])
    max_attempts: int = field(default=Server.max_attempts, metadata=_OF_SERVER["max_attempts"])
    max_failures_in_a_row: int = field(
        default=Server.max_failures_in_a_row, metadata=_OF_SERVER["max_failures_in_a_row"]
    )
    first_wait_s: float = field(default=Server.first_wait_s, metadata=_OF_SERVER["first_wait_s"])
    max_wait_s: float = field(default=Server.max_wait_s, metadata=_OF_SERVER["max_wait_s"])
    skip_statuses: list[int] = field(
        default_factory=lambda: list(Server.skip_statuses), metadata=_OF_SERVER["skip_statuses"]
    )
    prompt_price: float | None = field(default=Server.prompt_price, metadata=_OF_SERVER["prompt_price"])
    completion_price: float | None = field(default=Server.completion_price, metadata=_OF_SERVER["completion_price"])
    max_tokens_in_all: int | None = field(default=Server.max_tokens_in_all, metadata=_OF_SERVER["max_tokens_in_all"])
    max_money: float | None = field(default=Server.max_money, metadata=_OF_SERVER["max_money"])

    def __post_init__(self) -> None:
        """Reads what a flag can't say otherwise: JSON for `parameters`, `null` or an empty text for no key.

        Raises:
            ValueError: `parameters` is no mapping.
        """
        if isinstance(self.parameters, str):
            try:
                self.parameters = json.loads(self.parameters)
            except ValueError:
                raise ValueError(_NO_MAPPING) from None
        if not isinstance(self.parameters, dict | None):
            raise ValueError(_NO_MAPPING)
        if self.key_variable in ("", "null", "none", "None"):
            self.key_variable = None

    def server(self) -> Server:
        """The server.

        Raises:
            ValueError: a setting is missing, out of its range, holds a secret, or lacks another one.
        """
        if not self.model:
            raise ValueError(f"no model: name the one that {self.url} serves (--model)")
        settings = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        statuses = tuple(self.skip_statuses) if isinstance(self.skip_statuses, list) else self.skip_statuses
        return Server(**settings | {"parameters": self.parameters or {}, "skip_statuses": statuses})
