"""Typed steps, as `Profile: likes tea`: read back by their names.

Nothing that a teacher writes is repaired: the item is read off after its reasoning as it stands, and a reward says
what a reasoning in another form is worth (`format` with `step_names`). Names count whatever their case and blanks.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Typed:
    """Steps by their names.

    Attributes:
        said: what stands behind each name, where it comes first.
        places: the number of that step, from 0.
        missing: names of which there is no step.
        repeated: names of which there are several; the first counts.
        unknown: how many steps begin with no name, or say nothing behind it.
    """

    said: dict[str, str]
    places: dict[str, int]
    missing: tuple[str, ...]
    repeated: tuple[str, ...]
    unknown: int

    @property
    def in_form(self) -> bool:
        """Whether each name is there once, in order, and nothing else is."""
        in_order = list(self.places.values()) == sorted(self.places.values())
        return in_order and not (self.missing or self.repeated or self.unknown)


def read_typed(steps: Sequence[str], names: Sequence[str]) -> Typed:
    """Reads steps by their names. Never raises.

    Args:
        steps: of a reasoning.
        names: what steps begin with, in order.

    >>> read_typed(["Profile: tea", "likes mugs", "profile : lamps"], ["Profile", "Intention"])
    Typed(said={'Profile': 'tea'}, places={'Profile': 0}, missing=('Intention',), repeated=('Profile',), unknown=1)
    """
    known = {_folded(name): name for name in names}
    found: list[tuple[str, str, int]] = []
    for place, step in enumerate(steps):
        before, _, after = step.partition(":")
        name = known.get(_folded(before))
        if name is not None and after.strip():
            found.append((name, after.strip(), place))
    first = {name: (said, place) for name, said, place in reversed(found)}
    counts = [name for name, _, _ in found]
    there = [name for name in names if name in first]
    return Typed(
        said={name: first[name][0] for name in there},
        places={name: first[name][1] for name in there},
        missing=tuple(name for name in names if name not in first),
        repeated=tuple(name for name in there if counts.count(name) > 1),
        unknown=len(steps) - len(found),
    )


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()
