"""A journal of answers that cost money: each is on the disk before anything else happens to it.

JSON lines in a folder, one file for each process that writes at the same time; a file is locked by its writer, and
taken up again by the next one when that is gone. A process killed while writing leaves half a line at the end of its
file: readers pass over it, and the next writer cuts it off.
"""

import fcntl
import itertools
import json
import os
import re
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

Key = tuple[str, int, str]


class JournalError(ValueError):
    """A line of a journal can't be read, and it is not what a kill leaves behind."""


@dataclass(frozen=True)
class Answer:
    """What came back for one request.

    Attributes:
        example_id: the example.
        sample_index: which of the example's samples, from 0.
        fingerprint: of model, prompt and parameters.
        text: what was written; empty where the model spent all its tokens on thoughts that the server keeps.
        finish_reason: as the server says it (`stop`, `length`, `content_filter`, …); `None` where it says nothing.
        prompt_tokens: as the server counts them; `None` where it does not.
        completion_tokens: as the server counts them; `None` where it does not.
        money: what it cost, in the currency of the prices; `None` without prices or counts.
        attempts: how often it was asked until it came, from 1.
    """

    example_id: str
    sample_index: int
    fingerprint: str
    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    money: float | None
    attempts: int

    @property
    def key(self) -> Key:
        """What makes two answers the same one."""
        return self.example_id, self.sample_index, self.fingerprint


class Journal:
    """The journal of a folder, open for writing; used as a context manager.

    Several processes may have the same folder open: each writes a file of its own. They do not share out the work: one
    request that two of them ask at the same time is paid for twice, and comes out once when it is read.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # The host is in the name since locks of other machines can't always be seen in a shared folder.
        host = re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())
        for number in itertools.count():
            self.file = folder / f"answers-{host}-{number}.jsonl"
            self._fd = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                os.close(self._fd)
        _, n_whole_bytes = _read(self.file)
        os.ftruncate(self._fd, n_whole_bytes)
        os.fsync(self._fd)
        folder_fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(folder_fd)  # or the new file's name might be lost with the power
        finally:
            os.close(folder_fd)

    def answers(self) -> dict[Key, Answer]:
        """Every answer of the folder so far, those of other processes included; see `read_answers`."""
        return read_answers(self.folder)

    def append(self, answer: Answer) -> None:
        """Writes an answer down; when this returns it survives a kill and a loss of power.

        Raises:
            OSError: it could not be written (a full disk): nothing of it is left in the file.
        """
        line = json.dumps(asdict(answer)).encode() + b"\n"  # ASCII: no text can break the line
        n_bytes_before = os.fstat(self._fd).st_size
        try:
            while line:
                line = line[os.write(self._fd, line) :]
            os.fsync(self._fd)
        except BaseException:
            os.ftruncate(self._fd, n_bytes_before)
            raise

    def close(self) -> None:
        """Gives the file free for the next writer."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_answers(folder: Path) -> dict[Key, Answer]:
    """The answers in a folder, each key once: the first one, in the order of files and lines.

    Raises:
        JournalError: a line can't be read, and it is not half a line at the end of its file.
    """
    answers: dict[Key, Answer] = {}
    for file in sorted(folder.glob("answers-*.jsonl")):
        for answer in _read(file)[0]:
            answers.setdefault(answer.key, answer)
    return answers


def _read(file: Path) -> tuple[list[Answer], int]:
    """The answers of a file, and how many bytes they take: what comes after is half a line."""
    answers: list[Answer] = []
    n_bytes = 0
    with file.open("rb") as opened:
        lines = list(opened)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if row is None and number == len(lines):
            break
        try:
            answers.append(Answer(**(row or {})))
        except TypeError as error:  # whole, but not one of ours: it may have cost money, so it is not thrown away
            raise JournalError(
                f"{file}, line {number}: expected an answer in JSON, found {line[:60]!r}; remove the line, and what "
                f"it answered is asked for again"
            ) from error
        n_bytes += len(line)
    return answers, n_bytes
