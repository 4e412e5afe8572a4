"""What an evaluation found: the contents of `evaluation.json`, as one noun.

It is read tolerantly, since a file may be of another version, cut or edited by hand: what is missing or no number is
left out, and never fails a report.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self, TypeVar

from anyo_rl.evaluation.causal import Causal
from anyo_rl.evaluation.stages import ORACLE
from anyo_rl.metrics.intervals import Interval
from anyo_rl.run.files import write_whole

FILE = "evaluation.json"
MODE_ORDER = ("mixture", "greedy", "plain")
MAIN_METRIC = "ndcg@10"
FUSED = "fused_"  # before the names of what is measured under ranks by teacher and evidence together
SLICE_METRICS = (MAIN_METRIC, "hr@10")
AUC = "auc"  # where teachers say yes or no
COSTS = TOKENS, NODES, SECONDS = "n_tokens", "n_nodes", "seconds"  # of searches: what a recommendation cost

Metrics = dict[str, Interval]  # metric → value
Modes = dict[str, Metrics]  # mode → metrics

T = TypeVar("T")


@dataclass(frozen=True)
class Slice:
    """Some of the examples: how many, and their metrics."""

    n: int | None
    metrics: Metrics

    def as_json(self) -> dict[str, Any]:
        """Its metrics with their number."""
        return {"n": self.n, **_json(self.metrics)}

    @classmethod
    def from_json(cls, raw: object) -> Self | None:
        """A slice with the metrics that are numbers; `n` is theirs where it is not told."""
        if not isinstance(raw, Mapping):
            return None
        metrics = _read(raw, lambda value: Interval.from_json(value), leave_out="n")
        n = Interval.from_json(raw.get("n"))
        told = [value.n for value in metrics.values() if value.n is not None]
        return cls(int(n.mean) if n is not None else next(iter(told), None), metrics)


@dataclass(frozen=True)
class EqualTokens:
    """What a search gains over a plain mixture that writes as many tokens or more: a paired difference by metric."""

    against: str
    metrics: Metrics

    def as_json(self) -> dict[str, object]:
        """The mixture's mode with the differences."""
        return {"against": self.against, **_json(self.metrics)}

    @classmethod
    def from_json(cls, raw: object) -> Self | None:
        """What `as_json` wrote; `None` where it does not say what it is set against."""
        if not isinstance(raw, Mapping) or not isinstance(raw.get("against"), str):
            return None
        return cls(str(raw["against"]), _read(raw, lambda value: Interval.from_json(value), leave_out="against"))


