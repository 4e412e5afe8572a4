"""What tells the data of a run from other data, whatever the files are called: a hash of each of its parts."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence

import polars as pl

from anyo_rl.data.schema import EXAMPLE_ID, HISTORY, ITEM_ID, SPLIT, TARGET_ID, TIMESTAMP, USER_ID, Interactions

ROWS_AT_ONCE = 10_000  # as text they take some kilobytes each
EVENTS = "events"


def fingerprint(
    interactions: Interactions, examples: pl.DataFrame, rationales: Mapping[str, Sequence[Sequence[str]]]
) -> dict[str, str]:
    """A hash of the items with their titles and attributes, the events, the targets, the histories, the rationales.

    The events are all that baselines learn from; histories are as a teacher is shown them.
    """
    events = [interactions.frame.select(USER_ID, ITEM_ID, TIMESTAMP)]
    given = interactions.given
    return {
        "items": _of_frames([interactions.items]),
        EVENTS: _of_frames(events if given is None else [*events, given]),
        "targets": _of_frames([examples.select(EXAMPLE_ID, SPLIT, TARGET_ID)]),
        "histories": _of_frames([examples.select(EXAMPLE_ID, HISTORY)]),
        "rationales": _of_bytes(json.dumps(one).encode() for one in sorted(rationales.items())),
    }


def _of_frames(frames: Iterable[pl.DataFrame]) -> str:
    return _of_bytes(
        part.write_ndjson().encode() for frame in frames for part in frame.iter_slices(n_rows=ROWS_AT_ONCE)
    )


def _of_bytes(parts: Iterable[bytes]) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:16]
