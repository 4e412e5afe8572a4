"""`listwise`: numbered candidates in the prompt, and their order as the answer, as RankLLM has it.

Pradeep et al. 2023 (arXiv 2312.02724), Sun et al. 2023 (arXiv 2304.09542). Departures: a reasoning comes before the
order; the order can also be read off the first number's probabilities (FIRST, Reddy et al. 2024, arXiv 2406.15657).
"""

from collections.abc import Sequence
from dataclasses import replace

from anyo_rl.data.text import truncate_text
from anyo_rl.reasoning.kinds.candidates import Learns, Listed, Source
from anyo_rl.reasoning.kinds.kind import Asked, Kind
from anyo_rl.reasoning.prompts import Line, Section, Shown, Words

TITLE_CHARS = 120  # of a candidate: a list has to fit as a whole
NO_BUDGET = 10**9  # for the same reason: what is not shown cannot be ranked
WORDS = Words(
    task="Reason in short lines, then write all candidates by their numbers, the best first: [2] > [1] > [3].",
    question="In which order would the user choose the candidates?",
    footer="Order:",
)


def listwise(
    candidates_from: Source | None = None,
    n_candidates: int = 20,
    window: int = 20,
    stride: int = 10,
    shuffled: bool = False,
    scores: bool = False,
    learns: Learns = "clicks",
) -> Kind:
    """The kind; see `Listed` for its settings."""
    listed = Listed(candidates_from, n_candidates, window, stride, shuffled, scores, learns)
    return Kind("listwise", "order", show_candidates, WORDS, listed=listed)


def show_candidates(asked: Asked) -> Sequence[Section]:
    """The candidates, a line each: its number, the item, and the score where that is shown."""
    lines: list[Line] = []
    for place, item in enumerate(asked.listed):
        told = [f" (score {asked.scores[place]:.2f})"] if asked.scores else []
        lines.append([f"[{place + 1}] ", short(asked.shown(item)), *told])
    return [Section("Candidates:", "candidates", lines, NO_BUDGET)]


def short(item: Shown) -> Shown:
    """An item with a title of some length at most."""
    return replace(item, title=truncate_text(item.title, TITLE_CHARS)) if item.title else item
