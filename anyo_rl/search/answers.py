"""How a teacher answers users: at once, after a reasoning, as a mixture over several, or after a search for the best.

`answer` is the one door: examples and a `How` in, and out come items, what the search found and what it cost; and the
ranks of targets, as far as these are known. No search sees a target: ranks are read off the final item distribution.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from anyo_rl.evidence.fusion import Engine
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.protocol import Ranking
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.paths import SampledPath
from anyo_rl.sampling.protocol import Sample, Sampler
from anyo_rl.sampling.ranked import as_paths, rank_each
from anyo_rl.search.final import Final, conclude, joined
from anyo_rl.search.how import LINE_BY_LINE, How, Mode, SearchMode
from anyo_rl.search.mcts import mcts
from anyo_rl.search.rounds import Explored, Explorer, Method
from anyo_rl.search.step_beam import step_beam
from anyo_rl.search.thoughts import tree_of_thoughts
from anyo_rl.search.tree import Ending, Node, Tree
from anyo_rl.search.values import State, value_of
from anyo_rl.search.whole import at_once, best_of_n, reasonings
from anyo_rl.teacher.tokens import Tokens

__all__ = [
    "Answers",
    "How",
    "Mode",
    "Recommendation",
    "answer",
    "answer_blindly",
    "answer_together",
    "ranked",
    "reasoned",
]

USERS_AT_ONCE = 256
PATH_CAP = 1000  # ranks after single paths of a mixture are told apart up to here; those that are reported all are
METHODS: dict[SearchMode, Method] = {
    "plain": at_once,
    "greedy": reasonings,
    "mixture": reasonings,
    "weighted_mixture": reasonings,
    "best_of_n": best_of_n,
    "rank_fusion": reasonings,
    "step_beam": step_beam,
    "tree": tree_of_thoughts,
    "mcts": mcts,
}


@dataclass(frozen=True)
class Recommendation:
    """What one user is answered, why, and what it cost.

    Attributes:
        item_ids_K: the best items, best first.
        scores_K: their log-probabilities under the final distribution; of rank fusion their summed 1/(60 + rank).
        steps: of the reasoning that weighs most, as people see them; of equal ones the first.
        tree: all that was written.
        ending: the nodes that are answered after, and their weights.
        n_tokens: tokens written.
        n_nodes: tree nodes of the catalog read, for values and for the answer; `None` where nobody counted.
        seconds: the time that the user's batch took, over its users.
    """

    item_ids_K: list[str]
    scores_K: list[float]
    steps: tuple[str, ...]
    tree: Tree
    ending: Ending
    n_tokens: int
    n_nodes: int | None
    seconds: float


@dataclass(frozen=True)
class Answers:
    """What a teacher, a baseline or an oracle answered to U users.

    Attributes:
        ranks_U: 1-based rank of each user's target; 0 where it is not known.
        top_ids_U_K: the best item ids of each user.
        paths: without what the caller knows better (policy, split, model); empty for answers without reasoning, or
            where none were to be kept.
        complete_U: whether no node budget cut the search for a rank short; `None` where there is no search.
        as_evidence_U_2: of answers with evidence, whether the first item and the first ten are the evidence's own.
        evidence_ranks_U: of these, the ranks by the evidence alone.
        found_U: items with scores, trees and costs, where they were to be kept.
    """

    ranks_U: np.ndarray
    top_ids_U_K: list[list[str]]
    paths: list[SampledPath]
    complete_U: np.ndarray | None = None
    as_evidence_U_2: np.ndarray | None = None
    evidence_ranks_U: np.ndarray | None = None
    found_U: list[Recommendation] | None = None


def answer_together(rows: Sequence[Row], ranker: Engine, sampler: Sampler, tokens: Tokens, how: How) -> Answers:
    """`answer`, by all processes: each asks a share of the users, and all have the answers of one process.

    Draws belong to examples, so that it does not matter who samples them.
    """
    state = PartialState()
    own = answer(rows[state.process_index :: state.num_processes], ranker, sampler, tokens, how)
    return _gathered(own, rows)


def answer_blindly(rows: Sequence[Row], ranker: Engine, sampler: Sampler, tokens: Tokens, how: How) -> Answers:
    """Answers without the targets, and then where the answers put these; by all processes.

    So costs and times are those of a recommendation, without what it takes to rank a target.
    """
    state = PartialState()
    own = rows[state.process_index :: state.num_processes]
    blind = [replace(row, target_id="") for row in own]
    found = answer(blind, ranker, sampler, tokens, replace(how, keep_found=True)).found_U
    return _gathered(ranked(own, found or [], ranker, tokens, how), rows)


def _gathered(own: Answers, rows: Sequence[Row]) -> Answers:
    """What all processes have, each of a share of the users, for all of them."""
    if PartialState().num_processes == 1:
        return own
    return interleaved(gather_object([own]), [row.example_id for row in rows])


def interleaved(shares: Sequence[Answers], example_ids: Sequence[str]) -> Answers:
    """Answers of processes that took turns at the users, in the order of the users."""
    n = len(example_ids)
    owner = [(user % len(shares), user // len(shares)) for user in range(n)]

    def column(name: str) -> np.ndarray | None:
        parts = [(getattr(share, name), len(share.ranks_U)) for share in shares]
        if all(part is None for part, length in parts if length):
            return None
        return np.array([parts[share][0][at] for share, at in owner])

    paths: dict[str, list[SampledPath]] = {}
    for share in shares:
        for path in share.paths:
            paths.setdefault(path.example_id, []).append(path)
    found = [share.found_U for share in shares]
    ranks, complete = column("ranks_U"), column("complete_U")
    return Answers(
        np.zeros(0, np.int64) if ranks is None else ranks,
        [shares[share].top_ids_U_K[at] for share, at in owner],
        [path for example in example_ids for path in paths.get(example, ())],
        np.ones(n, bool) if complete is None else complete,
        column("as_evidence_U_2"),
        column("evidence_ranks_U"),
        None if any(one is None for one in found) else [(found[share] or [])[at] for share, at in owner],
    )


Asked = tuple[Sequence[Row], list[list[int]], list[list[Sample]], list[list[list[int]]]]


def reasoned(rows: Sequence[Row], sampler: Sampler, tokens: Tokens, how: How) -> Iterator[Asked]:
    """Users batch by batch: their rows, prompts as token ids, reasonings (one or more each), and marked contexts.

    Args:
        rows: of the users.
        sampler: of the teacher.
        tokens: its tokenizer and marker.
        how: plain, greedy or a mixture without weights, which value nothing on the way.
    """
    explorer = Explorer(sampler, tokens, how)
    for start in range(0, len(rows), USERS_AT_ONCE):
        batch = rows[start : start + USERS_AT_ONCE]
        explored = explore(batch, explorer)
        samples = [[one.tree.sample(leaf) for leaf in one.ending.leaves] for one in explored]
        marked = [[one.tree.asked_at(leaf, tokens) for leaf in one.ending.leaves] for one in explored]
        yield batch, [one.tree.context for one in explored], samples, marked


def explore(rows: Sequence[Row], explorer: Explorer) -> list[Explored]:
    """Searches for some users at once; their targets are taken away before."""
    states, tokens, mode = [], explorer.tokens, explorer.how.mode
    for row in rows:
        context = tokens.context_ids(row.prompt)
        ids = tokens.reasoning_ids([], context) if mode == "plain" else []
        ids = tokens.opening_ids(context) if mode in LINE_BY_LINE else ids
        root = Node(-1, Sample(tuple(ids), None, "stop"), finished=mode == "plain", whole=mode == "plain")
        states.append(State(replace(row, target_id=""), Tree(row.example_id, context, [root])))
    return explorer.run(states, METHODS[mode])


def answer(rows: Sequence[Row], ranker: Engine, sampler: Sampler, tokens: Tokens, how: How) -> Answers:
    """Lets a teacher answer users.

    Args:
        rows: of U users, each with an `example_id` of its own; targets need not be known.
        ranker: the engine on the teacher's weights, by itself or fused with evidence, which keeps no paths.
        sampler: a sampler on the same weights.
        tokens: the teacher's tokenizer and marker.
        how: by which search.

    Raises:
        UsageError: the search needs what is not there: evidence, log-probabilities, a sampler that writes lines.
    """
    explorer = Explorer(sampler, tokens, how, value_of(how, ranker, tokens))
    finals: list[Final] = []
    paths: list[SampledPath] = []
    found: list[Recommendation] = []
    bar = tqdm(total=len(rows), desc="asking", unit="user", leave=False, delay=2.0)
    for start in range(0, len(rows), USERS_AT_ONCE):
        batch, began = rows[start : start + USERS_AT_ONCE], time.perf_counter()
        explored = explore(batch, explorer)
        final = conclude(batch, explored, ranker, tokens, how, how.top_k)
        seconds = (time.perf_counter() - began) / len(batch)
        finals.append(final)
        bar.update(len(batch))
        if how.keep_found:
            found += _recommendations(explored, final, seconds)
        paths += _paths(batch, explored, final, ranker, tokens, how)
    bar.close()
    return _answers(finals, paths, found if how.keep_found else None)


def ranked(rows: Sequence[Row], found: Sequence[Recommendation], ranker: Engine, tokens: Tokens, how: How) -> Answers:
    """Ranks targets under what was answered before without them.

    Args:
        rows: of the same users, with targets.
        found: what they were answered.
        ranker: as they were answered by.
        tokens: likewise.
        how: likewise.
    """
    finals: list[Final] = []
    paths: list[SampledPath] = []
    for start in range(0, len(rows), USERS_AT_ONCE):
        batch, part = rows[start : start + USERS_AT_ONCE], found[start : start + USERS_AT_ONCE]
        explored = [Explored(one.tree, one.ending) for one in part]
        final = conclude(batch, explored, ranker, tokens, how, 1)
        finals.append(replace(final, top_ids_U_K=[one.item_ids_K for one in part]))
        paths += _paths(batch, explored, final, ranker, tokens, how)
    return _answers(finals, paths, list(found))


def _answers(finals: Sequence[Final], paths: list[SampledPath], found: list[Recommendation] | None) -> Answers:
    if not finals:
        return Answers(np.zeros(0, np.int64), [], [], np.zeros(0, bool), found_U=found)
    whole = joined(finals)
    beside = (whole.as_evidence_U_2, whole.evidence_ranks_U)
    return Answers(whole.ranks_U, whole.top_ids_U_K, paths, whole.complete_U, *beside, found_U=found)


def _recommendations(explored: Sequence[Explored], final: Final, seconds: float) -> list[Recommendation]:
    found = []
    for user, one in enumerate(explored):
        n_nodes = None if final.n_nodes_U is None else one.tree.n_nodes + int(final.n_nodes_U[user])
        steps = one.tree.steps(one.ending.leaves[0])
        items = (final.top_ids_U_K[user], final.top_scores_U_K[user])
        found.append(Recommendation(*items, steps, one.tree, one.ending, one.tree.n_tokens, n_nodes, seconds))
    return found


def _paths(
    batch: Sequence[Row], explored: Sequence[Explored], final: Final, ranker: Engine, tokens: Tokens, how: How
) -> list[SampledPath]:
    """The reasonings that are answered after as paths, each ranked alone where it is not the only one."""
    known = all(row.target_id for row in batch)
    if how.mode == "plain" or not how.keep_paths or not known or not isinstance(ranker, LikelihoodRanker):
        return []
    samples = [[one.tree.sample(leaf) for leaf in one.ending.leaves] for one in explored]
    alone = ranker
    if all(len(of_user) == 1 for of_user in samples) and how.mode not in ("mixture", "rank_fusion"):
        single = Ranking(final.ranks_U, final.top_ids_U_K, final.top_scores_U_K)
    else:
        alone = ranker.within(ranker.node_budget)
        alone.cap = PATH_CAP
        single = rank_each(alone, batch, [one.tree.context for one in explored], samples, tokens)
    return as_paths(batch, samples, single, tokens, ranker.catalog, seed=how.own_sampling.seed, ranker=alone)
