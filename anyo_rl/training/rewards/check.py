"""A bug in a reward stops the run, on every process, with a message that names the reward and shows the sample.

`guard` wraps each reward before the trainer gets it, and gives it columns of its own. A reward that exits is one that
failed: the run must not end as if all were well. TRL gathers the rewards of all processes right after computing
them, so a process that raised there would leave the others waiting in the gather. `DeferredErrors` keeps the error
instead and answers zeros, and the processes compare notes before any of these rewards is used:

    self._reward_errors = DeferredErrors()
    reward_funcs = [self._reward_errors.defer(reward) for reward in reward_funcs]
    ...
    rewards = super()._calculate_rewards(...)          # every process takes part in the gather
    self._reward_errors.raise_together(self.accelerator)

Any other work that can fail on one process only (ranking, say) can go through `raise_together` in the same way.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object

if TYPE_CHECKING:
    from accelerate import Accelerator

# What TRL passes beside the columns; never shown, never sliced.
NOT_COLUMNS = ("trainer_state", "log_extra", "log_metric", "environments")
_SHOWN_CHARS = 300
_SEARCH_SECONDS = 5.0


class RewardError(RuntimeError):
    """A reward failed, or answered with something that is not a reward."""


def check_reward_output(name: str, values: Any, n: int, sample: Mapping[str, Any]) -> list[float | None]:
    """Checks what a reward returned, and gives it as plain floats.

    Args:
        name: the reward's name, for the message.
        values: what it returned: a list, tuple, 1-D array or 1-D tensor; `None` in it means not applicable.
        n: how many completions it was given.
        sample: columns, each a list of n: the message shows the row that is wrong.

    Returns:
        n floats, or `None` where the reward does not apply.

    Raises:
        RewardError: on a wrong length, NaN, infinity, or anything that is not a number.
    """
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__") or not hasattr(values, "__iter__"):
        raise RewardError(
            f"reward '{name}' returned {_a(values)}, expected a list with one number or None per completion "
            f"({n} of them){_show(sample, 0)}"
        )
    if hasattr(values, "ndim") and values.ndim != 1:
        raise RewardError(
            f"reward '{name}' returned shape {tuple(values.shape)}, expected ({n},): one number per completion"
            f"{_show(sample, 0)}"
        )
    values = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(values) != n:
        raise RewardError(
            f"reward '{name}' returned {len(values)} values for {n} completions, expected one each"
            f"{_show(sample, min(len(values), n - 1))}"
        )
    checked: list[float | None] = []
    for row, value in enumerate(values):
        if getattr(value, "ndim", None) == 0:  # a NumPy number or a tensor of one
            value = value.item()
        if value is not None and not isinstance(value, numbers.Real):
            raise RewardError(
                f"reward '{name}' returned {_a(value)} for completion {row}, expected a number, or None where it does "
                f"not apply{_show(sample, row)}"
            )
        if value is not None and not math.isfinite(value):
            raise RewardError(
                f"reward '{name}' returned {float(value)} for completion {row}, expected a finite number; return None "
                f"where it does not apply{_show(sample, row)}"
            )
        checked.append(None if value is None else float(value))
    return checked


def guard(reward_fn: Any, errors: list[Exception] | None = None) -> Any:
    """Wraps a reward so that whatever goes wrong in it becomes a `RewardError` with its name and the sample.

    The wrapper keeps `__name__`, is async where the reward is, and can be pickled where the reward can. Reward models
    (modules, or names of models) are given back as they are.

    Args:
        reward_fn: the reward.
        errors: where to put the error instead of raising it; the wrapper then answers zeros.
    """
    # What TRL treats as a reward model: a path, or a torch module (known by `forward`, to spare the import).
    if isinstance(reward_fn, str) or (hasattr(reward_fn, "forward") and hasattr(reward_fn, "parameters")):
        return reward_fn
    if isinstance(reward_fn, (_Guard, _AsyncGuard)):
        return reward_fn
    inner = inner_reward(reward_fn)
    kind = _AsyncGuard if is_async_reward(reward_fn) else _Guard
    return kind(reward_fn, getattr(inner, "__name__", type(inner).__name__), errors)


def is_async_reward(reward_fn: Any) -> bool:
    """Whether a reward is a function or an object that is called with `async def`."""
    inner = inner_reward(reward_fn)
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004


def raise_together(error: Exception | None, accelerator: Accelerator) -> None:
    """Raises on all processes when any has an error, so that none waits for the others.

    Every process must call this at the same point. A process with an error raises its own; the others raise a
    `RewardError` with the number of the process that failed first in order, and its message.

    Args:
        error: this process's error, or `None`.
        accelerator: the one of the run.

    Raises:
        Exception: `error` itself.
        RewardError: when another process failed.
    """
    mine = None if error is None else f"{type(error).__name__}: {error}"
    messages = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
    if error is not None:
        raise error
    for process, message in enumerate(messages):
        if message is not None:
            raise RewardError(f"stopped because process {process} of {len(messages)} failed with {message}")


class DeferredErrors:
    """Rewards whose errors wait until every process has reached the same point; see the module."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def defer(self, reward_fn: Any) -> Any:
        """`guard` the reward; an error is kept here, and the reward answers zeros in its place."""
        return guard(reward_fn, self.errors)

    def raise_together(self, accelerator: Accelerator) -> None:
        """Raises the first error kept, on all processes; every process must call this at the same point.

        Raises:
            RewardError: when a reward failed on this process or on another.
        """
        error = self.errors[0] if self.errors else None
        self.errors.clear()
        raise_together(error, accelerator)


