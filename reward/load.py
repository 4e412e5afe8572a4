"""Load a reward from its name.

A name is one of
- a short name: `ndcg`, `mrr`, `log`, `hit@10` (any gain takes a cut-off: `ndcg@20`), `format`, … (docs/rewards.md);
- a dotted path: `my_package.my_module.my_reward`, looked up in what is installed and in the current folder;
- a file: `path/to/my_reward.py:my_reward`.

Nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Shipped:
    """A reward of this package.

    Attributes:
        path: where it is imported from.
        gain: its gain, which a name fixes; only a gain takes a cut-off.
    """

    path: str
    gain: str | None = None


SHORT_NAMES = {
    "ndcg": Shipped("reward.rank.RankReward", "ndcg"),
    "mrr": Shipped("reward.rank.RankReward", "mrr"),
    "hit": Shipped("reward.rank.RankReward", "hit"),
    "log": Shipped("reward.rank.RankReward", "log"),
    "format": Shipped("reward.format.FormatReward"),
    "valid_item": Shipped("reward.valid_item.ValidItemReward"),
    "lift": Shipped("reward.lift.LiftReward"),
    "faithful": Shipped("reward.faithful.FaithfulReward"),
    "length": Shipped("reward.length.LengthReward"),
    "repetition": Shipped("reward.repetition.RepetitionReward"),
    "cf": Shipped("reward.cf.CfReward"),
    "judge": Shipped("reward.judge.JudgeReward"),
    "process": Shipped("reward.process.ProcessReward"),
}

# What every call brings: bound as a parameter it would be overwritten by the batch, silently.
_CALL_COLUMNS = {
    *("prompts", "completions", "completion_ids", "rank", "gain", "item_id", "log_prob", "target_id", "history"),
    *("steps", "n_items", "example_id", "user_id", "direct_log_prob", "swapped_gain", "propensity", "excluded"),
}


def load_reward(spec: str | Mapping[str, Any]) -> Callable[..., Any]:
    """Load one reward.

    A class is instantiated with the parameters; a function with parameters becomes a `functools.partial` with the
    function's `__name__`; a function without is returned as it is.

    Args:
        spec: the name, or `{"name": ..., "kwargs": {parameter: value}}`.

    Raises:
        ValueError: unknown name, missing attribute, a parameter that the reward does not have, or code that exits.
        FileNotFoundError: the file of a `file.py:name` is not there.
    """
    if isinstance(spec, str):
        spec = {"name": spec}
    unknown = set(spec) - {"name", "kwargs"}
    if unknown or not isinstance(spec.get("name"), str):
        raise ValueError(f"a reward is a name or {{name: ..., kwargs: {{...}}}}, found {dict(spec)}")
    try:
        return _build(spec["name"], dict(spec.get("kwargs") or {}))
    except SystemExit as error:  # the run would end as if all were well
        raise ValueError(
            f"reward {spec['name']!r} called sys.exit({error.code!r}) while it was loaded: what a script does "
            "goes below `if __name__ == '__main__':`"
        ) from error


def load_rewards(
    reward_funcs: Sequence[str], reward_kwargs: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Callable[..., Any]]:
    """Load rewards in the given order, which is also the order of `--reward_weights`.

    Args:
        reward_funcs: names, see the module.
        reward_kwargs: parameters by name, written exactly as in `reward_funcs`.

    Raises:
        ValueError: as `load_reward`; also for parameters of a reward that is not used, and for two rewards with the
            same `__name__`, whose metrics would be mixed.
        FileNotFoundError: as `load_reward`.
    """
    kwargs = dict(reward_kwargs or {})
    for name, parameters in kwargs.items():
        if parameters is not None and not isinstance(parameters, Mapping):
            raise ValueError(f"reward_kwargs of {name!r} is {parameters!r}, expected a mapping of parameters")
        if name not in reward_funcs:
            raise ValueError(
                f"reward_kwargs has {name!r}, which is not among reward_funcs: {choices(name, reward_funcs)}"
            )
    rewards = [load_reward({"name": name, "kwargs": kwargs.get(name)}) for name in reward_funcs]
    taken: dict[str, str] = {}
    for spec, reward in zip(reward_funcs, rewards, strict=True):
        name = _display_name(reward)
        if name in taken:
            raise ValueError(
                f"rewards {taken[name]!r} and {spec!r} are both called {name!r}, and their metrics would be mixed: "
                "give one of them another __name__, or leave it out"
            )
        taken[name] = spec
    return rewards


def _build(spec: str, kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    path, fixed = _resolve_short_name(spec)
    target = _import(spec, path)
    if not callable(target):
        raise ValueError(f"reward {spec!r} is a {type(target).__name__}, expected a function or a class")
    overridden = sorted(set(fixed) & set(kwargs))
    if overridden:
        raise ValueError(f"reward {spec!r} sets {', '.join(overridden)} by its name: take it out of its parameters")
    kwargs = {**fixed, **kwargs}
    if inspect.isclass(target):
        _check_parameters(spec, target, kwargs, complete=True)
        reward = target(**kwargs)
        if not callable(reward):
            raise ValueError(f"reward {spec!r} is a class without __call__: add one, or name a function")
        return reward
    if not kwargs:
        return target
    if clash := sorted(_CALL_COLUMNS & set(kwargs)):
        raise ValueError(
            f"reward {spec!r} cannot take {', '.join(clash)} as a parameter: each batch brings a column of that name"
        )
    _check_parameters(spec, target, kwargs, complete=False)
    bound = functools.partial(target, **kwargs)
    bound.__name__ = _display_name(target)  # type: ignore[attr-defined]
    return bound


def _resolve_short_name(spec: str) -> tuple[str, dict[str, str | int]]:
    """The import path behind a name, and the parameters that the name itself fixes."""
    base, _, cut_off = spec.partition("@")
    shipped = SHORT_NAMES.get(base)
    if shipped is not None and (not cut_off or shipped.gain):
        fixed: dict[str, str | int] = {"gain": shipped.gain} if shipped.gain else {}
        if "@" not in spec:
            return shipped.path, fixed
        if not re.fullmatch(r"[1-9]\d*", cut_off):
            raise ValueError(
                f"reward {spec!r}: the cut-off after '@' must be a whole number of 1 or more, as in 'hit@10'"
            )
        return shipped.path, {**fixed, "k": int(cut_off)}
    if "." in spec or ":" in spec:
        return spec, {}
    raise ValueError(
        f"unknown reward {spec!r}: {choices(spec, SHORT_NAMES)}; "
        "or a dotted path (my_package.my_module.my_reward), or a file (path/to/my_reward.py:my_reward)"
    )


def _import(spec: str, path: str) -> Any:
    """The object that a dotted path or a `file.py:name` points at."""
    module_path, separator, attribute = path.rpartition(":" if ":" in path else ".")
    if path.endswith(".py"):
        raise ValueError(f"reward {spec!r} names a file but nothing in it: write {spec}:my_reward")
    if not module_path or not attribute:
        raise ValueError(
            f"reward {spec!r} is not complete: write path/to/my_reward.py:my_reward or my_module.my_reward"
        )
    if separator == ":" and module_path.endswith(".py"):
        module = _load_file(spec, Path(module_path))
    else:
        module = _load_module(spec, module_path)
    if not hasattr(module, attribute):
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ValueError(f"reward {spec!r}: {module_path} has no {attribute!r}; {choices(attribute, public)}")
    return getattr(module, attribute)


def _load_file(spec: str, path: Path) -> ModuleType:
    file = path.expanduser().resolve()
    if not file.is_file():
        raise FileNotFoundError(f"reward {spec!r}: there is no file {path} (looked in {file.parent})")
    # Under a name of its own in sys.modules, as pickle and dataclasses look there; loaded once, however often named.
    name = f"_reward_file_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, file)
    if module_spec is None or module_spec.loader is None:
        raise ValueError(f"reward {spec!r}: {path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        error.add_note(f"while loading reward {spec!r}")
        raise
    return module


def _load_module(spec: str, module_path: str) -> ModuleType:
    # A script's own folder is on the path, the folder it is started from is not. Last, so that it shadows nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module_path)
    except ModuleNotFoundError as error:
        if error.name and (module_path == error.name or module_path.startswith(error.name + ".")):
            raise ValueError(
                f"reward {spec!r}: there is no module {error.name!r} here or among the installed packages; "
                f"for a file write path/to/my_reward.py:my_reward, for a short name {choices(spec, SHORT_NAMES)}"
            ) from error
        error.add_note(f"while loading reward {spec!r}")
        raise


def _check_parameters(spec: str, target: Callable[..., Any], kwargs: Mapping[str, Any], complete: bool) -> None:
    """Raise a `ValueError` that names the parameter the reward does not have, or needs."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some built-ins have no signature; the call itself will tell
        return
    named = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    # A class's **kwargs may be parameters; a function's are the columns, and would swallow any slip of the pen.
    open_ended = complete and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in kwargs:
        if name not in named and not open_ended:
            raise ValueError(f"reward {spec!r} has no parameter {name!r}: {choices(name, named)}")
    missing = [name for name in named if parameters[name].default is inspect.Parameter.empty and name not in kwargs]
    if complete and missing:
        raise ValueError(f"reward {spec!r} needs {', '.join(missing)}: give it in its parameters (reward_kwargs)")


def choices(word: str, known: Any) -> str:
    """`known ones are a, b (did you mean a?)`."""
    near = difflib.get_close_matches(word, list(known), n=2, cutoff=0.5)
    hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
    return f"known are {', '.join(map(str, known)) or 'none'}{hint}"


def _display_name(reward: Callable[..., Any]) -> str:
    """The name under which TRL logs the reward."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)
