"""What an agent learns to begin with: how a few solved goals are asked about and answered, call by call.

The best set is known, and the calls that would have found it are made up backwards from it: for each of its offers a
search that names it, then a plan. What the tools answer is real; only what an agent would have written has labels.
"""

from collections.abc import Iterator, Sequence

from anyo_rl.agent.episodes import Episode, result_ids
from anyo_rl.agent.planning import Planner
from anyo_rl.agent.tools import Desk
from anyo_rl.data.goals import Goal, Offer
from anyo_rl.teacher.tokens import Tokens

IGNORED = -100


def solved_calls(planner: Planner, goal: Goal, plan: Sequence[Offer]) -> Iterator[str]:
    """The calls that lead to a plan: the profile, and for each offer a search that names it and the plan so far."""
    yield "profile"
    for n_chosen, offer in enumerate(plan, 1):
        yield f"search: {_query(planner, goal, offer)}"
        yield f"plan: {planner.written(plan[:n_chosen])}"


def _query(planner: Planner, goal: Goal, offer: Offer) -> str:
    """The plainest words of which an offer is among the results: its category, what is liked, its day, its price."""
    queries = (
        f"{offer.category} {goal.liked} {offer.price}",
        f"{offer.category} {offer.days[0]} {offer.price}",
        f"{offer.category} {goal.liked} {offer.days[0]} {offer.price}",
    )
    name = planner.names.shown[offer.offer_id]
    return next((query for query in queries if f"{name} " in planner.search(goal, query)), queries[-1])


def lesson(planner: Planner, desk: Desk, tokens: Tokens, context_ids: Sequence[int], goal: Goal) -> Episode:
    """The episode of a goal's best set; without tools at the desk, the answer alone.

    Args:
        planner: the world as agents see it.
        desk: answers the calls.
        tokens: the teacher's tokenizer and marker.
        context_ids: the prompt.
        goal: the goal.
    """
    plan, episode = planner.world.best[goal.goal_id], Episode(list(context_ids))
    for call in solved_calls(planner, goal, plan) if desk.tools else ():
        episode.add(tokens.tokenizer.encode(f"{call}\n", add_special_tokens=False), own=True)
        episode.lines.append((call, False))
        result = desk.answer(call)
        if result is not None:
            episode.add(result_ids(result.text, tokens), own=False)
            episode.lines.append((result.text, True))
    episode.answer = planner.written(plan)
    written = tokens.tokenizer.encode(f" {episode.answer}", add_special_tokens=False)
    episode.add([tokens.marker_id, *written, tokens.eos_id], own=True)
    episode.ending = "answered"
    return episode


def labelled(episode: Episode) -> tuple[list[int], list[int]]:
    """Token ids and labels of an episode: prompt and results carry no loss."""
    labels = [token if own else IGNORED for token, own in zip(episode.ids, episode.mask, strict=True)]
    return [*episode.context_ids, *episode.ids], [IGNORED] * len(episode.context_ids) + labels
