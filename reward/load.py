"""Load a reward from its name.

A name is one of
- a short name: `ndcg`, `mrr`, `log`, `hit@10` (any gain takes a cut-off: `ndcg@20`), `format`, … (docs/rewards.md);
- a dotted path: `my_package.my_module.my_reward`, looked up in what is installed and in the current folder;
- a file: `path/to/my_reward.py:my_reward`.

Nothing is imported before it is asked for.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anyo_rl.run.imports import Named, check_parameters, choices, import_named


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
    "grounded": Shipped("reward.grounded.GroundedReward"),
    "length": Shipped("reward.length.LengthReward"),
    "repetition": Shipped("reward.repetition.RepetitionReward"),
    "cf": Shipped("reward.cf.CfReward"),
    "judge": Shipped("reward.judge.JudgeReward"),
    "process": Shipped("reward.process.ProcessReward"),
    "plan_value": Shipped("reward.plan_value.PlanValueReward"),
}

# What every call brings: bound as a parameter it would be overwritten by the batch, silently.
_CALL_COLUMNS = {
    *("prompts", "completions", "completion_ids", "rank", "gain", "item_id", "log_prob", "target_id", "history"),
    *("steps", "n_items", "example_id", "user_id", "direct_log_prob", "swapped_gain", "carried_gain", "propensity"),
    "excluded",
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
    named = Named("reward", spec, SHORT_NAMES, "reward_kwargs")
    target = import_named(named, path)
    if not callable(target):
        raise ValueError(f"reward {spec!r} is a {type(target).__name__}, expected a function or a class")
    overridden = sorted(set(fixed) & set(kwargs))
    if overridden:
        raise ValueError(f"reward {spec!r} sets {', '.join(overridden)} by its name: take it out of its parameters")
    kwargs = {**fixed, **kwargs}
    if inspect.isclass(target):
        check_parameters(named, target, kwargs)
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
    check_parameters(named, target, kwargs, complete=False)
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
    raise Named("reward", spec, SHORT_NAMES, "reward_kwargs").unknown


def _display_name(reward: Callable[..., Any]) -> str:
    """The name under which TRL logs the reward."""
    while isinstance(reward, functools.partial):
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)