class _Base:
    def __init__(self, reward_fn: Callable[..., Any], name: str, errors: list[Exception] | None) -> None:
        self.reward_fn = reward_fn
        self.errors = errors
        self.__name__ = name

    def _fail(self, error: Exception, n: int) -> list[float | None]:
        if self.errors is None:
            raise error
        self.errors.append(error)
        return [0.0] * n


class _Guard(_Base):
    def __call__(self, **columns: Any) -> list[float | None]:
        n = _count(columns)
        try:
            _check_columns(self.reward_fn, self.__name__, columns)
            try:
                values = self.reward_fn(**_own(columns))
            except (Exception, SystemExit) as error:
                raise _explain(self.reward_fn, self.__name__, error, columns, search=True) from error
            if inspect.iscoroutine(values):
                values.close()
                raise RewardError(
                    f"reward '{self.__name__}' returned a coroutine without being declared `async def`: declare it so"
                )
            return check_reward_output(self.__name__, values, n, _used(self.reward_fn, columns))
        except RewardError as error:
            return self._fail(error, n)


class _AsyncGuard(_Base):
    async def __call__(self, **columns: Any) -> list[float | None]:
        n = _count(columns)
        try:
            _check_columns(self.reward_fn, self.__name__, columns)
            try:
                values = await self.reward_fn(**_own(columns))
            except (Exception, SystemExit) as error:
                # Not called again to find the sample: async rewards are the ones that ask a paid server.
                raise _explain(self.reward_fn, self.__name__, error, columns, search=False) from error
            return check_reward_output(self.__name__, values, n, _used(self.reward_fn, columns))
        except RewardError as error:
            return self._fail(error, n)


