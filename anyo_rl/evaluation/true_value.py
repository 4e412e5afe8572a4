"""What a state of a reasoning is truly worth in a toy world: the gain to expect, and not that of the one target.

The label of a state knows the item that the user really chose. That is one draw from what the user might choose next,
so a scorer that knows no target cannot follow it far. The toy world knows the distribution p(item | history) of that
draw (`anyo_rl.data.toy.oracle`), and the engine ranks every item by the policy after the state. Hence

    true value = sum over all items of p(item | history) * NDCG(rank of the item, if the teacher answered now)

by the whole distribution, ties counted against an item as everywhere. After the last step the answer is the path's
own, and a path that never reached the marker is worth 0, as its label is. On held-out users a forced answer's label is
a draw of which this is the mean. Labels by Monte Carlo and by a judge are of something else, and compared with it too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from anyo_rl.data.schema import DataError
from anyo_rl.data.task import Task, World
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.teacher.tokens import Tokens

CONTEXTS_AT_ONCE = 256  # bounds the memory of their distributions


class Truth(NamedTuple):
    """What a toy world knows of labelled paths.

    Attributes:
        values_B: the true value of each state, as many as a path has values.
        intents_B: how probable the first intent that a path states is, given the history; `None` where it states none.
    """

    values_B: list[np.ndarray]
    intents_B: list[float | None]


def all_ranks(scores_B_N: np.ndarray) -> np.ndarray:
    """Rank of each item of each row, (B, N) from 1; an item comes after all that score as high.

    >>> all_ranks(np.array([[0.5, 0.1, 0.5, 0.9]])).tolist()
    [[3, 4, 3, 1]]
    """
    ranks = [len(row) - np.searchsorted(np.sort(row), row, side="left") for row in scores_B_N]
    return np.array(ranks, dtype=np.int64).reshape(scores_B_N.shape)


def expected_gains(log_probs_B_N: np.ndarray, wanted_B_N: np.ndarray) -> np.ndarray:
    """The gain to expect of each ranking, (B,) in (0, 1], where the target is drawn from `wanted_B_N`.

    >>> wanted = np.array([[0.5, 0.25, 0.25]])
    >>> expected_gains(np.array([[-1.0, -3.0, -2.0]]), wanted).round(4).tolist()  # ranks 1, 3 and 2
    [0.7827]
    """
    return (wanted_B_N * ndcg(all_ranks(log_probs_B_N))).sum(axis=1)


def state_contexts(prompt_ids: Sequence[int], completion_ids: Sequence[int], tokens: Tokens) -> list[list[int] | None]:
    """Where each state of a path is answered, T + 1 contexts; the last is `None` where the path has no marker."""
    ends = tokens.step_ends(completion_ids)
    contexts: list[list[int] | None] = [
        tokens.answered_now(prompt_ids, completion_ids[:end]) for end in [0, *ends][: max(1, len(ends))]
    ]
    if ends:
        finished = tokens.marker_id in completion_ids
        contexts.append(tokens.marked_context(prompt_ids, completion_ids) if finished else None)
    return contexts


def first_intent(world: World, steps: Sequence[str]) -> int | None:
    """After how many of the steps an intent is stated for the first time; `None` where none is."""
    return next((n for n in range(1, len(steps) + 1) if world.states_intent(steps[:n])), None)


def truth(labels: pl.DataFrame, task: Task, ranker: DistributionRanker, tokens: Tokens) -> Truth | None:
    """What a toy world knows of labelled paths; `None` outside of it, where nobody does.

    Args:
        labels: labelled paths (`anyo_rl.values.prm.label_paths`).
        task: the data.
        ranker: the engine on the weights that the paths were sampled from.
        tokens: their tokenizer and marker.

    Raises:
        DataError: items of the history are left out of rankings.
    """
    world = task.world
    if world is None:
        return None
    if task.args.mask_history:
        raise DataError(
            "mask_history is set: the true values of a toy world, whose users buy an item again, are of rankings of "
            "the whole catalog; leave it out"
        )
    examples = {row["example_id"]: row for row in task.examples.iter_rows(named=True)}
    rows = [examples[example_id] for example_id in labels["example_id"].unique(maintain_order=True)]
    histories = [[world.index[item] for item in row["history"]] for row in rows]
    starts = [task.position(row["example_id"]) - len(row["history"]) for row in rows]
    known = {row["example_id"]: seen for row, *seen in zip(rows, histories, starts, strict=True)}
    order = [world.index[item] for item in ranker.catalog.item_ids]
    wanted = dict(zip(known, world.oracle_scores(histories, starts)[:, order], strict=True))
    return Truth(true_values(labels, wanted, ranker, tokens), _intents(labels, world, known))


def true_values(
    labels: pl.DataFrame, wanted: Mapping[str, np.ndarray], ranker: DistributionRanker, tokens: Tokens
) -> list[np.ndarray]:
    """The true value of each state of labelled paths.

    Args:
        labels: with `example_id`, `prompt_ids` and `token_ids`.
        wanted: p(item | history) of each example, (N,) in the order of the ranker's catalog.
        ranker: the engine on the weights that the paths were sampled from.
        tokens: their tokenizer and marker.

    Returns:
        For each path as many numbers in [0, 1] as it has values.
    """
    keys_B: list[list[tuple[str, tuple[int, ...]] | None]] = []
    for example_id, prompt_ids, ids in labels.select("example_id", "prompt_ids", "token_ids").iter_rows():
        contexts = state_contexts(prompt_ids, ids, tokens)
        keys_B.append([None if context is None else (example_id, tuple(context)) for context in contexts])
    asked = list(dict.fromkeys(key for keys in keys_B for key in keys if key is not None))
    values: dict[Any, float] = {None: 0.0}
    for start in range(0, len(asked), CONTEXTS_AT_ONCE):
        part = asked[start : start + CONTEXTS_AT_ONCE]
        log_probs_B_N = ranker.log_probs([context for _, context in part]).numpy()
        gains = expected_gains(log_probs_B_N, np.stack([wanted[example_id] for example_id, _ in part]))
        values.update(zip(part, gains.tolist(), strict=True))
    return [np.array([values[key] for key in keys]) for keys in keys_B]


def _intents(labels: pl.DataFrame, world: World, known: Mapping[str, Any]) -> list[float | None]:
    """How probable the first intent of each path is, given the history."""
    found: list[float | None] = []
    for example_id, steps in labels.select("example_id", "steps").iter_rows():
        n_steps, (history, start) = first_intent(world, steps), known[example_id]
        found.append(None if n_steps is None else world.stated_probability(steps[:n_steps], history, start))
    return found
