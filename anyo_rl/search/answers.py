"""How a teacher answers held-out users: at once, after one greedy reasoning, or as a mixture over sampled paths."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.paths import SampledPath
from anyo_rl.sampling.protocol import Sample, Sampler, Sampling
from anyo_rl.sampling.ranked import as_paths, rank_each
from anyo_rl.teacher.tokens import Tokens

Mode = Literal["plain", "greedy", "mixture"]
USERS_AT_ONCE = 256
PATH_CAP = 1000  # ranks after single paths of a mixture are told apart up to here; those that are reported all are


@dataclass(frozen=True)
class How:
    """How users are answered.

    Attributes:
        mode: `plain` asks for the item at once; `greedy` after one greedy reasoning; `mixture` averages the item
            distributions after `sampling.n` sampled reasonings.
        sampling: of the reasonings; a greedy one has its length alone.
        top_k: items returned for each user.
    """

    mode: Mode
    sampling: Sampling = Sampling(n=8)
    top_k: int = 20


@dataclass(frozen=True)
class Answers:
    """What a teacher, a baseline or an oracle answered to U users.

    Attributes:
        ranks_U: 1-based rank of each user's target.
        top_ids_U_K: the best item ids of each user.
        paths: without what the caller knows better (policy, split, model); empty for answers without reasoning.
    """

    ranks_U: np.ndarray
    top_ids_U_K: list[list[str]]
    paths: list[SampledPath]


def answer_together(
    rows: Sequence[Row], ranker: LikelihoodRanker, sampler: Sampler, tokens: Tokens, how: How
) -> Answers:
    """`answer`, by all processes: each asks a share of the users, and all have the answers of one process.

    Draws belong to examples, so that it does not matter who samples them.
    """
    state = PartialState()
    own = answer(rows[state.process_index :: state.num_processes], ranker, sampler, tokens, how)
    if state.num_processes == 1:
        return own
    shares: list[Answers] = gather_object([own])
    ranks_U = np.zeros(len(rows), np.int64)
    top_ids_U_K: list[list[str]] = [[] for _ in rows]
    paths_U: list[list[SampledPath]] = [[] for _ in rows]
    for place, share in enumerate(shares):
        users = range(place, len(rows), len(shares))
        n_paths = len(share.paths) // max(1, len(users))
        for at, user in enumerate(users):
            ranks_U[user], top_ids_U_K[user] = share.ranks_U[at], share.top_ids_U_K[at]
            paths_U[user] = share.paths[at * n_paths : (at + 1) * n_paths]
    return Answers(ranks_U, top_ids_U_K, [path for paths in paths_U for path in paths])


def answer(rows: Sequence[Row], ranker: LikelihoodRanker, sampler: Sampler, tokens: Tokens, how: How) -> Answers:
    """Lets a teacher answer users.

    Args:
        rows: of U users.
        ranker: the engine on the teacher's weights.
        sampler: a sampler on the same weights.
        tokens: the teacher's tokenizer and marker.
        how: with or without reasoning.
    """
    sampling = how.sampling if how.mode == "mixture" else how.sampling.greedy()
    ranks, top_ids, paths = [], [], []
    starts = range(0, len(rows), USERS_AT_ONCE)
    for start in tqdm(starts, f"batches of {USERS_AT_ONCE} users", leave=False, disable=len(starts) < 2):
        batch = rows[start : start + USERS_AT_ONCE]
        contexts = [tokens.context_ids(row.prompt) for row in batch]
        if how.mode == "plain":
            samples = [[Sample((tokens.marker_id,), None, "stop")] for _ in batch]
        else:
            samples = sampler.sample(contexts, sampling, keys_B=[row.example_id for row in batch])
        marked = [
            [tokens.marked_context(context, sample.token_ids) for sample in of_user]
            for context, of_user in zip(contexts, samples, strict=True)
        ]
        targets = [row.target_id for row in batch]
        excluded = [row.excluded for row in batch]
        ranking = ranker.rank_mixture(marked, targets, top_k=how.top_k, excluded_B=excluded)
        ranks.append(ranking.ranks_B)
        top_ids += ranking.top_ids_B_K
        if how.mode != "plain":
            single, cap = ranking, ranker.cap
            if how.mode == "mixture":
                alone = copy.copy(ranker)
                alone.cap = cap = PATH_CAP
                single = rank_each(alone, batch, contexts, samples, tokens)
            paths += as_paths(batch, samples, single, tokens, ranker.catalog, seed=sampling.seed, cap=cap)
    return Answers(np.concatenate(ranks) if ranks else np.zeros(0, np.int64), top_ids, paths)
