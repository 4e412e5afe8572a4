"""Sampling jobs in shards: killed at any moment they go on, and any number of processes may share the work.

A job is a folder:

    job.json                       what the job is: a folder belongs to one
    catalog/                       the tree of the catalog, for all processes of a machine
    shard-00002-of-00007.parquet   paths of a seventh of the examples, written beside, synced and renamed
    shard-00002-of-00007.claim.0   somebody is at it: who, and by its time, when last seen

A claim is renewed while its owner lives; one that was not for `lease_s` is void, and so is that of a process of this
machine which is gone (a restarted container has to wait for the first). The next owner makes the claim's next number:
only one can. Claims save work and guard nothing: an owner that was only slow writes the same shard again, whole.
"""

import hashlib
import json
import logging
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from anyo_rl.reasoning.rows import Row
from anyo_rl.run.files import sync, write_table
from anyo_rl.sampling.paths import KEY, PATHS_SCHEMA, SampledPath, paths_table
from anyo_rl.sampling.protocol import Sampling

logger = logging.getLogger(__name__)

MANIFEST = "job.json"
FINGERPRINT = "job"  # the key of a shard's metadata


class JobError(ValueError):
    """The folder belongs to another job, or what is in it is not what the job makes."""


def partition(n_rows: int, n_shards: int) -> list[range]:
    """Consecutive rows of each shard; sizes differ by 1 at most, and are 0 where there are more shards than rows."""
    return [range(s * n_rows // n_shards, (s + 1) * n_rows // n_shards) for s in range(n_shards)]


@dataclass(frozen=True)
class ShardedJob:
    """What a sampling job is.

    Attributes:
        folder: the job's folder, which may be shared by machines.
        sampling: how paths are sampled.
        policy: revision of the weights; written into each path.
        n_shards: parts that the work comes in. A kill costs at most the part that was under way.
        split: of the examples; written into each path.
        model: the teacher; written into each path.
        arguments: what paths depend on besides sampling: weights, ranking. Ready for JSON and without secrets, as
            `anyo_rl.run.folder.resolve` gives them.
        lease_s: a claim is void when it was not renewed for so long; more than a network folder may be behind.
        poll_s: how often others' shards are looked for.
    """

    folder: Path
    sampling: Sampling
    policy: str
    n_shards: int = 16
    split: str | None = None
    model: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    lease_s: float = 300.0
    poll_s: float = 1.0


def run_shards(
    rows: Sequence[Row],
    job: ShardedJob,
    make_paths: Callable[[Sequence[Row]], list[SampledPath]],
    begin: Callable[[Sequence[Row]], None] | None = None,
) -> None:
    """Does what is left of a job, and returns when all of it is done, here or by others.

    Args:
        rows: one for each example, with an `example_id` of its own.
        job: what is asked for.
        make_paths: gets the rows of a shard and gives their paths, without `policy`, `split` and `model`. They must
            not depend on which rows come together: seeds belong to examples (`VllmSampler.sample` with `keys_B`).
        begin: is told, before the first shard is made, the rows of all shards that are not done: for what works ahead.

    Raises:
        JobError: the folder is of another job; `make_paths` gave other paths than `n_samples` of each example; or
            examples are not told apart by their ids.
        ValueError: a count is below 1.
    """
    folder, n_shards, n_samples = job.folder, job.n_shards, job.sampling.n
    if n_shards < 1 or n_samples < 1:
        raise ValueError(f"n_shards {n_shards}, n_samples {n_samples}: expected at least 1")
    ids = [row.example_id for row in rows]
    if len(set(ids)) < len(ids):
        raise JobError(f"{len(ids)} rows have {len(set(ids))} different example ids: expected one of its own for each")
    manifest = {
        "policy": job.policy,
        "n_samples": n_samples,
        "n_shards": n_shards,
        "n_rows": len(ids),
        "example_ids": _hash(ids),
        "rows": _hash([row.columns() for row in rows]),
        "arguments": json.loads(json.dumps({**asdict(job.sampling), **job.arguments})),
    }
    folder.mkdir(parents=True, exist_ok=True)
    _settle(folder, manifest)
    fingerprint = _hash(manifest)
    parts = dict(enumerate(partition(len(rows), n_shards)))
    left = {shard: part for shard, part in parts.items() if not _is_done(_file(folder, shard, n_shards), fingerprint)}
    if begin is not None and left:
        begin([rows[i] for part in left.values() for i in part])
    while left:
        busy = True
        for shard, part in list(left.items()):
            file = _file(folder, shard, n_shards)
            if _is_done(file, fingerprint):
                del left[shard]
                continue
            with _claim(file, job.lease_s) as partial:
                if partial is None:
                    continue
                busy = False
                if not _is_done(file, fingerprint):  # by somebody else, just before
                    mine = slice(part.start, part.stop)
                    paths = make_paths(rows[mine]) if part else []
                    frame = _checked(
                        [replace(path, policy=job.policy, split=job.split, model=job.model) for path in paths],
                        ids[mine],
                        n_samples,
                    )
                    try:
                        write_table(frame, file, {FINGERPRINT: fingerprint}, partial)
                    except FileNotFoundError:  # the next owner of our claim was done first and tidied up
                        if not _is_done(file, fingerprint):
                            raise
                    logger.info("%s: %d paths", file.name, len(frame))
                del left[shard]
        if left and busy:
            time.sleep(job.poll_s)


def read_paths(folder: Path) -> pl.DataFrame:
    """The paths of a finished job in the order of its rows, after a check that each is there exactly once.

    Raises:
        JobError: shards are missing, or the paths are not those that the job was to make.
    """
    manifest = _read_manifest(folder)
    if manifest is None:
        raise JobError(f"found no {folder / MANIFEST}: expected the folder of a sampling job")
    n_shards = manifest["n_shards"]
    files = [_file(folder, shard, n_shards) for shard in range(n_shards)]
    missing = [file.name for file in files if not _is_done(file, _hash(manifest))]
    if missing:
        raise JobError(
            f"{len(missing)} of {n_shards} shards in {folder} are not done, such as {missing[0]}: start the job again"
        )
    shards = [pl.read_parquet(file) for file in files]
    if any(shard.schema != PATHS_SCHEMA for shard in shards):
        raise JobError(f"shards in {folder} have other columns than the paths table: they are of another version")
    paths = pl.concat(shards)
    found = paths["example_id"].unique(maintain_order=True).to_list()
    whole = len(paths) == manifest["n_rows"] * manifest["n_samples"]
    one_each = not paths.select(KEY).is_duplicated().any()
    if not whole or not one_each or _hash(found) != manifest["example_ids"]:
        raise JobError(
            f"{folder} holds {len(paths)} paths ({paths.select(KEY).n_unique()} different) of {len(found)} examples, "
            f"expected {manifest['n_samples']} of each of {manifest['n_rows']}: remove its shards and start again"
        )
    return paths


def _file(folder: Path, shard: int, n_shards: int) -> Path:
    return folder / f"shard-{shard:05d}-of-{n_shards:05d}.parquet"


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def _checked(paths: list[SampledPath], ids: list[str], n_samples: int) -> pl.DataFrame:
    """The paths of a shard as a table, in the order of its rows.

    Raises:
        JobError: they are not `n_samples` of each example.
    """
    expected = [(example, index) for example in ids for index in range(n_samples)]
    by_key = {(path.example_id, path.sample_index): path for path in paths}
    if len(paths) != len(expected) or by_key.keys() != set(expected):
        strange = [key for key in by_key if key not in set(expected)]
        lacking = [key for key in expected if key not in by_key]
        raise JobError(
            f"make_paths gave {len(paths)} paths for {len(ids)} rows, expected {n_samples} of each, numbered from 0: "
            f"{len(lacking)} lack, such as {lacking[:1]}, and {len(strange)} were not asked for, such as {strange[:1]}"
        )
    return paths_table([by_key[key] for key in expected])


def _is_done(file: Path, fingerprint: str) -> bool:
    """Whether the shard is there, whole and of this job."""
    try:
        found = pl.read_parquet_metadata(file).get(FINGERPRINT)
    except FileNotFoundError:
        return False
    except pl.exceptions.PolarsError:
        logger.warning("%s is no complete parquet file: it is made again", file)
        return False
    if found != fingerprint:
        raise JobError(f"{file} is of another job than {MANIFEST} beside it: remove it, or name another folder")
    return True


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _settle(folder: Path, manifest: dict[str, Any]) -> None:
    """Makes the folder this job's, where it is nobody's.

    Raises:
        JobError: it is another's; one line for each difference.
    """
    found = _read_manifest(folder)
    if found is None:
        partial = folder / f"{MANIFEST}.{uuid.uuid4().hex}.partial"
        partial.write_text(json.dumps(manifest, indent=2), encoding="utf-8")
        sync(partial)
        try:
            os.link(partial, folder / MANIFEST)  # a rename would replace what another process has just put there
        except FileExistsError:
            found = _read_manifest(folder)
        finally:
            partial.unlink()
    if found is None or found == manifest:
        return
    old, new = ({**job.pop("arguments"), **job} for job in (dict(found), dict(manifest)))
    lines = [
        f"{folder} is of a job with {name}={old.get(name, 'unset')!r}, now {new.get(name, 'unset')!r}"
        for name in sorted((old.keys() | new.keys()) - {"example_ids", "rows"})
        if old.get(name, "unset") != new.get(name, "unset")
    ]
    if old["example_ids"] != new["example_ids"]:
        lines.append(f"{folder} is of a job with other examples, or with these in another order")
    elif old["rows"] != new["rows"]:
        lines.append(f"{folder} is of a job with other prompts, or other columns, of the same examples")
    raise JobError("\n".join(lines) + "\nname another folder, or remove this one")


@contextmanager
def _claim(file: Path, lease_s: float) -> Iterator[Path | None]:
    """Claims a shard meanwhile: gives where to write it first, or `None` where another process is at it."""
    number = _next_number(file, lease_s)
    if number is None:
        yield None
        return
    claim = file.with_suffix(f".claim.{number}")
    try:
        descriptor = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        yield None
        return
    with os.fdopen(descriptor, "w") as text:
        json.dump({"place": _place(), "pid": os.getpid()}, text)
    done = threading.Event()
    renewal = threading.Thread(target=_renew, args=(claim, lease_s / 5, done), daemon=True)
    renewal.start()
    try:
        yield file.with_suffix(f".partial.{number}")
    finally:
        done.set()
        renewal.join()
        for earlier in range(number + 1):
            file.with_suffix(f".partial.{earlier}").unlink(missing_ok=True)
            file.with_suffix(f".claim.{earlier}").unlink(missing_ok=True)


def _renew(claim: Path, every_s: float, done: threading.Event) -> None:
    while not done.wait(every_s):
        try:
            os.utime(claim)
        except FileNotFoundError:  # the next owner tidied up
            return


def _next_number(file: Path, lease_s: float) -> int | None:
    """The number of a new claim; `None` while the last one holds."""
    numbers = [int(claim.suffix[1:]) for claim in file.parent.glob(f"{file.stem}.claim.*")]
    if not numbers:
        return 0
    last = file.with_suffix(f".claim.{max(numbers)}")
    try:
        seen = last.stat().st_mtime
        owner = json.loads(last.read_text(encoding="utf-8") or "{}")
    except FileNotFoundError:
        return None  # just given up: the next look will tell
    except ValueError:  # half written
        owner = {}
    gone = owner.get("place") == _place() and not _is_alive(owner["pid"])
    if gone or _now(file.parent) - seen > lease_s:
        return max(numbers) + 1
    return None


def _place() -> str:
    """Where process ids mean the same: the machine, and on it the container."""
    namespace = Path("/proc/self/ns/pid")  # containers on one machine may share its name
    return f"{socket.gethostname()} {namespace.readlink() if namespace.is_symlink() else ''}"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _now(folder: Path) -> float:
    """The time by the clock that stamps the folder's files, which may be another machine's."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="clock.") as probe:
        return os.stat(probe.name).st_mtime
