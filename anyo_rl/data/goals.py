"""Goals that a set of offers has to meet: what a set is worth, what it violates, and what the best set is.

A goal wants one offer of each of its categories, within a budget and on the days that are free; two offers of one day
exclude each other. What an offer is worth to a traveller is its stars, and more where it has the style that the
traveller likes. The best set is found exactly, so that regret is exact.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

LIKED = 3  # what the style that is liked adds to an offer's stars


@dataclass(frozen=True)
class Offer:
    """Something that can be booked.

    Attributes:
        offer_id: its identity; titles may collide.
        title: what people read.
        category: what kind of thing it is; no goal wants two of a kind.
        price: in whole units of the budget, 0 or more.
        days: the days that it takes up.
        style: what it is like.
        stars: how good it is for anybody, 0 or more.
    """

    offer_id: str
    title: str
    category: str
    price: int
    days: tuple[str, ...]
    style: str
    stars: int


@dataclass(frozen=True)
class Goal:
    """What is asked for.

    Attributes:
        goal_id: its identity.
        traveller: who asks.
        liked: the style that the traveller likes. Prompts of agents do not show it: the profile does.
        budget: most that all offers may cost together.
        days: the days that are free.
        categories: one offer of each is wanted.
    """

    goal_id: str
    traveller: str
    liked: str
    budget: int
    days: tuple[str, ...]
    categories: tuple[str, ...]

    def worth(self, offer: Offer) -> int:
        """What an offer is worth to the traveller."""
        return offer.stars + LIKED * (offer.style == self.liked)


@dataclass(frozen=True)
class Verdict:
    """What an answer comes to.

    Attributes:
        violations: in words, one for each; none means that the set can be booked.
        value: the sum of what its offers are worth; 0 with any violation.
        best: that of the best set, above 0.
    """

    violations: tuple[str, ...]
    value: int
    best: int

    @property
    def success(self) -> bool:
        """Whether nothing is violated."""
        return not self.violations

    @property
    def regret(self) -> float:
        """The share of the best value that was missed, in [0, 1]."""
        return 1 - self.value / self.best


@dataclass(frozen=True)
class GoalWorld:
    """A catalog of offers, what is known of them, and goals of three splits.

    Attributes:
        offers: the catalog.
        related: offer id to ids of the same category, by how often both were booked by one traveller, most first.
        goals: split (`train`, `validation`, `test`) to goals.
        rename: draws words that change places and leave the world the same but for its names; `None` where nothing
            is known of such.
    """

    offers: tuple[Offer, ...]
    related: Mapping[str, tuple[str, ...]]
    goals: Mapping[str, tuple[Goal, ...]]
    rename: Callable[[np.random.Generator], Mapping[str, str]] | None = None

    @cached_property
    def by_id(self) -> dict[str, Offer]:
        """The offers by their ids."""
        return {offer.offer_id: offer for offer in self.offers}

    @cached_property
    def _plans(self) -> dict[str, tuple[Offer, ...]]:
        return {}

    def best(self, goal: Goal) -> tuple[Offer, ...]:
        """A goal's best set, which is looked for once."""
        if goal.goal_id not in self._plans:
            self._plans[goal.goal_id] = best_plan(goal, self.offers)
        return self._plans[goal.goal_id]

    def judge(self, goal: Goal, chosen: Sequence[Offer | None]) -> Verdict:
        """What an answer to a goal comes to; see `violations`."""
        found = violations(goal, chosen)
        best = sum(map(goal.worth, self.best(goal)))
        value = 0 if found else sum(goal.worth(offer) for offer in chosen if offer is not None)
        return Verdict(found, value, best)


def violations(goal: Goal, chosen: Sequence[Offer | None], *, whole: bool = True) -> tuple[str, ...]:
    """What a set of offers violates.

    Args:
        goal: what was asked for.
        chosen: the set; `None` is something that is not in the catalog.
        whole: whether the set is to be complete, so that a category without an offer is a violation.

    Returns:
        A few words for each violation.
    """
    offers = [offer for offer in chosen if offer is not None]
    found = ["unknown offer"] * (len(chosen) - len(offers))
    categories = [offer.category for offer in offers]
    found += [f"unwanted {one}" for one in dict.fromkeys(categories) if one not in goal.categories]
    found += [f"two of {one}" for one in goal.categories if categories.count(one) > 1]
    found += [f"no {one}" for one in goal.categories if whole and one not in categories]
    days = [day for offer in offers for day in offer.days]
    found += [f"{day} is not free" for day in dict.fromkeys(days) if day not in goal.days]
    found += [f"clash on {day}" for day in dict.fromkeys(days) if days.count(day) > 1]
    over = sum(offer.price for offer in offers) - goal.budget
    return (*found, *([f"over by {over}"] if over > 0 else []))


def best_plan(goal: Goal, offers: Iterable[Offer]) -> tuple[Offer, ...]:
    """The set of most value that violates nothing, in the order of the goal's categories; empty where there is none.

    Of equal sets the one that was found first counts.
    """
    return max(possible_plans(goal, offers), key=lambda plan: sum(map(goal.worth, plan)), default=())


def possible_plans(goal: Goal, offers: Iterable[Offer]) -> list[tuple[Offer, ...]]:
    """Of all sets that violate nothing, the most valuable one for each pair of days taken and money spent.

    Exact, category by category: whatever a beginning is gone on with, that depends on its days and its cost alone.
    """
    pool = list(offers)
    beginnings: dict[tuple[frozenset[str], int], tuple[int, tuple[Offer, ...]]] = {(frozenset(), 0): (0, ())}
    for category in goal.categories:
        fitting = [one for one in pool if one.category == category and _fits(goal, one, frozenset(), goal.budget)]
        worth = [goal.worth(one) for one in fitting]
        longer: dict[tuple[frozenset[str], int], tuple[int, tuple[Offer, ...]]] = {}
        for (taken, spent), (value, plan) in beginnings.items():
            for offer, more in zip(fitting, worth, strict=True):
                if spent + offer.price > goal.budget or not taken.isdisjoint(offer.days):
                    continue
                key = (taken | frozenset(offer.days), spent + offer.price)
                if key not in longer or longer[key][0] < value + more:
                    longer[key] = (value + more, (*plan, offer))
        beginnings = longer
    return [plan for _, plan in beginnings.values()]


def greedy_plan(goal: Goal, offers: Sequence[Offer], *, for_price: bool = False) -> tuple[Offer, ...]:
    """What a planner gets that takes the best offer of each category in turn, among those that still fit.

    Args:
        goal: what is asked for; its categories are gone through in their order.
        offers: the catalog, all of which the planner sees.
        for_price: whether the best is that of most worth for its price, rather than of most worth.

    Returns:
        The set; a category for which nothing fits is left out.
    """

    def merit(offer: Offer) -> float:
        return goal.worth(offer) / max(offer.price, 1) if for_price else goal.worth(offer)

    taken: frozenset[str] = frozenset()
    left, plan = goal.budget, []
    for category in goal.categories:
        fitting = [one for one in offers if one.category == category and _fits(goal, one, taken, left)]
        if fitting:
            offer = max(fitting, key=merit)
            plan.append(offer)
            taken, left = taken | set(offer.days), left - offer.price
    return tuple(plan)


def _fits(goal: Goal, offer: Offer, taken: frozenset[str], left: int) -> bool:
    return offer.price <= left and set(offer.days) <= set(goal.days) and not taken & set(offer.days)
