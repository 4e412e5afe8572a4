"""Changed histories and reasonings, to see what follows from what. All choices are drawn by a generator passed in.

Where an intervention cannot be made (nothing is named, nothing else is left to name), it is `None`, and the example
is counted and left out.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from anyo_rl.data.schema import TITLE
from anyo_rl.reasoning.mentions import Name, Names


def derangement(users_B: Sequence[Hashable], generator: np.random.Generator) -> list[int | None]:
    """For each example the place of one of another user, each at most once.

    Users are put in a drawn order, their examples side by side, and all of it is shifted by the most examples that a
    user has.

    Args:
        users_B: of the examples.
        generator: of the order.

    Returns:
        Places; `None` where a user has more than half of all examples.

    >>> derangement(["a", "a", "b", "b"], np.random.default_rng(0))
    [2, 3, 0, 1]
    """
    places: dict[Hashable, list[int]] = {}
    for place in generator.permutation(len(users_B)).tolist():
        places.setdefault(users_B[place], []).append(place)
    order = [place for of_user in places.values() for place in sorted(of_user)]
    shift = max(map(len, places.values()), default=0)
    found: list[int | None] = [None] * len(order)
    for at, place in enumerate(order):
        other = order[(at + shift) % len(order)]
        found[place] = other if users_B[other] != users_B[place] else None
    return found


@dataclass(frozen=True)
class Changed:
    """A history that lacks what its reasoning names, and others to hold beside it.

    Attributes:
        name: what the reasoning names of the history: a title, or an attribute value where it names no title.
        dropped: the history without the items that bear the name; `None` where no item is left.
        kept: the history without as many items that do not bear it; `None` where there are none.
        swapped: the history with an item that bears the other name in the place of each that bears this one.
        other: that other name, of the same column; `None` where there is none that the reasoning does not name.
    """

    name: Name
    dropped: list[str] | None
    kept: list[str] | None
    swapped: list[str] | None
    other: Name | None


def change_history(
    history: Sequence[str], steps: Sequence[str], names: Names, generator: np.random.Generator
) -> Changed | None:
    """Takes something that a reasoning names of a history out of it, or swaps it.

    Args:
        history: item ids, oldest first.
        steps: of the reasoning.
        names: of the catalog.
        generator: draws the name, the other name, and the items dropped to compare with.

    Returns:
        The changed histories; `None` where the steps name nothing of the history.
    """
    said = names.said(steps)
    there = [name for name in said if not name.items.isdisjoint(history)]
    there = [name for name in there if name.column == TITLE] or there
    if not there:
        return None
    name = _drawn(there, generator)
    bearing = [at for at, item in enumerate(history) if item in name.items]
    others = [at for at, item in enumerate(history) if item not in name.items]
    n_dropped = min(len(bearing), len(others))
    gone = set(generator.choice(others, size=n_dropped, replace=False).tolist()) if others else set()
    other = other_name(name, said, names, generator, history)
    swapped = None
    if other is not None:
        bearers = other.items - name.items
        swapped = [names.likest(item, bearers) if item in name.items else item for item in history]
    return Changed(
        name,
        dropped=[history[at] for at in others] or None,
        kept=[item for at, item in enumerate(history) if at not in gone] if gone else None,
        swapped=swapped,
        other=other,
    )


def other_name(
    name: Name, said: Sequence[Name], names: Names, generator: np.random.Generator, history: Sequence[str] = ()
) -> Name | None:
    """Another name of the same column, which is not said; rather one that no item of the history bears.

    Args:
        name: the name that it takes the place of.
        said: names that it must not be.
        names: of the catalog.
        generator: draws it.
        history: item ids.
    """
    free = [one for one in names.in_column(name.column) if one not in said and one.items - name.items]
    free = [one for one in free if one.items.isdisjoint(history)] or free
    return _drawn(free, generator) if free else None


@dataclass(frozen=True)
class Taste:
    """A reasoning with another taste.

    Attributes:
        name: what the reasoning names, and the item that it leads to bears.
        other: the name in its place.
        steps: the reasoning with the other name throughout.
    """

    name: Name
    other: Name
    steps: list[str]


def change_taste(steps: Sequence[str], item: str, names: Names, generator: np.random.Generator) -> Taste | None:
    """Puts another taste into a reasoning: a name of the item that it leads to becomes another one.

    Args:
        steps: of the reasoning.
        item: id of the item ranked first after it.
        names: of the catalog.
        generator: draws which name, and the other one.

    Returns:
        The changed reasoning; `None` where the steps name nothing of the item, or there is no other name.
    """
    said = names.said(steps)
    there = [name for name in said if item in name.items]
    if not there:
        return None
    name = _drawn(there, generator)
    other = other_name(
        name, [*said, *(one for one in names.in_column(name.column) if item in one.items)], names, generator
    )
    return None if other is None else Taste(name, other, names.replaced(steps, name, other))


def _drawn(among: Sequence[Name], generator: np.random.Generator) -> Name:
    return among[int(generator.integers(len(among)))]
