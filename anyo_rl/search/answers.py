"""How a teacher answers held-out users: at once, after one greedy reasoning, or as a mixture over sampled paths."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.sampling.protocol import Sample, Sampler
from anyo_rl.sampling.ranked import path_rows, rank_each
from anyo_rl.teacher.tokens import Tokens

Mode = Literal["plain", "greedy", "mixture"]
USERS_AT_ONCE = 256
PATH_CAP = 1000  # ranks after single paths of a mixture are told apart up to here; those that are reported all are


@dataclass(frozen=True)
class Answers:
    """What a teacher, a baseline or an oracle answered to U users.

    Attributes:
        ranks_U: 1-based rank of each user's target.
        top_ids_U_K: the best item ids of each user.
        paths: rows of the paths table, without what the caller knows better (policy, split, model); empty for
            answers without reasoning.
    """

    ranks_U: np.ndarray
    top_ids_U_K: list[list[str]]
    paths: list[dict[str, Any]]


def answer_together(rows: Sequence[dict[str, Any]], *args: Any, **kwargs: Any) -> Answers:
    """`answer`, by all processes: each asks a share of the users, and all have the answers of one process.

    Draws belong to examples, so that it does not matter who samples them.
    """
    state = PartialState()
    own = answer(rows[state.process_index :: state.num_processes], *args, **kwargs)
    if state.num_processes == 1:
        return own
    shares: list[Answers] = gather_object([own])
    ranks_U = np.zeros(len(rows), np.int64)
    top_ids_U_K: list[list[str]] = [[] for _ in rows]
    paths_U: list[list[dict[str, Any]]] = [[] for _ in rows]
    for place, share in enumerate(shares):
        users = range(place, len(rows), len(shares))
        n_paths = len(share.paths) // max(1, len(users))
        for at, user in enumerate(users):
            ranks_U[user], top_ids_U_K[user] = share.ranks_U[at], share.top_ids_U_K[at]
            paths_U[user] = share.paths[at * n_paths : (at + 1) * n_paths]
    return Answers(ranks_U, top_ids_U_K, [path for paths in paths_U for path in paths])


def answer(
    rows: Sequence[dict[str, Any]],
    ranker: LikelihoodRanker,
    sampler: Sampler,
    tokens: Tokens,
    mode: Mode,
    *,
    n_paths: int = 8,
    temperature: float = 1.0,
    max_new_tokens: int = 64,
    seed: int = 0,
    mask_history: bool = False,
    top_k: int = 20,
) -> Answers:
    """Lets a teacher answer users.

    Args:
        rows: U rows with prompt, history and target_id (`anyo_rl.reasoning.rows.make_rows`).
        ranker: the engine on the teacher's weights.
        sampler: a sampler on the same weights.
        tokens: the teacher's tokenizer and marker.
        mode: `plain` asks for the item at once; `greedy` after one greedy reasoning; `mixture` averages the item
            distributions after `n_paths` sampled reasonings.
        n_paths: paths of the mixture.
        temperature: at which the mixture's paths are sampled.
        max_new_tokens: longest reasoning, the marker included.
        seed: of the draws.
        mask_history: whether items of the history are left out of the ranking (never the target).
        top_k: items returned for each user.
    """
    ranks, top_ids, paths = [], [], []
    for start in range(0, len(rows), USERS_AT_ONCE):
        batch = rows[start : start + USERS_AT_ONCE]
        contexts = [tokens.context_ids(row["prompt"]) for row in batch]
        if mode == "plain":
            samples = [[Sample((tokens.marker_id,), None, "stop")] for _ in batch]
        else:
            samples = sampler.sample(
                contexts,
                n=1 if mode == "greedy" else n_paths,
                temperature=0.0 if mode == "greedy" else temperature,
                max_new_tokens=max_new_tokens,
                seed=seed,
                keys_B=[row["example_id"] for row in batch],
            )
        marked = [
            [tokens.marked_context(context, sample.token_ids) for sample in of_user]
            for context, of_user in zip(contexts, samples, strict=True)
        ]
        targets = [row["target_id"] for row in batch]
        excluded = [row["history"] for row in batch] if mask_history else None
        ranking = ranker.rank_mixture(marked, targets, top_k=top_k, excluded_B=excluded)
        ranks.append(ranking.ranks_B)
        top_ids += ranking.top_ids_B_K
        if mode != "plain":
            single, cap = ranking, ranker.cap
            if mode == "mixture":
                alone = copy.copy(ranker)
                alone.cap = cap = PATH_CAP
                single = rank_each(alone, batch, contexts, samples, tokens, mask_history=mask_history)
            paths += path_rows(batch, samples, single, tokens, ranker.catalog, seed=seed, cap=cap)
    return Answers(np.concatenate(ranks) if ranks else np.zeros(0, np.int64), top_ids, paths)
