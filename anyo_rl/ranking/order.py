"""Written orders of numbered candidates, `[3] > [1] > [2]`: how they are read, repaired, and put together by windows.

Read as RankLLM reads them (Pradeep et al. 2023, arXiv 2312.02724; Sun et al. 2023, arXiv 2304.09542): numbers are
taken from left to right, whatever stands between them; a number that came before and one that no candidate has are
dropped; candidates that are not named follow in the order in which they came in. What had to be repaired is counted,
which RankLLM does not do. Two departures: figures of any script are read (RankLLM gives the whole answer up at some),
and a number of any length is a number.
"""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anyo_rl.run.settings import UsageError

LONGEST = 9  # figures of a number that may be a candidate's


@dataclass(frozen=True)
class Order:
    """A permutation of n candidates, and what had to be repaired to make it one.

    Attributes:
        places: each of 0 … n−1 once: candidates as they came in, the best first.
        named: how many of them were named.
        repeated: numbers that had come before.
        unknown: numbers that no candidate has.
    """

    places: tuple[int, ...]
    named: int
    repeated: int = 0
    unknown: int = 0

    @property
    def missing(self) -> int:
        """Candidates that were not named."""
        return len(self.places) - self.named

    @property
    def whole(self) -> bool:
        """Whether nothing had to be repaired."""
        return not (self.missing or self.repeated or self.unknown)

    @property
    def as_it_came(self) -> bool:
        """Whether it is the order in which the candidates came in."""
        return self.places == tuple(range(len(self.places)))


def read_order(text: str | None, n: int) -> Order:
    """Reads a written order of n candidates, numbered from 1. Never raises.

    Args:
        text: what was written; `None` for nothing.
        n: how many candidates there are.

    >>> read_order("[3] > [1] > [2]", 3)
    Order(places=(2, 0, 1), named=3, repeated=0, unknown=0)
    >>> read_order("3 > 3 > 7", 3)
    Order(places=(2, 0, 1), named=1, repeated=1, unknown=1)
    >>> read_order("none of these", 2).places
    (0, 1)
    """
    named: dict[int, None] = {}  # in order
    repeated = unknown = 0
    for number in _numbers(text or ""):
        if not 1 <= number <= n:
            unknown += 1
        elif number - 1 in named:
            repeated += 1
        else:
            named[number - 1] = None
    rest = [place for place in range(n) if place not in named]
    return Order((*named, *rest), len(named), repeated, unknown)


def write_order(places: Sequence[int]) -> str:
    """The inverse of `read_order` for a permutation.

    >>> write_order([2, 0, 1])
    '[3] > [1] > [2]'
    """
    return " > ".join(f"[{place + 1}]" for place in places)


def windows(n: int, size: int, stride: int) -> list[range]:
    """The windows in which n candidates are ordered, from the back to the front, as RankLLM has them.

    Each is `size` wide but for the last, which may be narrower; the best of one have a place in the next, so that
    they can rise to the front.

    Args:
        n: how many candidates there are.
        size: how many a prompt holds.
        stride: how far a window is in front of the one before.

    Raises:
        UsageError: a size or stride below 1, or a stride above the size, which would pass candidates over.

    >>> windows(5, 3, 2)
    [range(2, 5), range(0, 3)]
    >>> windows(2, 20, 10)
    [range(0, 2)]
    """
    if not 1 <= stride <= size:
        raise UsageError(
            f"windows of {size} candidates with a stride of {stride}: expected a stride of 1 to {max(size, 1)}"
        )
    end = n
    found = [range(max(end - size, 0), end)] if n else []
    while found and found[-1].start > 0:
        end -= stride
        found.append(range(max(end - size, 0), end))
    return found


def order_by_windows(
    n: int, size: int, stride: int, order: Callable[[Sequence[int]], Sequence[int]]
) -> tuple[int, ...]:
    """Orders n candidates by windows.

    Args:
        n: how many candidates there are.
        size: of a window.
        stride: see `windows`.
        order: gets the candidates of a window as they lie, and gives the same ones, the best first.

    Returns:
        Each of 0 … n−1 once, the best first.

    >>> order_by_windows(5, 3, 2, lambda some: sorted(some, reverse=True))
    (4, 1, 0, 3, 2)
    """
    found = list(range(n))
    for window in windows(n, size, stride):
        found[window.start : window.stop] = order(found[window.start : window.stop])
    return tuple(found)


def _numbers(text: str) -> list[int]:
    """The numbers in a text, from left to right; one too long to be a candidate's is 0."""
    figures = "".join(str(unicodedata.digit(char)) if char.isdigit() else " " for char in text)
    shortened = (found.lstrip("0") or "0" for found in figures.split())
    return [int(found) if len(found) <= LONGEST else 0 for found in shortened]