def _own(columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """Columns for one reward alone: what it changes in them is seen by no other reward, and not by the trainer."""
    return {name: value if name in NOT_COLUMNS else _copied(value) for name, value in columns.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(inner) for key, inner in value.items()}
    if type(value) in (list, tuple, set):
        return type(value)(_copied(inner) for inner in value)
    return value


def _count(columns: Mapping[str, Any]) -> int:
    return len(columns["completions"])


def _columns(columns: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The columns of the batch: lists with a value per completion."""
    n = _count(columns)
    return {
        name: list(value)
        for name, value in columns.items()
        if name not in NOT_COLUMNS and isinstance(value, (list, tuple)) and len(value) == n
    }


def inner_reward(reward_fn: Any) -> Any:
    """The reward itself, where it was given with parameters."""
    while isinstance(reward_fn, functools.partial):
        reward_fn = reward_fn.func
    return reward_fn


def wanted_columns(reward_funcs: Iterable[Callable[..., Any]]) -> set[str]:
    """Columns that rewards can't do without: parameters without a default, and those in an attribute `columns`."""
    wanted: set[str] = set()
    for reward_fn in reward_funcs:
        wanted.update(getattr(inner_reward(reward_fn), "columns", ()))
        wanted.update(
            parameter.name
            for parameter in _named_parameters(reward_fn).values()
            if parameter.default is inspect.Parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        )
    return wanted


def _named_parameters(reward_fn: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(reward_fn).parameters)
    except (TypeError, ValueError):  # some built-ins have no signature
        return {}


def _check_columns(reward_fn: Callable[..., Any], name: str, columns: Mapping[str, Any]) -> None:
    """Raises before the call when the reward asks for a column that is not there, or does not take those that are."""
    parameters = _named_parameters(reward_fn)
    if not parameters:
        return
    there = ", ".join(sorted(_columns(columns)))
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise RewardError(f"reward '{name}' takes '{parameter.name}' by position only: columns come by name")
        if parameter.default is inspect.Parameter.empty and parameter.name not in columns:
            near = difflib.get_close_matches(parameter.name, sorted(_columns(columns)), n=1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise RewardError(
                f"reward '{name}' asks for column '{parameter.name}'{hint}; the columns are {there}. A parameter that "
                "is no column needs a default, or a value in reward_kwargs"
            )
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        extra = sorted(set(columns) - set(parameters))
        if extra:
            raise RewardError(
                f"reward '{name}' does not take {', '.join(extra)}: every column is passed by name, "
                "so let its parameters end with **kwargs"
            )


def _used(reward_fn: Callable[..., Any], columns: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Prompt, completion and the columns that the reward asks for by name; all of them where it names none."""
    every = _columns(columns)
    asked = [name for name in _named_parameters(reward_fn) if name in every]
    first = [name for name in ("prompts", "completions") if name in every]
    rest = asked or [name for name in every if name != "completion_ids"]
    return {name: every[name] for name in dict.fromkeys([*first, *rest])}


def _explain(
    reward_fn: Callable[..., Any], name: str, error: BaseException, columns: Mapping[str, Any], search: bool
) -> RewardError:
    n = _count(columns)
    row = _failing_row(reward_fn, error, columns) if search else None
    shown = _show(_used(reward_fn, columns), row or 0)
    which = f"completion {row} of {n}" if row is not None else f"a batch of {n} completions (the first is shown)"
    return RewardError(f"reward '{name}' raised {type(error).__name__}: {error}, on {which}{shown}")


def _failing_row(reward_fn: Callable[..., Any], error: BaseException, columns: Mapping[str, Any]) -> int | None:
    """The first completion on which the reward fails in the same way when called with it alone.

    The run is stopping, so the extra calls cost nothing but the few seconds that they are given.
    """
    sliced = _columns(columns)
    deadline = time.monotonic() + _SEARCH_SECONDS
    for row in range(_count(columns)):
        if time.monotonic() > deadline:
            return None
        try:
            reward_fn(**_own({**columns, **{name: values[row : row + 1] for name, values in sliced.items()}}))
        except (Exception, SystemExit) as again:
            if type(again) is type(error):
                return row
    return None


def _a(value: Any) -> str:
    return f"{_short(value)} (a {type(value).__name__})"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}… ({len(text)} characters)"


def _show(sample: Mapping[str, Any], row: int) -> str:
    """The row of every column, one a line."""
    lines = [f"\n  {name}: {_short(values[row])}" for name, values in sample.items() if 0 <= row < len(values)]
    return "".join([f"\nsample {row}:", *lines]) if lines else ""
