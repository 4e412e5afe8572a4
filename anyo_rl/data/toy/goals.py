"""A world of trips: offers with prices, days, styles and stars, and goals whose best answer is known exactly.

A goal reads `Traveller 57 wants inn, tour, dinner. Budget 12. Free mon tue thu fri.`, and its answer is a set of
titles. Prices go with stars, and budgets lie between what the cheapest set costs and what the best one would, so that
whoever takes the best offer first has no money left for the last. What a traveller likes stands in the profile.
Travellers booked some offers before, more of those that are worth more to them: which offers are related comes from
that. A traveller is in all splits, a goal in one.
"""

from dataclasses import dataclass, replace

import numpy as np

from anyo_rl.data.goals import Goal, GoalWorld, Offer, possible_plans
from anyo_rl.run.settings import Bounds, UsageError, check_bounds

NOUNS = {
    "inn": ("Inn", "Lodge"),
    "tour": ("Walk", "Cruise"),
    "dinner": ("Kitchen", "Table"),
    "museum": ("Museum", "Gallery"),
    "concert": ("Quartet", "Band"),
    "market": ("Bazaar", "Fair"),
}
ADJECTIVES = (
    *("Amber", "Birch", "Cedar", "Dawn", "Ember", "Fern", "Garnet", "Harbour", "Iris", "Jade", "Kite", "Lantern"),
    *("Maple", "North", "Olive", "Pearl", "Quartz", "River", "Silver", "Tulip"),
)
DAYS = ("mon", "tue", "wed", "thu", "fri")
STYLES = ("quiet", "lively", "old", "modern")
N_WANTED, N_FREE, MOST_STARS, MOST_PRICE = 3, 4, 5, 9
N_BOOKINGS = 12  # of each traveller, before
TIGHTEST, LOOSEST = 0.3, 0.8  # where budgets lie between the cheapest set's cost and the best set's


@dataclass(frozen=True)
class GoalConfig:
    """Everything that defines a world of trips.

    Attributes:
        n_offers: offers of each of the six categories, 4 to 40.
        n_travellers: travellers, at least 1.
        n_train: goals to learn from.
        n_validation: goals to choose by.
        n_test: goals to compare on.
        seed: seed of everything that is drawn.
    """

    n_offers: int = 24
    n_travellers: int = 120
    n_train: int = 1500
    n_validation: int = 60
    n_test: int = 300
    seed: int = 0

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("n_travellers", "n_train", "n_validation", "n_test"), Bounds(1, 10**6))
        check_bounds(self, {"n_offers": Bounds(4, 2 * len(ADJECTIVES)), **counts}, "goals: ")


def make_goal_world(config: GoalConfig) -> GoalWorld:
    """Draws the world.

    Raises:
        UsageError: so few different goals are possible that the splits cannot be filled.
    """
    rng = np.random.default_rng(config.seed)
    offers = tuple(_offers(rng, config.n_offers))
    liked_U = rng.integers(len(STYLES), size=config.n_travellers)
    related = _related(rng, offers, liked_U)
    wanted = {"train": config.n_train, "validation": config.n_validation, "test": config.n_test}
    goals: list[Goal] = []
    n_all, seen = sum(wanted.values()), set()
    for _ in range(20 * n_all):
        if len(goals) == n_all:
            break
        goal = _goal(rng, offers, liked_U)
        if goal is not None and (asked := replace(goal, goal_id="")) not in seen:
            seen.add(asked)
            goals.append(replace(goal, goal_id=f"goal-{len(goals)}"))
    if len(goals) < n_all:
        raise UsageError(f"found {len(goals)} different goals, expected {n_all}: raise n_offers or n_travellers")
    ends = np.cumsum(list(wanted.values()))
    splits = {name: tuple(goals[end - n : end]) for (name, n), end in zip(wanted.items(), ends.tolist(), strict=True)}
    return GoalWorld(offers, related, splits, rename)


def rename(rng: np.random.Generator) -> dict[str, str]:
    """Draws other names: adjectives, days and styles change places, and so do categories, with their nouns."""
    names: dict[str, str] = {}
    for words in (ADJECTIVES, DAYS, STYLES):
        names |= dict(zip(words, (words[place] for place in rng.permutation(len(words)).tolist()), strict=True))
    categories = list(NOUNS)
    for one, place in zip(categories, rng.permutation(len(categories)).tolist(), strict=True):
        other = categories[place]
        first = int(rng.integers(2))
        names |= {one: other, NOUNS[one][0]: NOUNS[other][first], NOUNS[one][1]: NOUNS[other][1 - first]}
    return names


def _offers(rng: np.random.Generator, n_offers: int) -> list[Offer]:
    made: list[Offer] = []
    for category, nouns in NOUNS.items():
        titles = [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in nouns]
        for place in rng.choice(len(titles), n_offers, replace=False).tolist():
            stars = int(rng.integers(1, MOST_STARS + 1))
            price = int(np.clip(stars + rng.integers(-1, 4), 1, MOST_PRICE))
            day, style = DAYS[rng.integers(len(DAYS))], STYLES[rng.integers(len(STYLES))]
            made.append(Offer(f"o{len(made)}", titles[place], category, price, (day,), style, stars))
    return made


def _related(rng: np.random.Generator, offers: tuple[Offer, ...], liked_U: np.ndarray) -> dict[str, tuple[str, ...]]:
    booked_U_N = np.zeros((len(liked_U), len(offers)))
    for user, liked in enumerate(liked_U.tolist()):
        worth_N = np.array([offer.stars + 3 * (offer.style == STYLES[liked]) for offer in offers])
        share_N = np.exp(worth_N / 2)
        booked_U_N[user, rng.choice(len(offers), N_BOOKINGS, replace=False, p=share_N / share_N.sum())] = 1
    together_N_N = booked_U_N.T @ booked_U_N
    related = {}
    for row, offer in enumerate(offers):
        others = [n for n, other in enumerate(offers) if other.category == offer.category and n != row]
        others.sort(key=lambda n: (-together_N_N[row, n], n))
        related[offer.offer_id] = tuple(offers[n].offer_id for n in others)
    return related


def _goal(rng: np.random.Generator, offers: tuple[Offer, ...], liked_U: np.ndarray) -> Goal | None:
    """A goal with a best set; `None` where its days have none."""
    user = int(rng.integers(len(liked_U)))
    names, free = list(NOUNS), sorted(rng.choice(len(DAYS), N_FREE, replace=False).tolist())
    categories = tuple(names[place] for place in rng.choice(len(names), N_WANTED, replace=False))
    dearest = N_WANTED * MOST_PRICE
    goal = Goal("", str(user), STYLES[liked_U[user]], dearest, tuple(DAYS[day] for day in free), categories)
    share = rng.uniform(TIGHTEST, LOOSEST)
    plans = possible_plans(goal, offers)
    if not plans:
        return None
    best, cheapest = (
        sum(offer.price for offer in plan)
        for plan in (
            max(plans, key=lambda plan: sum(map(goal.worth, plan))),
            min(plans, key=lambda plan: sum(offer.price for offer in plan)),
        )
    )
    return replace(goal, budget=round(cheapest + (best - cheapest) * share))
