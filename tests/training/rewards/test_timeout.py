import asyncio
import logging
import threading
import time

import pytest

from anyo_rl.training.rewards.check import RewardError, guard, is_async_reward, wanted_columns
from anyo_rl.training.rewards.timeout import Limited, limit_time
from reward.lift import LiftReward

LIMIT_S = 0.1


def batch(n, **columns):
    return {
        "prompts": ["p"] * n,
        "completions": [f"c{i}" for i in range(n)],
        "completion_ids": [[i] for i in range(n)],
    } | columns


async def quick(rank, **kwargs):
    assert len(rank) == 1
    return [1 / rank[0]]


class Hangs:
    """Hangs on completion c1: in a way that lets others go on, or not."""

    calls_out = True
    floor = -1.0
    __name__ = "hangs"

    def __init__(self, release):
        self.release = release

    def __call__(self, completions, **kwargs):
        if completions == ["c1"]:
            self.release.wait(20)
        return [1.0]


@pytest.fixture
def release():
    event = threading.Event()
    yield event
    event.set()


def call(reward, **columns):
    return asyncio.run(reward(**columns))


def test_only_what_calls_out_is_limited():
    plain = LiftReward()
    assert limit_time([plain, quick], None) == [plain, quick]
    first, second = limit_time([plain, quick], 1.0)
    assert first is plain
    assert isinstance(second, Limited)
    assert second.__name__ == "quick"
    assert is_async_reward(guard(second))
    assert wanted_columns([second]) == {"rank"}
    assert call(second, **batch(3, rank=[1, 2, 4])) == [1.0, 0.5, 0.25]
    assert call(second, **batch(0, rank=[])) == []


@pytest.mark.parametrize(("action", "expected"), [("none", None), ("floor", -1.0)])
def test_a_reward_that_hangs_costs_one_sample(release, caplog, action, expected):
    (reward,) = limit_time([Hangs(release)], LIMIT_S, action)
    logged = {}
    began = time.monotonic()
    assert call(reward, **batch(4), log_metric=logged.__setitem__) == [1.0, expected, 1.0, 1.0]
    assert time.monotonic() - began < 10
    assert logged == {"rewards/hangs/timeouts": 0.25}
    with caplog.at_level(logging.WARNING):
        call(reward, **batch(2))
    assert "reward 'hangs': 1 of 2 completions had none within 0.1 s" in caplog.text


def test_one_that_blocks_its_loop_hangs_nobody_either(release):
    async def blocks(completions, **kwargs):
        release.wait(20)  # not awaited
        return [1.0]

    (reward,) = limit_time([blocks], LIMIT_S)
    assert call(reward, **batch(2)) == [None, None]


def test_raise_stops_with_the_name_of_the_reward(release):
    (reward,) = limit_time([Hangs(release)], LIMIT_S, "raise")
    with pytest.raises(
        RewardError, match=r"reward 'hangs' raised TimeoutError: no reward for completion 1 within 0.1 s"
    ):
        call(guard(reward), **batch(3))


def test_errors_of_the_reward_itself_are_errors():
    async def late(rank, **kwargs):
        raise TimeoutError("its own")

    async def wrong(completions, **kwargs):
        return [1.0, 2.0]

    with pytest.raises(RewardError, match="its own"):
        call(guard(limit_time([late], 5.0)[0]), **batch(2, rank=[1, 2]))
    with pytest.raises(RewardError, match=r"called with one completion at a time"):
        call(guard(limit_time([wrong], 5.0)[0]), **batch(2))
    with pytest.raises(RewardError, match=r"asks for column 'rank'"):
        call(guard(limit_time([quick], 5.0)[0]), **batch(2))


def test_what_it_logs_arrives_in_order():
    async def logs(completions, log_extra, log_metric, **kwargs):
        await asyncio.sleep(0.02 if completions == ["c0"] else 0.0)
        if completions != ["c1"]:
            log_extra("seen", completions)
        log_metric("n", 1.0)
        return [0.0]

    extras, metrics = {}, []
    (reward,) = limit_time([logs], 5.0)
    call(reward, **batch(3), log_extra=extras.__setitem__, log_metric=lambda name, value: metrics.append(name))
    assert extras == {"seen": ["c0", None, "c2"]}
    assert metrics == ["n"] * 3 + ["rewards/logs/timeouts"]


def test_at_most_so_many_at_once_and_waiting_is_not_counted():
    running, most, lock = 0, 0, threading.Lock()

    def slow(completions, **kwargs):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return [1.0]

    slow.calls_out, slow.concurrency = True, 2
    (reward,) = limit_time([slow], 2.0)
    assert call(reward, **batch(6)) == [1.0] * 6
    assert most == 2


@pytest.mark.parametrize(
    ("arguments", "message"), [((0.0,), "expected seconds above 0"), ((1.0, "skip"), "expected none, floor or raise")]
)
def test_clear_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        limit_time([quick], *arguments)


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, "8", None, True])
def test_a_concurrency_that_would_hang_is_refused(concurrency):
    async def mine(completions, **kwargs):
        return [1.0]

    mine.concurrency = concurrency
    with pytest.raises(ValueError, match=r"reward 'mine' has concurrency .*: expected a whole number of 1 or more"):
        limit_time([mine], 1.0)


@pytest.mark.parametrize("floor", [float("nan"), "low", None])
def test_a_floor_that_is_no_number_is_refused(floor):
    async def mine(completions, **kwargs):
        return [1.0]

    mine.floor = floor
    with pytest.raises(ValueError, match=r"reward 'mine' has floor .*: expected a finite number"):
        limit_time([mine], 1.0)
