"""The service on the loopback, and a recommender that answers when it is let; for tests."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import uvicorn

from anyo_rl.run.settings import UsageError
from anyo_rl.serve.app import Limits, make_app
from anyo_rl.serve.recommender import Recommended, RecommendedItem, Request

TITLES = '<img src=x onerror="alert(1)"></script>'


@contextlib.contextmanager
def served(models, limits=Limits()) -> Iterator[str]:
    """The service on a free port of this machine."""
    config = uvicorn.Config(make_app(models, limits), host="127.0.0.1", port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


class Slow:
    """A recommender that answers when it is let."""

    titles: ClassVar = {"i0": "mug", "i1": TITLES, "i2": "lamp"}
    searches = reasons = False
    search, n_paths = "plain", None

    def __init__(self, real):
        self.place, self.task = real.place, real.task
        self.names = dataclasses.replace(real.names, titles=self.titles)
        self.go, self.asked, self.begun = threading.Event(), [], threading.Semaphore(0)

    def examples(self, limit):
        return [Request(("i1", "i0"), target="i1", name="u:2")]

    def check(self, request, k, search, n):
        """All can be answered."""

    def answer(self, requests, k=10, search=None, n=None, watch=None):
        self.asked.append([request.history for request in requests])
        self.begun.release()
        assert self.go.wait(20)
        if any(request.history == ("i2",) for request in requests):
            raise UsageError("no lamps")
        items = tuple(RecommendedItem(1, item, self.titles[item], -1.0) for item in ("i1",))
        return [Recommended(items, target_rank=2 if request.target else None) for request in requests]
