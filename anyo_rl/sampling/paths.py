"""A sampled path with everything known of it, and the table of them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import polars as pl

KEY = ("example_id", "sample_index", "policy")  # one path each


@dataclass(frozen=True)
class SampledPath:
    """One sampled completion with all that is known of it: a row of the paths table. What is not known is `None`.

    Attributes:
        example_id: of the example that it was sampled for.
        sample_index: which of the example's paths it is, from 0.
        policy: revision of the weights that wrote it.
        split: of the example.
        user_id: of the example.
        history: titles of the history.
        prompt: what it was sampled after; of a chat the last message.
        completion: what was written, as people see it.
        token_ids: of the completion, its stop token included.
        token_log_probs: of each of these tokens.
        steps: of its reasoning.
        item_id: the item ranked first after it, or written by it.
        item_title: its title.
        target_id: the item chosen next.
        target_title: its title.
        rank: 1-based rank of the target.
        ranker: what ranked it.
        cap: ranks are told apart up to here; `None`: all are.
        rewards: JSON, by name.
        step_values: what its states are worth.
        finish_reason: `stop` or `length`.
        model: the teacher.
        seed: of its request.
    """

    example_id: str
    sample_index: int
    policy: str | None = None
    split: str | None = None
    user_id: str | None = None
    history: list[str] | None = None
    prompt: str | None = None
    completion: str | None = None
    token_ids: list[int] | None = None
    token_log_probs: list[float] | None = None
    steps: list[str] | None = None
    item_id: str | None = None
    item_title: str | None = None
    target_id: str | None = None
    target_title: str | None = None
    rank: int | None = None
    ranker: str | None = None
    cap: int | None = None
    rewards: str | None = None
    step_values: list[float] | None = None
    finish_reason: str | None = None
    model: str | None = None
    seed: int | None = None


PATHS_SCHEMA = pl.Schema(
    {
        "example_id": pl.String(),
        "sample_index": pl.Int64(),
        "policy": pl.String(),
        "split": pl.String(),
        "user_id": pl.String(),
        "history": pl.List(pl.String()),
        "prompt": pl.String(),
        "completion": pl.String(),
        "token_ids": pl.List(pl.Int64()),
        "token_log_probs": pl.List(pl.Float32()),
        "steps": pl.List(pl.String()),
        "item_id": pl.String(),
        "item_title": pl.String(),
        "target_id": pl.String(),
        "target_title": pl.String(),
        "rank": pl.Int64(),
        "ranker": pl.String(),
        "cap": pl.Int64(),
        "rewards": pl.String(),
        "step_values": pl.List(pl.Float32()),
        "finish_reason": pl.String(),
        "model": pl.String(),
        "seed": pl.Int64(),
    }
)


def paths_table(paths: Sequence[SampledPath]) -> pl.DataFrame:
    """Paths as a table of all columns.

    Raises:
        ValueError: a path lacks a part of its key.
    """
    for path in paths:
        missing = [name for name in KEY if getattr(path, name) is None]
        if missing:
            raise ValueError(
                f"path {path.sample_index} of example {path.example_id!r} has no {', '.join(missing)}: expected one, "
                f"since paths are told apart by {', '.join(KEY)}"
            )
    names = [field.name for field in fields(SampledPath)]
    return pl.DataFrame(
        {name: pl.Series(name, [getattr(path, name) for path in paths], dtype=PATHS_SCHEMA[name]) for name in names}
    )
