"""Profiles of users from an LLM on a server, or from a trained teacher, for the kind of reasoning `profile`.

A run folder holds, besides what every run folder holds:

    journal/              a server's answers, written down as they arrive; nothing that is there is asked again
    profiles.parquet      a row for each user and history: `kind_settings: {table: …}` takes it
    profiles.json         how many were asked, kept, cut, empty, failed and left

Who writes reads the events that a profile is written from, and never a target. With a longer history the key is
another one, and only what is new is asked.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import polars as pl

from anyo_rl.data.completion import split_steps
from anyo_rl.data.schema import EXAMPLE_ID, USER_ID
from anyo_rl.data.task import Task
from anyo_rl.llm.journal import Answer, Journal
from anyo_rl.llm.server import Request, Server, ServerError, ask, request_key
from anyo_rl.llm.thoughts import after_thoughts
from anyo_rl.reasoning.kinds.cot_rec import PROFILE
from anyo_rl.reasoning.kinds.kind import clean_steps
from anyo_rl.reasoning.kinds.profile import FILE, HASH, SCHEMA, Key, kept_profiles, key_of, told_events
from anyo_rl.reasoning.kinds.typed import read_typed
from anyo_rl.reasoning.rationales.prompts import RationalePrompt
from anyo_rl.reasoning.rationales.titles import Titles
from anyo_rl.run.files import write_table, write_whole
from anyo_rl.run.settings import Bounds, UsageError

REPORT = "profiles.json"
BATCH = 256  # profiles that a teacher writes together, and that a kill loses at most


@dataclass
class ProfileArguments:
    """Which profiles are written, and where to."""

    output_dir: str = field(default="runs/toy-profiles", metadata={"help": "The run folder.", "free": True})
    teacher: str | None = field(
        default=None,
        metadata={
            "help": "Run folder of a teacher that reasons and writes the profiles, in place of a server: its "
            "reasoning is the profile, of kinds with typed steps what stands after Profile:."
        },
    )
    prompt_path: str | None = field(
        default=None, metadata={"help": "Prompt file with {{ history }}; recipes/prompts/profile.yaml if unset."}
    )
    window: int = field(
        default=10,
        metadata={"bounds": Bounds(1, 10**6), "help": "Newest events that a profile leaves to the history."},
    )
    every: int = field(
        default=10, metadata={"bounds": Bounds(1, 10**6), "help": "Events after which a profile is written again."}
    )
    max_lines: int = field(default=6, metadata={"bounds": Bounds(1, 1000), "help": "Lines kept of an answer."})


@dataclass(frozen=True)
class Counts:
    """What came of the requests; all but `requests` sum to it.

    Attributes:
        requests: profiles that were to be written.
        kept: those that are in the table.
        cut: answers that were kept, less a last line that the server cut off.
        empty: answers that say nothing after their thoughts.
        left: no answer: the budget ended, or the request failed; the same command asks again.
    """

    requests: int
    kept: int
    cut: int
    empty: int
    left: int


def wanted_profiles(task: Task, window: int, every: int) -> dict[Key, tuple[str, ...]]:
    """The events of each profile that the examples of a task need, by its key."""
    found = {}
    for example_id, user in task.examples.select(EXAMPLE_ID, USER_ID).iter_rows():
        if events := told_events(task.past.before(example_id), window, every):
            found[key_of(user, events)] = events
    return found


def write_profiles(task: Task, prompt: RationalePrompt, server: Server, args: ProfileArguments) -> Counts:
    """Asks for what has not been answered yet, and writes the table of all that has.

    Args:
        task: the data.
        prompt: with a place for the history alone.
        server: where, how and up to which budget.
        args: the rest.

    Raises:
        ServerError: the server refuses, or nothing works any more; the table is written.
    """
    run_dir, titles = Path(args.output_dir), Titles(task.interactions.items)
    wanted = wanted_profiles(task, args.window, args.every)
    requests = [
        Request("\0".join(key), 0, prompt.render(titles.of(events), target="")) for key, events in wanted.items()
    ]
    error = None
    with Journal(run_dir / "journal") as journal:
        try:
            ask(requests, server, journal)
        except ServerError as caught:
            error = caught
        known = journal.answers()
    answers = [known.get(request_key(request, server)) for request in requests]
    counts = _keep(run_dir, wanted, answers, server.model, args.max_lines)
    if error is not None:
        raise error
    return counts


def profile_of(steps: Sequence[str]) -> tuple[str, ...]:
    """The profile in a reasoning: what stands after `Profile:`, or all of its steps where none begins so.

    >>> profile_of(["Profile: tea, oak", "Intention: a mug"])
    ('tea, oak',)
    """
    typed = read_typed(steps, [PROFILE]).said
    return clean_steps(list(typed.values()) or steps)


def write_profiles_by(
    task: Task, write: Callable[[Sequence[Sequence[str]]], Sequence[Sequence[str]]], name: str, args: ProfileArguments
) -> Counts:
    """Lets a teacher write what is not in the table yet, and writes the table after each batch.

    Args:
        task: the data.
        write: histories of item ids in, the steps of a reasoning for each out.
        name: of the teacher, which the table keeps.
        args: the rest.

    Raises:
        UsageError: the table is damaged, or no user has enough events for a profile.
    """
    file, wanted = Path(args.output_dir) / FILE, wanted_profiles(task, args.window, args.every)
    if not wanted:
        raise UsageError(
            f"no user has {args.window + args.every} events, which a profile takes (window + every): lower these two"
        )
    kept = kept_profiles(file)
    there = set(kept.select(USER_ID, HASH).iter_rows())
    left = [key for key in wanted if key not in there]
    for keys in (left[first : first + BATCH] for first in range(0, len(left), BATCH)):
        said = [profile_of(steps)[: args.max_lines] for steps in write([wanted[key] for key in keys])]
        rows = [(*key, len(wanted[key]), list(lines), name) for key, lines in zip(keys, said, strict=True) if lines]
        kept = pl.concat([kept, pl.DataFrame(rows, schema=SCHEMA, orient="row")])
        write_table(kept, file)
    return _reported(file.parent, Counts(len(wanted), len(kept), 0, len(wanted) - len(kept), 0))


def _keep(
    run_dir: Path, wanted: Mapping[Key, Sequence[str]], answers: Sequence[Answer | None], model: str, max_lines: int
) -> Counts:
    """Writes table and counts."""
    rows, n_cut, n_empty = [], 0, 0
    for (key, events), answer in zip(wanted.items(), answers, strict=True):
        if answer is None:
            continue
        said = after_thoughts(answer.text, answer.finish_reason)
        lines = split_steps(said.text)
        lines = clean_steps(lines if said.is_whole else lines[:-1])[:max_lines]
        n_cut += bool(lines) and not said.is_whole
        n_empty += not lines
        if lines:
            rows.append((*key, len(events), list(lines), model))
    write_table(pl.DataFrame(rows, schema=SCHEMA, orient="row"), run_dir / FILE)
    kept = len(rows) - n_cut
    return _reported(run_dir, Counts(len(wanted), kept, n_cut, n_empty, len(wanted) - kept - n_cut - n_empty))


def _reported(run_dir: Path, counts: Counts) -> Counts:
    """The counts, which are written down."""
    write_whole(run_dir / REPORT, json.dumps(asdict(counts), indent=2))
    return counts
