"""The tools of a goal: `search`, `similar`, `profile` and `plan`, answered from catalog, evidence and profile.

    profile                       = likes quiet
    search: inn quiet 5           = Pearl Inn thu quiet *4 $4; Kite Inn thu old *5 $5; …
    similar: Pearl Inn            = Iris Inn mon quiet *3 $4; …
    plan: Pearl Inn | Kite Band   = cost 9, left 3, days thu, missing tour; clash on thu

A search takes words in any order: offers have to be of the categories that are named, and cost no more than the
number; of these, and of what is free on the goal's days, those come first that match most of the other words, and
then those with most stars. `plan` says what a set costs and what is wrong with it, and never what a better one would
be.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from anyo_rl.agent.tools import BETWEEN, Names, Tool
from anyo_rl.data.goals import Goal, GoalWorld, Offer, Verdict, violations

TOOLS = ("search", "similar", "profile", "plan")
TASK = (
    "Find one offer of each category that is wanted, within the budget and on free days, no two on one day, worth as "
    "much to the traveller as can be."
)
LONGEST_QUERY = 200  # characters of an argument that are read


@dataclass(frozen=True)
class Planner:
    """A world as agents see it.

    Attributes:
        world: the offers and goals.
        names: what offers are called.
        n_results: how many offers `search` and `similar` name at most.
    """

    world: GoalWorld
    names: Names
    n_results: int = 4

    @classmethod
    def of(cls, world: GoalWorld, clean: Callable[[str], str] = str, n_results: int = 4) -> "Planner":
        """The world with names that the teacher's tokenizer can take; see `Names.of`."""
        titles = {offer.offer_id: offer.title for offer in world.offers}
        return cls(world, Names.of(titles, TOOLS, clean), n_results)

    def tools(self, goal: Goal) -> Mapping[str, Tool]:
        """The tools of an episode about a goal, by name."""
        return {
            "search": lambda words: self.search(goal, words),
            "similar": lambda name: self.similar(goal, name),
            "profile": lambda _: f"likes {goal.liked}",
            "plan": lambda names: self.plan(goal, names),
        }

    def search(self, goal: Goal, words: str) -> str:
        """Offers that match the words best; see above."""
        told = re.findall(r"\w+", words[:LONGEST_QUERY].lower())
        offers = self._free(goal, self.world.offers)
        if named := {offer.category for offer in self.world.offers} & set(told):
            offers = [offer for offer in offers if offer.category in named]
        for most in (int(word) for word in told if word.isdecimal()):
            offers = [offer for offer in offers if offer.price <= most]
        wanted = {word for word in told if not word.isdecimal()} - named

        def order(offer: Offer) -> tuple[int, int, int]:
            own = {offer.style, *offer.days, *self.names.shown[offer.offer_id].lower().split()}
            return -len(wanted & own), -offer.stars, offer.price

        return self._listed(sorted(offers, key=order))

    def similar(self, goal: Goal, name: str) -> str:
        """Offers of the same category that travellers booked together with this one, most often first."""
        found = self.names.find(name)
        if found is None:
            return "unknown offer"
        others = [self.world.by_id[other] for other in self.world.related.get(found, ())]
        return self._listed(self._free(goal, others))

    def plan(self, goal: Goal, names: str) -> str:
        """What a set costs, what it leaves, and what is wrong with it."""
        chosen = self.read(names)
        offers = [offer for offer in chosen if offer is not None]
        left = goal.budget - sum(offer.price for offer in offers)
        parts = [f"cost {goal.budget - left}", f"left {left}" if left >= 0 else f"over by {-left}"]
        if days := [day for offer in offers for day in offer.days]:
            parts.append(f"days {' '.join(days)}")
        if missing := [one for one in goal.categories if one not in {offer.category for offer in offers}]:
            parts.append(f"missing {' '.join(missing)}")
        wrong = [one for one in violations(goal, chosen, whole=False) if not one.startswith("over")]
        return "; ".join([", ".join(parts), *wrong])

    def read(self, answer: str) -> list[Offer | None]:
        """The offers of an answer; `None` for what is no offer's name."""
        return [None if found is None else self.world.by_id[found] for found in self.names.split(answer)]

    def judge(self, goal: Goal, answer: str | None) -> Verdict:
        """What an answer comes to; none at all is the empty set."""
        return self.world.judge(goal, self.read(answer or ""))

    def written(self, offers: Iterable[Offer]) -> str:
        """A set as an agent writes it."""
        return BETWEEN.join(self.names.shown[offer.offer_id] for offer in offers)

    def _free(self, goal: Goal, offers: Iterable[Offer]) -> list[Offer]:
        return [offer for offer in offers if set(offer.days) <= set(goal.days)]

    def _listed(self, offers: list[Offer]) -> str:
        lines = [
            f"{self.names.shown[offer.offer_id]} {' '.join(offer.days)} {offer.style} *{offer.stars} ${offer.price}"
            for offer in offers[: self.n_results]
        ]
        return "; ".join(lines) or "no such offer"


def goal_prompt(goal: Goal, *, with_profile: bool = False) -> str:
    """What a teacher is asked.

    Args:
        goal: the goal.
        with_profile: whether what `profile` would answer stands there, for teachers without tools.
    """
    likes = f" Likes {goal.liked}." if with_profile else ""
    return (
        f"Traveller {goal.traveller} wants {', '.join(goal.categories)}. Budget {goal.budget}. "
        f"Free {' '.join(goal.days)}.{likes}\n"
    )