@dataclass(frozen=True)
class Summary:
    """The numbers of a run, or of several seeds of it, and how they were measured.

    Attributes:
        dataset: name of the data.
        split: which examples, and how they were split off.
        mask_history: whether seen items left the rankings.
        n_users: how many test users.
        n_examples: how many test examples, where a user has several.
        n_items: size of the catalog.
        ranker: how the teachers' ranks were taken.
        seed: of a single run.
        seeds: of several runs.
        n_paths: how many a mixture has.
        not_converged: stage → why it is no opponent to claim anything over (`anyo_rl.evaluation.convergence`).
        stages: stage → mode → metric → value.
        differences: `a-b` → mode → metric → paired difference.
        added: names of differences that say what a stage added to the one that it builds on, in the order of a run.
        slices: stage → mode → slice.
        equal_tokens: stage → search → what it gains over a plain mixture of as many tokens.
        causal: stage → what follows from what.
        stated_intent: stage → share of greedy reasonings that state an intent (toy world).
        true_intent: stage → share of these that state the true one.
    """

    dataset: str | None = None
    split: str | None = None
    mask_history: bool | None = None
    n_users: int | None = None
    n_examples: int | None = None
    n_items: int | None = None
    ranker: str | None = None
    seed: int | None = None
    seeds: tuple[int, ...] = ()
    n_paths: int | None = None
    not_converged: dict[str, str] = field(default_factory=dict)
    stages: dict[str, Modes] = field(default_factory=dict)
    differences: dict[str, Modes] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    slices: dict[str, dict[str, dict[str, Slice]]] = field(default_factory=dict)
    equal_tokens: dict[str, dict[str, EqualTokens]] = field(default_factory=dict)
    causal: dict[str, Causal] = field(default_factory=dict)
    stated_intent: Metrics | None = None
    true_intent: Metrics | None = None

    def value(self, stage: str, mode: str, metric: str = MAIN_METRIC) -> Interval | None:
        """The value of a stage in a mode; a stage with one mode only (a baseline) stands for itself in any mode."""
        modes = self.stages.get(stage, {})
        if mode not in modes and len(modes) == 1:
            mode = next(iter(modes))
        return modes.get(mode, {}).get(metric)

    def best_mode(self, stage: str) -> str | None:
        """The mode that stands for a stage: mixture, else greedy, else the first there is; never a search's row."""
        modes = {mode: one for mode, one in self.stages.get(stage, {}).items() if TOKENS not in one}
        return next((mode for mode in (*MODE_ORDER, *modes) if mode in modes), None)

    def compared(self, difference: str) -> tuple[str, str] | None:
        """The two stages of a difference `a-b`; `None` unless both are known. Names of stages may have hyphens."""
        parts = difference.split("-")
        for cut in range(1, len(parts)):
            after, before = "-".join(parts[:cut]), "-".join(parts[cut:])
            if after in self.stages and before in self.stages:
                return after, before
        return None

    def lift_percent(self, difference: str, mode: str, metric: str = MAIN_METRIC) -> float | None:
        """Relative lift in percent of the two stages of `a-b`: 100 (a / b - 1), over the examples that both have.

        Of several seeds a stage may have fewer than the other; `None` where what both have is not known.
        """
        after, before = (self.value(stage, mode, metric) for stage in self.compared(difference) or ("", ""))
        if after is None or before is None:
            return None
        gain = self.differences.get(difference, {}).get(mode, {}).get(metric)
        base: float | None = before.mean
        if gain is None or before.n == after.n:
            gain = Interval(after.mean - before.mean)
        elif before.n != gain.n:
            base = after.mean - gain.mean if after.n == gain.n else None
        return 100.0 * gain.mean / base if base else None

    @property
    def oracle(self) -> float | None:
        """NDCG@10 of the best ranker of the visible history, where it is known and above 0."""
        value = self.value(ORACLE, "plain")
        return None if value is None or value.mean <= 0 else value.mean

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON, in the order of the fields; what is not known is left out."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        optional = {name for name, value in found.items() if value is None or value == ()}
        optional |= {name for name in ("not_converged", "equal_tokens", "causal") if not found[name]}
        return {name: _json(value) for name, value in found.items() if name not in optional}

    @classmethod
    def from_json(cls, raw: object) -> Self:
        """Reads what `as_json` wrote; unknown keys and values of another kind are left out.

        Raises:
            ValueError: it is no object at all.
        """
        if not isinstance(raw, Mapping):
            raise ValueError(f"found {type(raw).__name__}, expected an object")

        def text(name: str) -> str | None:
            return value if isinstance(value := raw.get(name), str) else None

        def number(name: str) -> int | None:
            return value if isinstance(value := raw.get(name), int) and not isinstance(value, bool) else None

        def shares(name: str) -> Metrics | None:
            return _read(raw[name], Interval.from_json) if name in raw else None

        masked, seeds, added = (raw.get(name) for name in ("mask_history", "seeds", "added"))
        return cls(
            dataset=text("dataset"),
            split=text("split"),
            mask_history=masked if isinstance(masked, bool) else None,
            n_users=number("n_users"),
            n_examples=number("n_examples"),
            n_items=number("n_items"),
            ranker=text("ranker"),
            seed=number("seed"),
            seeds=tuple(seed for seed in seeds if isinstance(seed, int)) if isinstance(seeds, list) else (),
            n_paths=number("n_paths"),
            not_converged=_read(raw.get("not_converged"), lambda why: why if isinstance(why, str) else None),
            stages=_read(raw.get("stages"), _modes),
            differences=_read(raw.get("differences"), _modes),
            added=tuple(name for name in added if isinstance(name, str)) if isinstance(added, list) else (),
            slices=_read(raw.get("slices"), lambda modes: _read(modes, lambda cut: _read(cut, Slice.from_json))),
            equal_tokens=_read(raw.get("equal_tokens"), lambda one: _read(one, EqualTokens.from_json)),
            causal=_read(raw.get("causal"), Causal.from_json),
            stated_intent=shares("stated_intent"),
            true_intent=shares("true_intent"),
        )


def write_summary(run_dir: Path, summary: Summary) -> None:
    """Keeps the numbers where `read_summary` finds them, whole or not at all."""
    write_whole(run_dir / FILE, json.dumps(summary.as_json(), indent=2))


def read_summary(run_dir: Path) -> Summary | None:
    """The `evaluation.json` of a finished run, else `None`."""
    try:
        return Summary.from_json(json.loads((run_dir / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None


def _modes(raw: object) -> Modes:
    return _read(raw, lambda metrics: _read(metrics, Interval.from_json))


def _read(raw: object, read: Callable[[object], T | None], leave_out: str = "") -> dict[str, T]:
    """The entries of an object that can be read; none of what is no object."""
    if not isinstance(raw, Mapping):
        return {}
    found = {str(name): read(value) for name, value in raw.items() if name != leave_out}
    return {name: value for name, value in found.items() if value is not None}


def _json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _json(each) for name, each in value.items()}
    if isinstance(value, Interval | Slice | EqualTokens | Causal):
        return value.as_json()
    return list(value) if isinstance(value, tuple) else value
