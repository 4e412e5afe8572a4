"""Times at the precision they were written in: nothing is rounded before events are sorted and compared.

A time is a whole number of the log's unit and a part of one, since no single type holds both nanoseconds since 1970
and fractions of a second: a float has 16 digits, and 1700000000.123456789 has 19.
"""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from anyo_rl.data.schema import FRACTION, TIMESTAMP, DataError
from anyo_rl.data.tables import NULLS

# 1e11 seconds is the year 5138, 1e11 milliseconds 1973: between the units there is no doubt. Each step is 1000.
_FINEST_SECONDS = 1e11
_PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class Time:
    """How a column of times is read.

    Attributes:
        whole: `timestamp`, Int64, in the log's unit: rounded down; null where there is none.
        part: `fraction`, Float64, what is above it: 0 to 1.
        bad: whether a value is no time.
    """

    whole: pl.Expr
    part: pl.Expr
    bad: pl.Expr


def read_time(name: str, dtype: pl.DataType) -> Time:
    """How the column `name` is read as times: dates and moments in seconds, numbers and text in the unit they have."""
    column = pl.col(name)
    none = pl.lit(0.0)
    if isinstance(dtype, pl.Date):
        return _time(column.cast(pl.Int64) * 86_400, none, column.is_null())
    if isinstance(dtype, pl.Datetime):
        ticks, per_second = column.cast(pl.Int64), _PER_SECOND[dtype.time_unit]
        seconds = ticks // per_second
        return _time(seconds, (ticks - seconds * per_second) / per_second, column.is_null())
    if dtype.is_integer():
        return _time(column.cast(pl.Int64, strict=False), none, column.is_null())
    if dtype.is_float():
        return _time(*_floor(column), column.is_null() | column.is_nan())
    text = column.cast(pl.String).str.strip_chars()
    number = text.cast(pl.Float64, strict=False)
    floor, rest = _floor(number)
    integer = text.cast(pl.Int64, strict=False)
    before, after = text.str.extract(r"^\+?(\d+)\.\d+$"), text.str.extract(r"^\+?\d+(\.\d+)$")
    whole = pl.coalesce(integer, before.cast(pl.Int64, strict=False), floor)
    part = pl.when(integer.is_not_null()).then(0.0).otherwise(pl.coalesce(after.cast(pl.Float64, strict=False), rest))
    return _time(whole, part, text.is_null() | text.is_in(NULLS) | number.is_nan().fill_null(False))


def _floor(number: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    floor = number.floor()
    return floor.cast(pl.Int64, strict=False), number - floor


def _time(whole: pl.Expr, part: pl.Expr, missing: pl.Expr) -> Time:
    whole = pl.when(missing).then(None).otherwise(whole)
    return Time(whole.alias(TIMESTAMP), part.alias(FRACTION), whole.is_null() & missing.not_())


def to_seconds(times: pl.DataFrame, path: Path, report: dict[str, int]) -> list[pl.Series]:
    """Times in seconds; milli-, micro- and nanoseconds are known by their size.

    Args:
        times: `timestamp` and `fraction` as `read_time` has them, without nulls.
        path: the log, for errors.
        report: gets `milliseconds`.

    Returns:
        `timestamp` (Int64, whole seconds) and, where one is not whole, `fraction` (Float64, 0 to 1, of a second).

    Raises:
        DataError: if some values are of another unit than the median's.
    """
    whole, part = times[TIMESTAMP], times[FRACTION]
    if whole.is_empty():
        return [whole]
    divisor, median = 1, float(whole.median())  # type: ignore[arg-type]
    while median / divisor >= _FINEST_SECONDS:
        divisor *= 1000
    report["milliseconds"] = int(divisor > 1)
    high, low = float(whole.max()), float(whole.min())  # type: ignore[arg-type]
    # A second-sized value among milliseconds (1e9 is 2001) would be a day in January 1970.
    if high / divisor >= _FINEST_SECONDS or (divisor > 1 and 0 < low < _FINEST_SECONDS * divisor / 1000):
        raise DataError(
            f"{path}: found timestamps of mixed units, from {low:.0f} to {high:.0f}, expected all in seconds "
            "or all in milliseconds since 1970: convert them to one unit"
        )
    seconds = whole // divisor
    fraction = ((whole - seconds * divisor + part) / divisor).alias(FRACTION)
    return [seconds, fraction] if (fraction != 0).any() else [seconds]


def moment(frame: pl.DataFrame) -> list[str]:
    """The columns that are the exact time of an event: `timestamp`, and `fraction` where the log has one."""
    return [name for name in (TIMESTAMP, FRACTION) if name in frame.columns]
