"""Percentile bootstrap intervals over users, for a mean and for the difference of two systems on the same users.

Efron & Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13. The paired interval resamples users, not
systems: two systems that are right about the same users differ by much less than their own intervals suggest. Whole
users are drawn: several values of one user (examples, seeds) are no independent evidence.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_CHUNK = 2_000_000  # draws held at once: 16 MB of indices


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, as results are kept and shown.

    Attributes:
        mean: NaN for no values.
        low: lower end; `None` where no interval is known, as for one user.
        high: upper end.
        n: how many values the mean is over; `None` where that is not known.
        by_seed: the mean of each seed, where there are several.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    by_seed: tuple[float, ...] = ()

    def as_json(self) -> dict[str, Any] | float | None:
        """What `from_json` reads: an object, or a bare number where nothing but the mean is known."""
        mean = finite(self.mean)
        if self.n is None and self.low is None and not self.by_seed:
            return mean
        fields: dict[str, Any] = {"mean": mean, "low": self.low, "high": self.high, "n": self.n}
        return fields | ({"by_seed": list(self.by_seed)} if self.by_seed else {})

    @classmethod
    def from_json(cls, raw: object) -> Self | None:
        """A number, or an object with `mean` and whatever else is known; `None` where there is no mean."""
        if not isinstance(raw, Mapping):
            mean = finite(raw)
            return None if mean is None else cls(mean)
        mean, n, by_seed = finite(raw.get("mean")), finite(raw.get("n")), raw.get("by_seed")
        if mean is None:
            return None
        seeds = tuple(float(value) for value in by_seed) if isinstance(by_seed, list) else ()
        return cls(mean, finite(raw.get("low")), finite(raw.get("high")), None if n is None else int(n), seeds)

    def text(self, signed: bool = False, bounds: bool = True) -> str:
        """`0.1234 [0.1000, 0.1500]`, or `0.1234` where no interval is known or asked for."""
        spec = "+.4f" if signed else ".4f"
        text = format(self.mean, spec)
        if bounds and self.low is not None and self.high is not None:
            text += f" [{self.low:{spec}}, {self.high:{spec}}]"
        return text

    def __str__(self) -> str:
        return self.text()


def finite(raw: object) -> float | None:
    """`raw` as a float, or `None` where it is missing, not a number, NaN or infinite."""
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        return None
    return float(raw) if math.isfinite(raw) else None


def _as_values(values_R: Any, name: str) -> NDArray[np.float64]:
    values = np.asarray(values_R, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"found `{name}` of shape {values.shape}, expected (R,): one value per user or example")
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ValueError(
            f"found {wrong} of {values.size} values in `{name}` that are NaN or infinite, expected a number each: "
            "leave out those without a value before the interval is made, so that n says how many remain"
        )
    return values


def bootstrap_interval(
    values_R: Any, users_R: Any = None, *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Mean of a metric with its percentile bootstrap interval over users.

    Args:
        values_R: one finite value per user, example, or example and seed; their order matters to the draws alone.
        users_R: the user of each value, of any type that can be sorted; `None` for one value per user. Users are drawn
            with all their values, so that the interval does not shrink with the number of examples of each (Field &
            Welsh, *Bootstrapping clustered data*, 2007).
        seed: of the draws: the same seed and values give the same interval.
        resamples: how many bootstrap samples, 1 or more.
        level: coverage of the interval, in (0, 1).

    Returns:
        The interval; `n` is the number of values.

    Raises:
        ValueError: a value is not finite, lengths differ, or a setting is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"found level={level}, expected a share in (0, 1), such as 0.95")
    if resamples < 1:
        raise ValueError(f"found resamples={resamples}, expected 1 or more")
    values = _as_values(values_R, "values_R")
    sums_U: Any = values
    counts_U: Any = np.ones(len(values))
    if users_R is not None:
        if len(users_R) != len(values):
            raise ValueError(f"found {len(values)} values of {len(users_R)} users, expected the user of each value")
        _, user_of_R = np.unique(np.asarray(users_R), return_inverse=True)
        sums_U = np.bincount(user_of_R, weights=values)
        counts_U = np.bincount(user_of_R)
    if not len(values):
        return Interval(float("nan"), n=0)
    n_users = len(sums_U)
    if n_users == 1:  # resampling one user always gives that user: an interval of width 0 would claim to be sure
        return Interval(float(values.mean()), n=len(values))
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _CHUNK // n_users)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = generator.integers(0, n_users, size=(stop - start, n_users))
        means[start:stop] = sums_U[drawn].sum(axis=1) / counts_U[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), len(values))


def paired_interval(
    a_R: Any, b_R: Any, users_R: Any = None, *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """Mean of a - b over the same users or examples, in the same order, with its paired bootstrap interval.

    Args:
        a_R: one finite value each.
        b_R: the other system's values.
        users_R: as in `bootstrap_interval`.
        seed: as there.
        resamples: as there.
        level: as there.

    Raises:
        ValueError: lengths differ or a value is not finite.
    """
    a, b = _as_values(a_R, "a_R"), _as_values(b_R, "b_R")
    if len(a) != len(b):
        raise ValueError(f"found {len(a)} and {len(b)} values, expected the same users in the same order in a and b")
    return bootstrap_interval(a - b, users_R, seed=seed, resamples=resamples, level=level)
