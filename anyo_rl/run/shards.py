"""Work in shards: killed at any moment it goes on, and any number of processes may share it.

A job is a folder:

    job.json                       what the job is: a folder belongs to one
    shard-00002-of-00007.parquet   a seventh of the work, written beside, synced and renamed
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from anyo_rl.run.files import read_json, readable, write_first, write_table
from anyo_rl.run.settings import UsageError

logger = logging.getLogger(__name__)

MANIFEST = "job.json"
FINGERPRINT = "job"  # the key of a shard's metadata
LEFTOVERS = ("shard-*.claim.*", "shard-*.partial.*", ".shard-*.partial")


class JobError(UsageError):
    """The folder belongs to another job, or what is in it is not what the job makes."""


def partition(n_rows: int, n_shards: int) -> list[range]:
    """Consecutive rows of each shard; sizes differ by 1 at most, and are 0 where there are more shards than rows."""
    return [range(s * n_rows // n_shards, (s + 1) * n_rows // n_shards) for s in range(n_shards)]


@dataclass(frozen=True)
class Shards:
    """A job in shards.

    Attributes:
        folder: the job's folder, which may be shared by machines.
        manifest: what the job is, ready for JSON: `n_shards`, `n_rows`, hashes of the rows (`rows`) and of their names
            (`example_ids`), what else it depends on, and in `arguments` what of that has names of its own.
        lease_s: a claim is void when it was not renewed for so long; more than a network folder may be behind.
        poll_s: how often others' shards are looked for.
    """

    folder: Path
    manifest: Mapping[str, Any]
    lease_s: float = 300.0
    poll_s: float = 1.0

    @classmethod
    def found_in(cls, folder: Path) -> "Shards | None":
        """The job that a folder belongs to; `None` where it is nobody's."""
        manifest = _read_manifest(folder)
        return None if manifest is None else cls(folder, manifest)

    @property
    def files(self) -> list[Path]:
        """Where the shards are, or are to be."""
        n = self.manifest["n_shards"]
        return [self.folder / f"shard-{shard:05d}-of-{n:05d}.parquet" for shard in range(n)]

    def missing(self) -> list[int]:
        """The shards that are not done.

        Raises:
            JobError: one is of another job.
        """
        fingerprint = hash_of(self.manifest)
        return [shard for shard, file in enumerate(self.files) if not _is_done(file, fingerprint)]

    def settle(self) -> None:
        """Makes the folder this job's, where it is nobody's.

        Raises:
            JobError: it is another's; one line for each difference.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if _read_manifest(self.folder) is None:
            write_first(self.folder / MANIFEST, json.dumps(self.manifest, indent=2))
        found = _read_manifest(self.folder)
        if found is not None and found != self.manifest:
            raise JobError("\n".join(_differences(self.folder, found, self.manifest)))

    def work(self, make: Callable[[int], pl.DataFrame], begin: Callable[[Sequence[int]], None] | None = None) -> None:
        """Does what is left of a settled job, and returns when all of it is done, here or by others.

        Args:
            make: gets the number of a shard and gives its table, the same whoever makes it. What a shard has besides,
                it writes before.
            begin: gets, before the first shard is made, all that are not done: for what works ahead.

        Raises:
            JobError: a shard is of another job.
        """
        fingerprint, files = hash_of(self.manifest), self.files
        left = self.missing()
        if begin is not None and left:
            begin(left)
        while left:
            busy = True
            for shard in list(left):
                file = files[shard]
                if _is_done(file, fingerprint):
                    left.remove(shard)
                    continue
                with _claim(file, self.lease_s) as partial:
                    if partial is None:
                        continue
                    busy = False
                    if not _is_done(file, fingerprint):  # by somebody else, just before
                        try:
                            frame = make(shard)
                            write_table(frame, file, {FINGERPRINT: fingerprint}, partial)
                            logger.info("%s: %d rows", file.name, len(frame))
                        except FileNotFoundError:  # the next owner of our claim was done first and tidied up
                            if not _is_done(file, fingerprint):
                                raise
                    left.remove(shard)
            if left and busy:
                time.sleep(self.poll_s)
        for pattern in LEFTOVERS:  # of owners that were killed; now all claims are void
            for leftover in self.folder.glob(pattern):
                leftover.unlink(missing_ok=True)


def hash_of(value: Any) -> str:
    """Of what is ready for JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


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
    file, fix = folder / MANIFEST, "put it back as it was, or name another folder"
    if not file.exists():
        return None
    with readable(file, fix):
        found = read_json(file, fix)
        return {**found, "n_shards": int(found["n_shards"])}


def _differences(folder: Path, found: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    """What tells a job from another, a line each, and what to do."""
    old, new = ({**job, **job["arguments"]} for job in (found, manifest))
    lines = [
        f"{folder} is of a job with {name}={old.get(name, 'unset')!r}, now {new.get(name, 'unset')!r}"
        for name in sorted((old.keys() | new.keys()) - {"example_ids", "rows", "arguments"})
        if old.get(name, "unset") != new.get(name, "unset")
    ]
    if old["example_ids"] != new["example_ids"]:
        lines.append(f"{folder} is of a job with other examples, or with these in another order")
    elif old["rows"] != new["rows"]:
        lines.append(f"{folder} is of a job with other prompts, or other columns, of the same examples")
    return [*lines, "name another folder, or remove this one"]


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
        json.dump({"place": _place(), "pid": os.getpid(), "began": _began(os.getpid())}, text)
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
    gone = owner.get("place") == _place() and not _is_alive(owner["pid"], owner.get("began"))
    if gone or _now(file.parent) - seen > lease_s:
        return max(numbers) + 1
    return None


def _place() -> str:
    """Where process ids mean the same: the machine, and on it the container."""
    namespace = Path("/proc/self/ns/pid")  # containers on one machine may share its name
    return f"{socket.gethostname()} {namespace.readlink() if namespace.is_symlink() else ''}"


def _began(pid: int) -> str | None:
    """When a process began, in ticks since the machine did; `None` where it has ended, or there is no `/proc`."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state == "Z" else fields[18]


def _is_alive(pid: int, began: str | None) -> bool:
    """Whether it is still there: numbers are given again, so that its own beginning tells."""
    if began is not None:
        return _began(pid) == began
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
