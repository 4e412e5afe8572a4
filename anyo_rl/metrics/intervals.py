"""Percentile bootstrap intervals over users, for a mean and for the difference of two systems on the same users.

Efron & Tibshirani, *An Introduction to the Bootstrap* (1993), chapter 13. The paired interval resamples users, not
systems: two systems that are right about the same users differ by much less than their own intervals suggest.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 2_000_000  # draws held at once: 16 MB of indices


@dataclass(frozen=True)
class Interval:
    """A mean over `n` users with its interval; all NaN for no users, `low` and `high` NaN for one."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float | int | None]:
        """The four fields, ready for JSON: None in place of NaN."""
        return {name: None if math.isnan(value) else value for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def _as_values(values_U: Any, name: str) -> NDArray[np.float64]:
    values = np.asarray(values_U, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"found `{name}` of shape {values.shape}, expected (U,): one value per user")
    wrong = int((~np.isfinite(values)).sum())
    if wrong:
        raise ValueError(
            f"found {wrong} of {values.size} values in `{name}` that are NaN or infinite, expected a number per user: "
            "leave out the users without a value before the interval is made, so that n says how many remain"
        )
    return values


def bootstrap_interval(values_U: Any, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Interval:
    """Mean of a per-user metric with its percentile bootstrap interval over users.

    Args:
        values_U: One finite value per user; the order does not matter to the mean, and does to the draws.
        seed: Of the resampling: the same seed and values give the same interval.
        resamples: How many bootstrap samples, 1 or more.
        level: Coverage of the interval, in (0, 1).

    Raises:
        ValueError: If a value is not finite, or a setting is out of range.
    """
    if not 0 < level < 1:
        raise ValueError(f"found level={level}, expected a share in (0, 1), such as 0.95")
    if resamples < 1:
        raise ValueError(f"found resamples={resamples}, expected 1 or more")
    values = _as_values(values_U, "values_U")
    n = len(values)
    if n == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    if n == 1:  # resampling one user always gives that user: an interval of width 0 would claim to be sure
        return Interval(float(values[0]), float("nan"), float("nan"), 1)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _CHUNK // n)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        means[start:stop] = values[generator.integers(0, n, size=(stop - start, n))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), n)


def paired_interval(a_U: Any, b_U: Any, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Interval:
    """Mean of a - b over the same users, in the same order, with its paired bootstrap interval.

    Args:
        a_U: One finite value per user.
        b_U: The other system's value for the same users.
        seed: As in [`bootstrap_interval`].
        resamples: As in [`bootstrap_interval`].
        level: As in [`bootstrap_interval`].

    Raises:
        ValueError: If lengths differ or a value is not finite.
    """
    a, b = _as_values(a_U, "a_U"), _as_values(b_U, "b_U")
    if len(a) != len(b):
        raise ValueError(f"found {len(a)} and {len(b)} users, expected the same users in the same order in a and b")
    return bootstrap_interval(a - b, seed=seed, resamples=resamples, level=level)
