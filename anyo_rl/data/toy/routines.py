"""All routines that a user of the toy world can have, and what each of them intends at each position.

A *routine* is a tuple of places `(a, b)`, each a category with a run length of 1 or 2 events, or
`(a, b, complement(b))` with one event each; and a *start* and a *climb*. The user starts at the first place and goes
around for ever. The grade of each category begins at the user's start and rises by the user's climb at each event of
that category, modulo the number of grades. So a routine fixes the whole sequence of intended (category, grade) pairs,
and the table below simply lists these sequences. Categories, grades and styles are numbers from 0 here; the words are
in `anyo_rl.data.toy.world`.

Prior of a routine: two or three places with probability 1/2 each; then (a, b) uniform over the pairs that are allowed
(a != b, and a != complement(b) where there are three places); then, of two places, each run length 1 or 2 with
probability 1/2; then the start uniform over the first `n_starts` grades, and the climb uniform from 1 to the number of
grades less 1.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np

RUN_LENGTHS = (1, 2)
LONGEST_LAP = 2 * max(RUN_LENGTHS)
"""From this position on, every place of any routine has been visited, and one of them twice."""


def complement(category: int, n_categories: int) -> int:
    """The category that goes with `category`: the next one in a ring, so no fixed points and no 2-cycles.

    >>> [complement(category, 3) for category in range(3)]
    [1, 2, 0]
    """
    return (category + 1) % n_categories


@dataclass(frozen=True)
class Place:
    """One stop of a routine: a category (0-based) and for how many events the user stays there."""

    category: int
    run_length: int


@dataclass(frozen=True)
class Routine:
    """The places a user goes around, the grade (0-based) that each category begins at, and how it rises."""

    places: tuple[Place, ...]
    start: int
    climb: int


@dataclass(frozen=True)
class RoutineTable:
    """Every routine with its prior and its intended sequence. Axes: `_R` routines, `_T` positions from 0.

    Attributes:
        n_categories: categories of the world.
        n_grades: grades of the world.
        routines: the routines.
        prior_R: probability of each; sums to 1.
        category_R_T: intended category, 0-based.
        grade_R_T: intended grade, 0-based.
        run_index_R_T: number of the event in its run, from 1.
        run_length_R_T: length of that run.
        wanted_T_R: category and grade in one number (`code`), positions first because histories are compared with it.
    """

    n_categories: int
    n_grades: int
    routines: tuple[Routine, ...]
    prior_R: np.ndarray
    category_R_T: np.ndarray
    grade_R_T: np.ndarray
    run_index_R_T: np.ndarray
    run_length_R_T: np.ndarray
    wanted_T_R: np.ndarray

    @property
    def n_positions(self) -> int:
        """How many positions the table covers."""
        return len(self.wanted_T_R)

    def code(self, category: np.ndarray, grade: np.ndarray) -> np.ndarray:
        """One number for a category and a grade, from 0 to `n_categories * n_grades - 1`."""
        return category * self.n_grades + grade


def routine_table(n_categories: int, n_grades: int, n_positions: int, n_starts: int = 1) -> RoutineTable:
    """List all routines of `n_categories` (at least 3) and `n_grades` (at least 2) over `n_positions` positions.

    Start grades are the first `n_starts`.
    """
    pairs = [(a, b) for a, b in product(range(n_categories), repeat=2) if a != b]
    two = [[a, b] for a, b in pairs]
    three = [[a, b, complement(b, n_categories)] for a, b in pairs if complement(b, n_categories) != a]
    ways, prior = [], []
    for kind in (two, three):
        runs = list(product(RUN_LENGTHS, repeat=2)) if kind is two else [(1, 1, 1)]
        for categories, lengths in product(kind, runs):
            ways.append(tuple(Place(c, length) for c, length in zip(categories, lengths, strict=True)))
            prior.append(0.5 / (len(kind) * len(runs)))
    unrolled = np.array([_unroll(places, n_positions) for places in ways], dtype=np.int16)
    ladders = list(product(range(n_starts), range(1, n_grades)))  # (start, climb)
    category, visits, run_index, run_length = (np.repeat(x, len(ladders), axis=0) for x in np.moveaxis(unrolled, 2, 0))
    start, climb = np.tile(np.array(ladders, dtype=np.int16), (len(ways), 1)).T
    grade = (start[:, None] + climb[:, None] * visits) % n_grades
    return RoutineTable(
        n_categories=n_categories,
        n_grades=n_grades,
        routines=tuple(Routine(places, *ladder) for places in ways for ladder in ladders),
        prior_R=np.repeat(np.array(prior) / len(ladders), len(ladders)),
        category_R_T=category,
        grade_R_T=grade,
        run_index_R_T=run_index,
        run_length_R_T=run_length,
        wanted_T_R=np.ascontiguousarray((category * n_grades + grade).T),
    )


def _unroll(places: tuple[Place, ...], n_positions: int) -> list[tuple[int, int, int, int]]:
    """(category, earlier events of the category, number in the run, length of the run) at each position."""
    lap = [(place, run_index) for place in places for run_index in range(1, place.run_length + 1)]
    visits = {place.category: 0 for place in places}
    rows = []
    for position in range(n_positions):
        place, run_index = lap[position % len(lap)]
        rows.append((place.category, visits[place.category], run_index, place.run_length))
        visits[place.category] += 1
    return rows
