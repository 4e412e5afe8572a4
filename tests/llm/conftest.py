"""A time that tests move on."""

import asyncio
import threading

import pytest


class FakeClock:
    """A time that passes only at the end of a sleep: after `together` sleeps, or a second for whoever does not."""

    def __init__(self):
        self.now_s, self.together, self.sleeps = 0.0, 1, []
        self.sleeping = threading.Event()

    def __call__(self):
        return self.now_s

    async def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.sleeping.set()
        await asyncio.sleep(0)
        for _ in range(100):
            if len(self.sleeps) >= self.together:
                break
            await asyncio.sleep(0.01)
        self.now_s += seconds


@pytest.fixture
def fake_clock():
    return FakeClock()
