"""One thread that owns a recommender, with a bounded queue before it; questions alike are answered together."""

import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

from anyo_rl.search.how import SearchMode
from anyo_rl.serve.answerers import Watch
from anyo_rl.serve.recommender import Recommended, Recommender, Request


class FullError(Exception):
    """The queue is full: ask again later."""


class ClosedError(Exception):
    """The worker has been closed, or its thread is gone."""


@dataclass(frozen=True)
class Question:
    """A request and how it is to be answered.

    Attributes:
        request: of known items.
        k: items.
        search: of a teacher; as it is evaluated if `None`.
        n: reasonings of a search; as the run's settings say if `None`.
        watch: gets steps as they are written; such a question is answered alone.
    """

    request: Request
    k: int
    search: SearchMode | None = None
    n: int | None = None
    watch: Watch | None = None

    def is_like(self, other: "Question") -> bool:
        """Whether both can be answered in one batch."""
        alike = (self.k, self.search, self.n) == (other.k, other.search, other.n)
        return alike and self.watch is None and other.watch is None


@dataclass(eq=False)
class _Waiting:
    question: Question
    answer: "Future[Recommended]" = field(default_factory=Future)


class Worker:
    """Answers questions in the order they came, those that are alike in one batch.

    Args:
        recommender: nobody else may use it meanwhile.
        most_waiting: questions in the queue, at most, besides those that are being answered.
        most_at_once: questions of a batch, at most.
    """

    def __init__(self, recommender: Recommender, most_waiting: int = 32, most_at_once: int = 32) -> None:
        self.recommender, self.most_waiting, self.most_at_once = recommender, most_waiting, most_at_once
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"asks-{recommender.place.name}", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        """Questions in the queue."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether questions are answered."""
        return self._thread.is_alive() and not self._closed

    def submit(self, question: Question) -> "Future[Recommended]":
        """Queues a question. To cancel its future takes it out of the queue; once begun it is answered to the end.

        Raises:
            FullError: there is no room.
            ClosedError: nobody will answer.
        """
        with self._changed:
            if not self.alive:
                raise ClosedError
            if self.n_waiting >= self.most_waiting:
                raise FullError
            waiting = _Waiting(question)
            waiting.answer.add_done_callback(lambda _: self._forget(waiting))
            self._waiting.append(waiting)
            self._changed.notify()
            return waiting.answer

    def close(self, patience_s: float = 10.0) -> None:
        """Answers what is queued, as far as the time goes, and ends the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(patience_s)
        with self._changed:
            left, self._waiting = list(self._waiting), deque()
        for waiting in left:
            waiting.answer.cancel()

    def _forget(self, waiting: _Waiting) -> None:
        """Takes one out of the queue whose asker has gone, so that there is room for another."""
        if waiting.answer.cancelled():
            with self._changed:
                if waiting in self._waiting:
                    self._waiting.remove(waiting)

    def _next(self) -> list[_Waiting]:
        """The next batch, once there is one; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            first = self._waiting[0]
            alike = [one for one in self._waiting if one is first or one.question.is_like(first.question)]
            batch = alike[: self.most_at_once]
            for one in batch:
                self._waiting.remove(one)
        return batch

    def _run(self) -> None:
        while batch := self._next():
            begun = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            if begun:
                self._answer(begun)

    def _answer(self, batch: list[_Waiting]) -> None:
        asked = batch[0].question
        try:
            found = self.recommender.answer(
                [one.question.request for one in batch], asked.k, asked.search, asked.n, asked.watch
            )
        except Exception as error:
            if len(batch) > 1:  # one that cannot be answered is not to spoil the others
                for one in batch:
                    self._answer([one])
                return
            batch[0].answer.set_exception(error)
            return
        for one, answer in zip(batch, found, strict=True):
            one.answer.set_result(answer)
