"""Items by the names that people give them: an id or a title in, an id out, or an error that names the nearest."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from anyo_rl.run.settings import UsageError

SHORTLIST = 50  # titles that share most with a name, which are then compared with care
NAMED = 5  # of which an error names so many
MOST_CHARS = 200  # of a name that is looked for


class UnknownItemError(UsageError):
    """A name that no item has, or that several have."""


@dataclass(frozen=True)
class ItemNames:
    """Looks items up.

    Attributes:
        titles: item id to title, in the order of the catalog.
    """

    titles: Mapping[str, str]

    def find(self, name: str) -> str:
        """The item of an id or a title: as it is written, else whatever its case and white space.

        Raises:
            UnknownItemError: there is no such item, or several have that title; names the nearest ones.
        """
        if not isinstance(name, str):
            raise UnknownItemError(f"an item is {name!r}: expected a title or an item id, as text")
        if name in self.titles:
            return name
        for named in (self._by_title.get(name), self._by_folded.get(_folded(name))):
            if named is not None and len(named) == 1:
                return named[0]
            if named:
                told = ", ".join(repr(item_id) for item_id in named[:NAMED])
                raise UnknownItemError(f"{_short(name)} names {len(named)} items: give one of their ids, {told}")
        near = ", ".join(f"{self.titles[item]!r} ({item})" for item in self.nearest(name, NAMED))
        raise UnknownItemError(f"no item is called {_short(name)}; the nearest are {near}")

    def search(self, query: str, limit: int) -> list[str]:
        """Items for what somebody has typed so far, best first: titles and ids that have it, then similar titles.

        Args:
            query: any text; of an empty one come the first items.
            limit: most items, 1 or more.
        """
        folded = _folded(query[:MOST_CHARS])
        found: dict[int, list[str]] = {}
        for item_id, title, own_id in self._folded_names:
            if folded in title or folded in own_id:
                exact = folded in (title, own_id)
                place = 0 if exact else 1 if title.startswith(folded) else 2 if f" {folded}" in title else 3
                found.setdefault(place, []).append(item_id)
        having = [item for place in sorted(found) for item in found[place]][:limit]
        similar = self.nearest(query, limit) if len(having) < limit else []
        return list(dict.fromkeys([*having, *similar]))[:limit]

    def nearest(self, name: str, n: int) -> list[str]:
        """The n items whose titles are most like a name, best first, by difflib's ratio.

        Of a large catalog those alone are compared that share most runs of three letters with the name.
        """
        folded = _folded(name[:MOST_CHARS])
        places = [self._grams[gram] for gram in _grams(folded) if gram in self._grams]
        shared_N = np.bincount(np.concatenate(places), minlength=len(self.titles)) if places else 0
        likeness_N = shared_N / (self._n_grams_N + 1)
        names = self._folded_names
        chosen = [names[place] for place in np.argsort(-likeness_N, kind="stable")[: max(n, SHORTLIST)].tolist()]
        ratios = [difflib.SequenceMatcher(None, title, folded).ratio() for _, title, _ in chosen]
        order = sorted(range(len(chosen)), key=lambda place: -ratios[place])
        return [chosen[place][0] for place in order[:n]]

    @cached_property
    def _by_title(self) -> dict[str, list[str]]:
        return _inverted(self.titles.items())

    @cached_property
    def _by_folded(self) -> dict[str, list[str]]:
        names = [(item, _folded(name)) for item, title in self.titles.items() for name in {item, title}]
        return _inverted(dict.fromkeys(names))

    @cached_property
    def _folded_names(self) -> list[tuple[str, str, str]]:
        """Of each item its id, and its title and id as they are compared."""
        return [(item, _folded(title), _folded(item)) for item, title in self.titles.items()]

    @cached_property
    def _grams(self) -> dict[str, NDArray[np.int64]]:
        """Runs of three letters → numbers of the items whose titles have them."""
        found: dict[str, list[int]] = {}
        for number, (_, title, _) in enumerate(self._folded_names):
            for gram in _grams(title):
                found.setdefault(gram, []).append(number)
        return {gram: np.array(numbers) for gram, numbers in found.items()}

    @cached_property
    def _n_grams_N(self) -> NDArray[np.int64]:
        return np.array([len(_grams(title)) for _, title, _ in self._folded_names])


def _inverted(named: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for item_id, name in named:
        found.setdefault(name, []).append(item_id)
    return found


def _folded(name: str) -> str:
    return " ".join(name.casefold().split())


def _grams(folded: str) -> set[str]:
    padded = f" {folded} "
    return {padded[at : at + 3] for at in range(len(padded) - 2)}


def _short(name: str) -> str:
    return repr(name if len(name) <= MOST_CHARS else f"{name[:MOST_CHARS]}…")


def named_items(names: ItemNames, given: Sequence[str], what: str) -> list[str]:
    """Ids of a list of names.

    Args:
        names: of the catalog.
        given: titles or ids.
        what: it is, for errors.

    Raises:
        UnknownItemError: it is no list, or names something else; see `ItemNames.find`.
    """
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise UnknownItemError(f"{what} is {given!r}: expected a list of titles or item ids")
    return [names.find(name) for name in given]
