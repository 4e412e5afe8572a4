"""What an agent learns to begin with: how a few solved goals are asked about and answered, call by call.

The best set is known, and the calls that would have found it are made up backwards from it: for each of its offers a
search that names it, and before the last one what is left. What the tools answer is real; only what an agent would
have written has labels.

Of few plans a teacher would learn the titles by heart, and not to read results. So each plan can be told many times,
with days, styles, categories and titles that have changed places (`GoalWorld.rename`): the same plan in a world that
is the same but for its names. Without tools there is nothing but the catalog to be learned by heart, and names stay.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from anyo_rl.agent.planning import Planner
from anyo_rl.agent.tools import Desk
from anyo_rl.data.completion import MARKER
from anyo_rl.data.goals import Goal, Offer
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.sft import IGNORED


def solved_calls(planner: Planner, goal: Goal, plan: Sequence[Offer]) -> Iterator[str]:
    """The calls that lead to a plan: the profile, a search for each offer, and before the last what is left."""
    yield "profile"
    for n_before, offer in enumerate(plan):
        if n_before and n_before == len(plan) - 1:
            yield f"plan: {planner.written(plan[:n_before])}"
        yield f"search: {_query(planner, goal, offer)}"


def _query(planner: Planner, goal: Goal, offer: Offer) -> str:
    """The plainest words of which an offer is among the results: its category, what is liked, its day, its price."""
    queries = (
        f"{offer.category} {goal.liked} {offer.price}",
        f"{offer.category} {offer.days[0]} {offer.price}",
        f"{offer.category} {goal.liked} {offer.days[0]} {offer.price}",
    )
    name = planner.names.shown[offer.offer_id]
    return next((query for query in queries if f"{name} " in planner.search(goal, query)), queries[-1])


def lesson(planner: Planner, desk: Desk, goal: Goal) -> list[tuple[str, bool]]:
    """The lines that lead to a goal's best set, and whether each is a result; the answer, with `->`, comes last.

    Args:
        planner: the world as agents see it.
        desk: answers the calls; one without tools leaves the answer alone.
        goal: the goal.
    """
    plan, lines = planner.world.best(goal), []
    for call in solved_calls(planner, goal, plan) if desk.tools else ():
        result = desk.answer(call)
        lines += [(call, False), *([] if result is None else [(result.text, True)])]
    return [*lines, (f"{MARKER} {planner.written(plan)}", False)]


def labelled(
    tokens: Tokens, context_ids: Sequence[int], lines: Sequence[tuple[str, bool]]
) -> tuple[list[int], list[int]]:
    """Token ids and labels of a lesson: prompt and results carry no loss.

    Args:
        tokens: the teacher's tokenizer and marker.
        context_ids: the prompt.
        lines: see `lesson`.
    """
    ids, labels = list(context_ids), [IGNORED] * len(context_ids)
    for text, heard in lines[:-1]:
        told = tokens.tokenizer.encode(f"{text}\n", add_special_tokens=False)
        ids += told
        labels += [IGNORED] * len(told) if heard else told
    answer = lines[-1][0].removeprefix(MARKER)
    told = [tokens.marker_id, *tokens.tokenizer.encode(answer, add_special_tokens=False), tokens.eos_id]
    return [*ids, *told], [*labels, *told]


def renamed(text: str, names: Mapping[str, str]) -> str:
    """A text in which each word that has another name has it.

    >>> renamed("search: inn quiet 5", {"inn": "tour", "tour": "inn"})
    'search: tour quiet 5'
    """
    return re.sub(r"[A-Za-z]+", lambda word: names.get(word[0], word[0]), text)
