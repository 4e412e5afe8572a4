"""A time limit for rewards that call out, for each completion: one that hangs must not hang the run.

Rewards that call out are those that are `async def`, and others that say so by an attribute `calls_out = True`. With a
limit each of them is called with one completion at a time, `concurrency` (an attribute, 16 if there is none) of them
together, in threads that are given up when their time is over: a call that hangs may stay behind, as a daemon that
ends with the process.
"""

import asyncio
import inspect
import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

from anyo_rl.training.rewards.check import NOT_COLUMNS, inner_reward, is_async_reward

OnTimeout = Literal["none", "floor", "raise"]
CONCURRENCY = 16

logger = logging.getLogger(__name__)


def limit_time(
    reward_funcs: Sequence[Callable[..., Any]], timeout_s: float | None, on_timeout: OnTimeout = "none"
) -> list[Callable[..., Any]]:
    """Rewards, those that call out with a limit.

    Args:
        reward_funcs: the rewards, as they were loaded.
        timeout_s: for one completion, in seconds, from when its call begins; `None` for no limit.
        on_timeout: what a completion gets whose time is over: `none` is no reward, `floor` the reward's attribute
            `floor` (0.0 if there is none), `raise` stops the run.

    Raises:
        ValueError: the limit is not above 0, what to do is unknown, or a reward's `concurrency` or `floor` is none.
    """
    if timeout_s is None:
        return list(reward_funcs)
    if not timeout_s > 0:
        raise ValueError(f"reward_timeout_s is {timeout_s}: expected seconds above 0, or none for no limit")
    if on_timeout not in ("none", "floor", "raise"):
        raise ValueError(f"reward_on_timeout is {on_timeout!r}: expected none, floor or raise")
    return [
        Limited(reward, timeout_s, on_timeout)
        if is_async_reward(reward) or getattr(inner_reward(reward), "calls_out", False)
        else reward
        for reward in reward_funcs
    ]


class Limited:
    """A reward with a time limit for each completion; see `limit_time`.

    Logs `rewards/<name>/timeouts`, the share of completions whose time was over.

    Raises:
        ValueError: its `concurrency` or `floor` is none.
    """

    def __init__(self, reward: Callable[..., Any], timeout_s: float, on_timeout: OnTimeout) -> None:
        inner = inner_reward(reward)
        self.reward = reward
        self.timeout_s = timeout_s
        self.on_timeout = on_timeout
        self.floor: float = getattr(inner, "floor", 0.0)
        self.concurrency: int = getattr(inner, "concurrency", CONCURRENCY)
        self.__name__ = getattr(inner, "__name__", type(inner).__name__)
        if type(self.concurrency) is not int or self.concurrency < 1:  # with none at once it would wait for ever
            raise ValueError(
                f"reward {self.__name__!r} has concurrency {self.concurrency!r}: expected a whole number of 1 or more"
            )
        if not isinstance(self.floor, int | float) or not math.isfinite(self.floor):
            raise ValueError(f"reward {self.__name__!r} has floor {self.floor!r}: expected a finite number")
        self.__signature__ = inspect.signature(reward)  # what columns it takes is checked before the call
        for name in ("columns", "weighs_groups", "fit"):
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))

    async def __call__(
        self,
        *,
        completions: list[Any],
        log_metric: Callable[[str, float], None] | None = None,
        log_extra: Callable[[str, list[Any]], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """One reward per completion.

        Raises:
            TimeoutError: the time of one is over, and that stops the run.
        """
        n = len(completions)
        columns["completions"] = completions
        gate = asyncio.Semaphore(self.concurrency)
        extras: dict[str, list[Any]] = {}

        async def one(row: int) -> tuple[float | None, bool]:
            def keep(name: str, values: list[Any]) -> None:
                extras.setdefault(name, [None] * n)[row : row + 1] = values

            of_row = {
                name: value[row : row + 1]
                if name not in NOT_COLUMNS and isinstance(value, list | tuple) and len(value) == n
                else value
                for name, value in columns.items()
            }
            async with gate:
                call = _in_thread(self.reward, {**of_row, "log_metric": log_metric, "log_extra": keep})
                try:
                    return _single(await asyncio.wait_for(call, self.timeout_s)), False
                except TimeoutError:
                    if not call.cancelled():
                        raise  # the reward's own
                    if self.on_timeout == "raise":
                        raise TimeoutError(f"no reward for completion {row} within {self.timeout_s:g} s") from None
                    return self.floor if self.on_timeout == "floor" else None, True

        tasks = [asyncio.ensure_future(one(row)) for row in range(n)]
        try:
            found = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        n_late = sum(late for _, late in found)
        if n_late:
            logger.warning(
                "reward %r: %d of %d completions had none within %g s", self.__name__, n_late, n, self.timeout_s
            )
        if log_metric is not None:
            log_metric(f"rewards/{self.__name__}/timeouts", n_late / max(n, 1))
        if log_extra is not None:
            for name, values in extras.items():
                log_extra(name, values)
        return [value for value, _ in found]


def _in_thread(reward: Callable[..., Any], columns: dict[str, Any]) -> "asyncio.Future[Any]":
    """Calls a reward in a thread of its own, with a loop of its own where it is async.

    Not by an executor: its threads are waited for at the end of the process.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if future.done():  # given up
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)

    def call() -> None:
        value, error = None, None
        try:
            value = reward(**columns)
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
        except BaseException as raised:
            error = raised if isinstance(raised, Exception) else RuntimeError(repr(raised))
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=call, daemon=True, name="reward").start()
    return future


def _single(values: Any) -> Any:
    """The value of a batch of one."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, list | tuple) or len(values) != 1:
        raise ValueError(
            f"it returned {values!r} for one completion, expected a list with one value: with reward_timeout_s, "
            f"rewards that call out are called with one completion at a time"
        )
    return values[0]
