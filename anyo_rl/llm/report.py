"""What a call to a server came to, in numbers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Report:
    """`requests` are the sum of `known`, `answered`, all `failed`, and `left`.

    Attributes:
        requests: how many there were.
        known: those that the journal had before.
        asked: those that went out.
        answered: those whose answer came.
        left: those without a result.
        attempts: in all.
        retried: attempts made again, by cause.
        failed: requests given up, by cause.
        without_usage: answers that came without counts.
        prompt_tokens: of this call.
        completion_tokens: of this call.
        money: of this call; `None` without prices.
        seconds: of this call.
        tokens_in_all: of the journal, which budgets are about.
        money_in_all: of the journal; `None` without prices.
        stopped: `budget` or `None`.
    """

    requests: int
    known: int
    asked: int
    answered: int
    left: int
    attempts: int
    retried: Mapping[str, int]
    failed: Mapping[str, int]
    without_usage: int
    prompt_tokens: int
    completion_tokens: int
    money: float | None
    seconds: float
    tokens_in_all: int
    money_in_all: float | None
    stopped: str | None

    def as_json(self) -> dict[str, object]:
        """Ready for JSON, in the order of the fields."""
        return asdict(self)
