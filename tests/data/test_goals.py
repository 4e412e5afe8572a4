"""Goals by hand: what is violated, what a set is worth, the best set against brute force, greedy planners."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.data.goals import Goal, GoalWorld, Offer, best_plan, greedy_plan, violations

OFFERS = (
    Offer("a", "A", "inn", 4, ("mon",), "quiet", 5),
    Offer("b", "B", "inn", 1, ("tue",), "old", 1),
    Offer("c", "C", "tour", 5, ("mon",), "quiet", 5),
    Offer("d", "D", "tour", 2, ("tue", "wed"), "old", 3),
    Offer("e", "E", "dinner", 1, ("fri",), "old", 2),
)
A, B, C, D, E = OFFERS
GOAL = Goal("g", "1", "quiet", 6, ("mon", "tue", "wed"), ("inn", "tour"))


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ((A, D), ()),
        ((A, C), ("clash on mon", "over by 3")),
        ((B, D), ("clash on tue",)),
        ((A, None), ("unknown offer", "no tour")),
        ((A, A), ("two of inn", "no tour", "clash on mon", "over by 2")),
        ((), ("no inn", "no tour")),
        ((B, E), ("unwanted dinner", "no tour", "fri is not free")),
    ],
)
def test_violations_by_hand(chosen, found):
    assert violations(GOAL, chosen) == found


def test_a_beginning_of_a_set_lacks_nothing():
    assert violations(GOAL, (A,), whole=False) == ()


def test_value_and_regret_by_hand():
    """A is worth 5 + 3 to who likes quiet, D 3: the best set within 6 that does not clash."""
    world = GoalWorld(OFFERS, {}, {"test": (GOAL,)})
    assert world.best(GOAL) == (A, D)
    good, poor, wrong = (world.judge(GOAL, chosen) for chosen in ((A, D), (D,), (A, C)))
    assert (good.value, good.best, good.regret, good.success) == (11, 11, 0.0, True)
    assert (poor.value, poor.regret, poor.success) == (0, 1.0, False)
    assert (wrong.value, wrong.violations) == (0, ("clash on mon", "over by 3"))


def test_greedy_planners_by_hand():
    """Of most worth first: A for 4, then D fits into 2. For its price: A has 8/4, B 1/1, C 8/5, D 3/2."""
    assert greedy_plan(GOAL, OFFERS) == (A, D)
    assert greedy_plan(GOAL, OFFERS, for_price=True) == (A, D)
    poor = Goal("h", "1", "quiet", 5, ("mon", "tue", "wed"), ("inn", "tour"))
    assert greedy_plan(poor, OFFERS) == (A,)  # nothing is left for a tour
    assert best_plan(poor, OFFERS) == ()  # B and D clash, and A and D cost 6
    first = Goal("i", "1", "quiet", 6, ("mon", "tue"), ("tour", "inn"))
    assert greedy_plan(first, OFFERS) == (C, B) == best_plan(first, OFFERS)


OFFER = st.builds(
    lambda number, category, price, day, two, style, stars: Offer(
        f"o{number}", f"T{number}", category, price, ("mon", "tue", "wed", "thu")[day : day + two], style, stars
    ),
    st.integers(0, 10**6),
    st.sampled_from(["inn", "tour", "dinner"]),
    st.integers(0, 6),
    st.integers(0, 3),
    st.integers(1, 2),
    st.sampled_from(["quiet", "old"]),
    st.integers(0, 5),
)


@given(st.lists(OFFER, max_size=9), st.integers(0, 14), st.sets(st.sampled_from(["mon", "tue", "wed", "thu"])))
def test_the_best_plan_is_that_of_brute_force(offers, budget, days):
    goal = Goal("g", "1", "quiet", budget, tuple(sorted(days)), ("inn", "tour", "dinner"))
    pools = [[one for one in offers if one.category == category] for category in goal.categories]
    possible = [sum(map(goal.worth, plan)) for plan in product(*pools) if not violations(goal, plan)]
    found = best_plan(goal, offers)
    assert bool(found) == bool(possible)
    if possible:
        assert violations(goal, found) == ()
        assert sum(map(goal.worth, found)) == max(possible)
    greedy = greedy_plan(goal, offers)
    assert not [one for one in violations(goal, greedy) if not one.startswith("no ")]
