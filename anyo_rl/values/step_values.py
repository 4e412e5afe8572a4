"""Values of the states between the steps of a reasoning: V_0 before the first step, V_1 after it, and so on.

Two sources, without labels or another model. *Forced answer*: the gain of the target if the teacher had to answer at
once, read off by the engine; exact, and no token is sampled. It means something only for a teacher that was sometimes
trained to answer early (`early_answer_share`). *Monte Carlo* (Math-Shepherd, arXiv 2312.08935): the mean gain of k
reasonings sampled from there on, which is what the value of a policy is, at the price of sampling them.

Equal states, such as the beginnings of all paths of a group, are valued once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from anyo_rl.evidence.fusion import Engine
from anyo_rl.metrics.gains import ndcg
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampler, Sampling
from anyo_rl.teacher.tokens import Tokens


class State(NamedTuple):
    """A reasoning so far: the place of its row, and the token ids of its prompt and its steps."""

    row: int
    context: Sequence[int]
    steps: Sequence[int]


def forced_answer_values(
    rows: Sequence[Row],
    completion_ids_B: Sequence[Sequence[int]],
    ranker: Engine,
    tokens: Tokens,
) -> list[np.ndarray]:
    """The gain (NDCG of the rank) that the target would have if the teacher answered before each step.

    Args:
        rows: B examples (`anyo_rl.reasoning.rows.make_rows`), one for each completion.
        completion_ids_B: what was sampled.
        ranker: the engine on the weights that are asked, by itself or with evidence.
        tokens: the teacher's tokenizer and marker.

    Returns:
        B arrays of values in (0, 1], as many as there are steps and at least one.
    """

    def value(states: list[State]) -> np.ndarray:
        ranking = ranker.rank(
            [tokens.answered_now(state.context, state.steps) for state in states],
            [rows[state.row].target_id for state in states],
            top_k=0,
            excluded_B=[rows[state.row].excluded for state in states],
            example_ids_B=[rows[state.row].example_id for state in states],
        )
        return ndcg(ranking.ranks_B)

    return of_each_state(rows, completion_ids_B, tokens, value)


def monte_carlo_values(
    rows: Sequence[Row],
    completion_ids_B: Sequence[Sequence[int]],
    sampler: Sampler,
    ranker: Engine,
    tokens: Tokens,
    sampling: Sampling,
) -> list[np.ndarray]:
    """The mean gain of the target after reasonings sampled on from before each step; unfinished ones have gain 0.

    Args:
        rows: B examples (`anyo_rl.reasoning.rows.make_rows`), one for each completion.
        completion_ids_B: what was sampled.
        sampler: a sampler of the teacher.
        ranker: the engine on the same weights.
        tokens: the teacher's tokenizer and marker.
        sampling: of the reasonings from each state. What the whole completion may have is right for the most tokens
            of one, for a policy that is not told how much it has written.

    Returns:
        B arrays of values in [0, 1].
    """

    def value(states: list[State]) -> np.ndarray:
        samples_B_G = sampler.sample([[*state.context, *state.steps] for state in states], sampling)
        finished = [
            (place, [*state.context, *state.steps, *sample.token_ids])
            for place, (state, samples) in enumerate(zip(states, samples_B_G, strict=True))
            for sample in samples
            if tokens.marker_id in sample.token_ids
        ]
        total = np.zeros(len(states))
        if finished:
            asked = [rows[states[place].row] for place, _ in finished]
            ranking = ranker.rank(
                [context for _, context in finished],
                [row.target_id for row in asked],
                top_k=0,
                excluded_B=[row.excluded for row in asked],
                example_ids_B=[row.example_id for row in asked],
            )
            np.add.at(total, [place for place, _ in finished], ndcg(ranking.ranks_B))
        return total / sampling.n

    return of_each_state(rows, completion_ids_B, tokens, value)


def of_each_state(
    rows: Sequence[Row],
    completion_ids_B: Sequence[Sequence[int]],
    tokens: Tokens,
    value: Callable[[list[State]], np.ndarray],
) -> list[np.ndarray]:
    """Values of the states before the steps of each completion, each different state valued once by `value`."""
    contexts: dict[str, list[int]] = {}
    place: dict[tuple[str, tuple[int, ...]], int] = {}
    states: list[State] = []
    places_B: list[list[int]] = []
    for b, (row, completion) in enumerate(zip(rows, completion_ids_B, strict=True)):
        example = row.example_id
        if example not in contexts:
            contexts[example] = tokens.context_ids(row.prompt)
        places_B.append([])
        for start in (0, *tokens.step_ends(completion)[:-1]):
            key = (example, tuple(completion[:start]))
            if key not in place:
                place[key] = len(states)
                states.append(State(b, contexts[example], completion[:start]))
            places_B[-1].append(place[key])
    values = value(states)
    return [values[places] for places in places_B]
