"""What a reasoning is worth so far, read off without its target: the engine's certainty, a PRM, evidence, likelihood.

- `certainty`: the largest probability of an item if the teacher had to answer now; `entropy`: 1 less the entropy of
  its item distribution, as far as the likeliest items tell, over the largest that it can be. Both mean something only
  for a teacher that was sometimes trained to answer early, and only as far as it is right where it is sure.
- `prm`: the score of a process reward model, which learned from targets and is not told this one.
- `evidence`: how far the teacher's item distribution and the evidence's agree: Bhattacharyya's coefficient.
- `likelihood`: the geometric mean of the probabilities of its tokens; what was drawn by them is drawn to them again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from anyo_rl.evidence.candidates import NONE
from anyo_rl.evidence.fusion import Engine, FusedRanker
from anyo_rl.ranking.engine.best_first import Goal
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.protocol import competing_items
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.settings import UsageError
from anyo_rl.search.how import How
from anyo_rl.search.tree import ROOT, Tree
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.values.prm import Prm
from anyo_rl.values.prm_vllm import VllmPrm

ENTROPY_ITEMS = 10  # looked at by `entropy`


class State(NamedTuple):
    """A node of a user's tree, and the user's row; nothing here looks at its target."""

    row: Row
    tree: Tree
    node: int = ROOT

    def at(self, node: int) -> "State":
        """Another node of the same tree."""
        return State(self.row, self.tree, node)


class Valued(NamedTuple):
    """Values in [0, 1] of B states, and how many tree nodes of the catalog were read for each."""

    values_B: NDArray[np.float64]
    n_nodes_B: NDArray[np.int64]


class Value(Protocol):
    """Says what states are worth. Values do not depend on which states come together.

    Attributes:
        most_nodes: tree nodes of the catalog read for one state, at most.
    """

    @property
    def most_nodes(self) -> int:
        """See the class."""
        ...

    def __call__(self, states: Sequence[State]) -> Valued:
        """Values states."""
        ...


def certainty(log_p_K: Sequence[float]) -> float:
    """The largest probability of an item.

    >>> round(certainty([-0.5, -1.5]), 3), certainty([])
    (0.607, 0.0)
    """
    return float(min(1.0, np.exp(log_p_K[0]))) if len(log_p_K) else 0.0


def sharpness(log_p_K: Sequence[float], n_items: int) -> float:
    """1 − H / log N, H being the largest entropy that the item distribution may have, given its likeliest items.

    Args:
        log_p_K: log-probabilities of the likeliest items; what is left is taken to be spread evenly over the others.
        n_items: N, of the catalog.

    >>> sharpness([0.0], 4), sharpness(np.log([0.5, 0.25]), 4), sharpness([], 4)
    (1.0, 0.125, 0.0)
    """
    p_K = np.exp(np.array(log_p_K, dtype=np.float64))
    n_others = n_items - len(p_K)
    left = max(0.0, 1.0 - float(p_K.sum())) / max(n_others, 1)
    entropy = -(p_K * np.log(np.maximum(p_K, 1e-300))).sum()
    entropy -= n_others * left * math.log(left) if left > 0 else 0.0
    return float(np.clip(1.0 - entropy / math.log(max(n_items, 2)), 0.0, 1.0))


def agreement(log_p_K: NDArray[np.floating], log_scores_K: NDArray[np.floating]) -> float:
    """Bhattacharyya's coefficient Σ √(p q) of the teacher's and the evidence's distribution over the candidates.

    Args:
        log_p_K: the teacher's, among the whole catalog; what it gives to other items agrees with nothing.
        log_scores_K: the evidence's, but for a constant; -inf where there is no candidate.

    >>> round(agreement(np.log([0.5, 0.3]), np.log([0.5, 0.5])), 3)
    0.887
    """
    there_K = np.isfinite(log_scores_K)
    if not there_K.any():
        return 0.0
    log_q_K = log_scores_K[there_K] - np.logaddexp.reduce(log_scores_K[there_K])
    return float(min(1.0, np.exp((log_p_K[there_K] + log_q_K) / 2).sum()))


@dataclass(frozen=True)
class Certainty:
    """How sure the teacher is of its answer, if it had to answer now.

    Attributes:
        ranker: the engine on the teacher's weights.
        tokens: the teacher's tokenizer and marker.
        most_nodes: tree nodes read for one state, at most; what is not found then counts as spread out.
        entropy: `sharpness` in place of `certainty`.
    """

    ranker: LikelihoodRanker
    tokens: Tokens
    most_nodes: int = 64
    entropy: bool = False

    def __call__(self, states: Sequence[State]) -> Valued:
        """See `Value`."""
        index = self.ranker.catalog.index
        goals = [Goal(None, competing_items(index, None, state.row.excluded)) for state in states]
        contexts = [[state.tree.asked_at(state.node, self.tokens)] for state in states]
        found = self.ranker.within(self.most_nodes).search(contexts, goals, ENTROPY_ITEMS if self.entropy else 1)
        tops = [[log_p for _, log_p in one.top] for one in found]
        values = [sharpness(top, len(index)) if self.entropy else certainty(top) for top in tops]
        return Valued(np.array(values), np.array([one.n_nodes for one in found]))


@dataclass(frozen=True)
class PrmScore:
    """The score of a process reward model after the last step.

    Attributes:
        prm: of a teacher with the same tokenizer.
        tokens: the teacher's tokenizer and marker.
        most_nodes: none is read.
    """

    prm: Prm | VllmPrm
    tokens: Tokens
    most_nodes: int = 0

    def __call__(self, states: Sequence[State]) -> Valued:
        """See `Value`."""
        written = [state.tree.reasoning(state.node) for state in states]
        self.prm.check_texts(written, [self.tokens.decode(ids) for ids in written])
        scores = self.prm.scores([state.tree.context for state in states], written)
        return Valued(np.array([float(one[-1]) for one in scores]), np.zeros(len(states), np.int64))


@dataclass(frozen=True)
class Agreement:
    """How far teacher and evidence agree, if the teacher had to answer now.

    Attributes:
        ranker: teacher and evidence.
        tokens: the teacher's tokenizer and marker.
        most_nodes: tree nodes of all candidates, which are read to the end.
    """

    ranker: FusedRanker
    tokens: Tokens
    most_nodes: int

    def __call__(self, states: Sequence[State]) -> Valued:
        """See `Value`."""
        ids = [state.row.example_id for state in states]
        candidates_B_K = np.array(self.ranker.evidence.candidates(ids))
        log_scores_B_K = np.array(self.ranker.evidence.log_scores(ids))
        for row, state in enumerate(states):
            gone = np.isin(candidates_B_K[row], self.ranker.catalog.known(state.row.excluded))
            candidates_B_K[row, gone], log_scores_B_K[row, gone] = NONE, -np.inf
        contexts = [[state.tree.asked_at(state.node, self.tokens)] for state in states]
        log_p_B_K = self.ranker.log_probs(contexts, candidates_B_K)[:, 0]
        values = [agreement(*both) for both in zip(log_p_B_K, log_scores_B_K, strict=True)]
        return Valued(np.array(values), np.full(len(states), self.most_nodes))


@dataclass(frozen=True)
class Likelihood:
    """The geometric mean of the probabilities of a reasoning's tokens; 1 where none was written.

    Attributes:
        most_nodes: none is read.
    """

    most_nodes: int = 0

    def __call__(self, states: Sequence[State]) -> Valued:
        """See `Value`."""
        found = [state.tree.sample(state.node) if state.node != ROOT else None for state in states]
        if any(one is not None and one.log_probs is None for one in found):
            raise UsageError("score likelihood needs samples with log-probabilities: make the sampler with them")
        values = [float(np.exp(np.mean(one.log_probs))) if one and one.log_probs else 1.0 for one in found]
        return Valued(np.array(values), np.zeros(len(states), np.int64))


def value_of(how: How, ranker: Engine, tokens: Tokens) -> Value | None:
    """What values reasonings in a search; `None` where it does not ask.

    Raises:
        UsageError: evidence is asked for, and there is none.
    """
    settings, engine = how.settings, ranker.ranker if isinstance(ranker, FusedRanker) else ranker
    if not how.values:
        return None
    if settings.prm is not None:
        return PrmScore(settings.prm, tokens)
    if settings.score == "likelihood":
        return Likelihood()
    if not isinstance(engine, LikelihoodRanker):
        raise UsageError(f"score {settings.score} reads answers off, and this ranker ranks what was written")
    if settings.score == "evidence":
        if not isinstance(ranker, FusedRanker):
            raise UsageError("score evidence needs evidence: name the folder of recipes/rank_evidence.py (--evidence)")
        tree = engine.catalog.tree
        n_candidates = ranker.evidence.candidates([]).shape[1]
        return Agreement(ranker, tokens, min(tree.n_nodes, n_candidates * int(tree.depth.max())))
    tree = engine.catalog.tree
    first = int(tree.depth[tree.chain_end[0]])  # the first choice is read in any case
    return Certainty(engine, tokens, max(settings.value_nodes, first), settings.score == "entropy")
