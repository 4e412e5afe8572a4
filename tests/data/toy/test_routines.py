from itertools import product

import numpy as np
import pytest

from anyo_rl.data.toy import world as toy
from anyo_rl.data.toy.routines import RoutineTable, complement, routine_table
from anyo_rl.data.toy.world import CATEGORIES


def row_of(table: RoutineTable, places: list[tuple[str, int]], start: int, climb: int) -> int:
    """The row of a routine given in words and with grades from 1."""
    (row,) = [
        index
        for index, routine in enumerate(table.routines)
        if [(CATEGORIES[place.category], place.run_length) for place in routine.places] == places
        and (routine.start + 1, routine.climb) == (start, climb)
    ]
    return row


def test_routines_are_counted_and_weighted_as_described():
    table = routine_table(n_categories=5, n_grades=4, n_positions=17, n_starts=2)
    sizes = np.array([len(routine.places) for routine in table.routines])
    ladders = 2 * 3
    assert ((sizes == 2).sum(), (sizes == 3).sum()) == (5 * 4 * 4 * ladders, 5 * 3 * ladders)
    assert table.prior_R.sum() == pytest.approx(1.0)
    assert table.prior_R[sizes == 3].sum() == pytest.approx(0.5)
    start = np.array([routine.start for routine in table.routines])
    climb = np.array([routine.climb for routine in table.routines])
    for ladder in product(range(2), (1, 2, 3)):
        assert table.prior_R[(start == ladder[0]) & (climb == ladder[1])].sum() == pytest.approx(1 / ladders)
    assert len(np.unique(table.wanted_T_R, axis=1).T) == len(table.routines)
    np.testing.assert_array_equal(table.wanted_T_R.T, table.category_R_T * 4 + table.grade_R_T)


def test_the_worked_example_of_the_module_is_true():
    table = routine_table(n_categories=9, n_grades=8, n_positions=7, n_starts=8)
    row = row_of(table, [("tea", 2), ("lamp", 1)], start=1, climb=3)
    assert table.run_index_R_T[row].tolist() == [1, 2, 1, 1, 2, 1, 1]
    assert table.run_length_R_T[row].tolist() == [2, 2, 1, 2, 2, 1, 2]
    wanted = zip(table.category_R_T[row], table.grade_R_T[row], strict=True)
    words = [(CATEGORIES[category], str(grade + 1)) for category, grade in wanted]
    (example,) = [line for line in toy.__doc__.splitlines() if line.startswith("    tea oak 1,")]
    stated = [title.split() for title in example.strip().removesuffix(", ...").split(", ")]
    assert [(category, grade) for category, _, grade in stated] == words


@pytest.mark.parametrize(
    ("n_grades", "start", "climb", "grades"),
    [
        (8, 7, 1, [7, 8, 1, 2, 3, 4, 5, 6, 7]),
        (8, 3, 7, [3, 2, 1, 8, 7, 6, 5, 4, 3]),
        (8, 5, 4, [5, 1, 5, 1, 5, 1, 5, 1, 5]),
        (8, 8, 3, [8, 3, 6, 1, 4, 7, 2, 5, 8]),
        (2, 2, 1, [2, 1, 2, 1, 2, 1, 2, 1, 2]),
    ],
)
def test_grades_go_round_after_the_top(n_grades, start, climb, grades):
    table = routine_table(n_categories=3, n_grades=n_grades, n_positions=18, n_starts=n_grades)
    row = row_of(table, [("tea", 1), ("mug", 1)], start, climb)
    assert (table.grade_R_T[row, ::2] + 1).tolist() == (table.grade_R_T[row, 1::2] + 1).tolist() == grades


@pytest.mark.parametrize("n_categories", [3, 5, 12])
def test_complement_is_a_permutation_without_fixed_points_or_two_cycles(n_categories):
    ring = [complement(category, n_categories) for category in range(n_categories)]
    assert sorted(ring) == list(range(n_categories))
    assert all(ring[c] != c and ring[ring[c]] != c for c in range(n_categories))
