"""`yes_no`: the history and one item in the prompt, and whether the user likes it as the answer, as TALLRec has it.

Bao et al. 2023 (arXiv 2305.00447). Departures: a reasoning comes before the answer; p(yes) is among the two answers
and not over the vocabulary; items are reranked by it.
"""

from collections.abc import Sequence

from anyo_rl.reasoning.kinds.candidates import Liked, Listed, Negatives, Source
from anyo_rl.reasoning.kinds.kind import Asked, Kind
from anyo_rl.reasoning.kinds.listwise import NO_BUDGET, short
from anyo_rl.reasoning.prompts import Section, Words

WORDS = Words(
    task="Reason in short lines, then answer with yes or no.",
    question="Does the user like this item?",
    footer="Liked:",
)


def yes_no(
    candidates_from: Source | None = None,
    n_candidates: int = 20,
    least_rating: float | None = None,
    negatives: Negatives = "candidates",
    n_shots: int | None = None,
) -> Kind:
    """The kind; see `Liked` and `Listed` for its settings."""
    listed, liked = Listed(candidates_from, n_candidates), Liked(least_rating, negatives, n_shots)
    return Kind("yes_no", "yes_no", show_item, WORDS, listed=listed, liked=liked)


def show_item(asked: Asked) -> Sequence[Section]:
    """The item in question."""
    return [Section("Item:", "item", [[short(asked.shown(item))] for item in asked.listed], NO_BUDGET)]
