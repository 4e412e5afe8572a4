"""A journal of answers that cost money: each is on the disk before anything else happens to it.

JSON lines in a folder, one file for each process that writes at the same time; a file is locked by its writer, and
taken up again by the next one when that is gone. A process killed while writing leaves half a line at the end of its
file: readers pass over it, and the next writer cuts it off.
"""

import fcntl
import itertools
import json
import logging
import os
import re
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from anyo_rl.llm.reply import Reply, TooDeepError, read_json

MOST_MONEY = 1e15  # in any currency

Key = tuple[str, int, str]

logger = logging.getLogger(__name__)


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

    Raises:
        ValueError: a part of it is none, or out of its bounds: written down, it would stop every later start.
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

    def __post_init__(self) -> None:
        Reply(self.text, self.finish_reason, self.prompt_tokens, self.completion_tokens)
        if not (isinstance(self.example_id, str) and isinstance(self.fingerprint, str)):
            raise ValueError("example_id or fingerprint is no text")
        if not (type(self.sample_index) is int and type(self.attempts) is int):
            raise ValueError("sample_index or attempts is no whole number")
        if self.money is not None and not (isinstance(self.money, int | float) and 0 <= self.money <= MOST_MONEY):
            raise ValueError("money is no amount")

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
        _, n_whole_bytes, _ = _read(self.file)
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

    Those that can't be used, as older versions wrote them down, are passed over with a warning.

    Raises:
        JournalError: a line can't be read, and it is not half a line at the end of its file.
    """
    answers: dict[Key, Answer] = {}
    for file in sorted(folder.glob("answers-*.jsonl")):
        found, _, useless = _read(file)
        for answer in found:
            answers.setdefault(answer.key, answer)
        if useless:
            logger.warning(
                "%s: %d answers can't be used and are asked for again, the first in %s", file, len(useless), useless[0]
            )
    return answers


def _read(file: Path) -> tuple[list[Answer], int, list[str]]:
    """The answers of a file, how many bytes it has before half a line, and which lines can't be used."""
    answers: list[Answer] = []
    useless: list[str] = []
    n_bytes = 0
    with file.open("rb") as opened:
        lines = list(opened)
    for number, line in enumerate(lines, start=1):
        try:
            row = read_json(line) if line.endswith(b"\n") else None
        except TooDeepError as error:
            useless.append(f"line {number}: {error}")
            n_bytes += len(line)
            continue
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
        except ValueError as error:
            useless.append(f"line {number}: {error}")
        n_bytes += len(line)
    return answers, n_bytes, useless
