"""How a teacher answers held-out users: at once, after one greedy reasoning, or as a mixture over sampled paths."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from anyo_rl.evidence.fusion import Engine, FusedRanking
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.order import Order
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
        keep_paths: whether answers carry the paths; of a mixture each is then ranked alone, which costs as much again.
    """

    mode: Mode
    sampling: Sampling = Sampling(n=8)
    top_k: int = 20
    keep_paths: bool = True

    @property
    def own_sampling(self) -> Sampling:
        """Of the mode."""
        return self.sampling if self.mode == "mixture" else self.sampling.greedy()


@dataclass(frozen=True)
class Answers:
    """What a teacher, a baseline or an oracle answered to U users.

    Attributes:
        ranks_U: 1-based rank of each user's target.
        top_ids_U_K: the best item ids of each user.
        paths: without what the caller knows better (policy, split, model); empty for answers without reasoning, or
            where none were to be kept.
        complete_U: whether no node budget cut the search for a rank short; `None` where there is no search.
        as_evidence_U_2: of answers with evidence, whether the first item and the first ten are the evidence's own.
        evidence_ranks_U: of these, the ranks by the evidence alone.
        judged_U: of teachers that say yes or no, p(yes) of the items that each user was asked about, and whether yes
            is right.
        orders: how the orders that were written were read, of all prompts.
        as_it_came: of each list that was asked about, whether it stayed in its order.
    """

    ranks_U: np.ndarray
    top_ids_U_K: list[list[str]]
    paths: list[SampledPath]
    complete_U: np.ndarray | None = None
    as_evidence_U_2: np.ndarray | None = None
    evidence_ranks_U: np.ndarray | None = None
    judged_U: list[list[tuple[float, bool]]] | None = None
    orders: Sequence[Order] = ()
    as_it_came: Sequence[bool] = ()


def answer_together(rows: Sequence[Row], ranker: Engine, sampler: Sampler, tokens: Tokens, how: How) -> Answers:
    """`answer`, by all processes: each asks a share of the users, and all have the answers of one process.

    Draws belong to examples, so that it does not matter who samples them.
    """
    return shared_out(len(rows), lambda part: answer(rows[part], ranker, sampler, tokens, how))


def shared_out(n_users: int, ask: Callable[[slice], Answers]) -> Answers:
    """Answers of all processes: each asks every so-many-th user, and all have the answers of one process.

    Args:
        n_users: how many there are.
        ask: answers some of them.
    """
    state = PartialState()
    own = ask(slice(state.process_index, None, state.num_processes))
    if state.num_processes == 1:
        return own
    shares: list[Answers] = gather_object([own])
    ranks_U, complete_U = np.zeros(n_users, np.int64), np.zeros(n_users, bool)
    fused = any(share.as_evidence_U_2 is not None for share in shares)
    same_U_2, evidence_U = np.zeros((n_users, 2), bool), np.zeros(n_users, np.int64)
    top_ids_U_K: list[list[str]] = [[] for _ in range(n_users)]
    paths_U: list[list[SampledPath]] = [[] for _ in range(n_users)]
    judged_U: list[list[tuple[float, bool]]] = [[] for _ in range(n_users)]
    for place, share in enumerate(shares):
        users = range(place, n_users, len(shares))
        n_paths = len(share.paths) // max(1, len(users))
        for at, user in enumerate(users):
            ranks_U[user], top_ids_U_K[user] = share.ranks_U[at], share.top_ids_U_K[at]
            complete_U[user] = share.complete_U is None or share.complete_U[at]
            if share.as_evidence_U_2 is not None and share.evidence_ranks_U is not None:
                same_U_2[user], evidence_U[user] = share.as_evidence_U_2[at], share.evidence_ranks_U[at]
            paths_U[user] = share.paths[at * n_paths : (at + 1) * n_paths]
            if share.judged_U is not None:
                judged_U[user] = share.judged_U[at]
    paths = [path for paths in paths_U for path in paths]
    return Answers(
        ranks_U,
        top_ids_U_K,
        paths,
        complete_U,
        as_evidence_U_2=same_U_2 if fused else None,
        evidence_ranks_U=evidence_U if fused else None,
        judged_U=judged_U if any(share.judged_U is not None for share in shares) else None,
        orders=[order for share in shares for order in share.orders],
        as_it_came=[one for share in shares for one in share.as_it_came],
    )


Asked = tuple[Sequence[Row], list[list[int]], list[list[Sample]], list[list[list[int]]]]


def reasoned(rows: Sequence[Row], sampler: Sampler, tokens: Tokens, how: How) -> Iterator[Asked]:
    """Users batch by batch: their rows, prompts as token ids, reasonings (one or more each), and marked contexts."""
    for start in range(0, len(rows), USERS_AT_ONCE):
        batch = rows[start : start + USERS_AT_ONCE]
        contexts = [tokens.context_ids(row.prompt) for row in batch]
        if how.mode == "plain":
            samples = [[Sample(tuple(tokens.reasoning_ids([], context)), None, "stop")] for context in contexts]
        else:
            samples = sampler.sample(contexts, how.own_sampling, keys_B=[row.example_id for row in batch])
        marked = [
            [tokens.marked_context(context, sample.token_ids) for sample in of_user]
            for context, of_user in zip(contexts, samples, strict=True)
        ]
        yield batch, contexts, samples, marked


def answer(rows: Sequence[Row], ranker: Engine, sampler: Sampler, tokens: Tokens, how: How) -> Answers:
    """Lets a teacher answer users.

    Args:
        rows: of U users.
        ranker: the engine on the teacher's weights, by itself or fused with evidence, which keeps no paths.
        sampler: a sampler on the same weights.
        tokens: the teacher's tokenizer and marker.
        how: with or without reasoning.
    """
    ranks, complete, top_ids, paths, same, evidence = [], [], [], [], [], []
    bar = tqdm(total=len(rows), desc="asking", unit="user", leave=False, delay=2.0)
    for batch, contexts, samples, marked in reasoned(rows, sampler, tokens, how):
        targets = [row.target_id for row in batch]
        excluded = [row.excluded for row in batch]
        ids = [row.example_id for row in batch]
        ranking = ranker.rank_mixture(marked, targets, top_k=how.top_k, excluded_B=excluded, example_ids_B=ids)
        ranks.append(ranking.ranks_B)
        assert ranking.complete_B is not None, "the engine tells"
        complete.append(ranking.complete_B)
        top_ids += ranking.top_ids_B_K
        if isinstance(ranking, FusedRanking):
            same.append(ranking.as_evidence_B_2)
            evidence.append(ranking.evidence_ranks_B)
        bar.update(len(batch))
        if how.mode != "plain" and how.keep_paths and isinstance(ranker, LikelihoodRanker):
            single, alone = ranking, ranker
            if how.mode == "mixture":
                alone = copy.copy(ranker)
                alone.cap = PATH_CAP
                single = rank_each(alone, batch, contexts, samples, tokens)
            paths += as_paths(batch, samples, single, tokens, ranker.catalog, seed=how.own_sampling.seed, ranker=alone)
    bar.close()
    if not ranks:
        return Answers(np.zeros(0, np.int64), [], [], np.zeros(0, bool))
    beside = (np.concatenate(same), np.concatenate(evidence)) if same else (None, None)
    return Answers(np.concatenate(ranks), top_ids, paths, np.concatenate(complete), *beside)
