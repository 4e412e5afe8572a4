"""Searches over whole reasonings: none, one, their mixture, the best of them, or their lists merged.

Best of n and the mixture draw the very same reasonings, so that they can be compared by example.
"""

from collections.abc import Sequence

from anyo_rl.search.how import How
from anyo_rl.search.rounds import Judge, Search, Write
from anyo_rl.search.tree import ROOT, Ending, Tree, weighted


def at_once(tree: Tree, how: How) -> Search:
    """Answers without a reasoning."""
    return Ending((ROOT,), (1.0,))
    yield Judge(())  # a generator that never asks


def reasonings(tree: Tree, how: How) -> Search:
    """Draws n reasonings, or one greedy one, and answers by their mixture, weighted by their values if so told."""
    leaves = yield Write([ROOT] * how.own_sampling.n, whole=True)
    if not leaves:
        return Ending((ROOT,), (1.0,))
    if not how.values:
        return Ending(tuple(leaves), (1 / len(leaves),) * len(leaves))
    yield Judge(leaves)
    return weighted(leaves, [tree.value(leaf) for leaf in leaves])


def best_of_n(tree: Tree, how: How) -> Search:
    """Draws n reasonings, and answers after the one that is worth most; of equal ones the first."""
    leaves = yield Write([ROOT] * how.sampling.n, whole=True)
    yield Judge(leaves)
    return Ending((max(leaves, key=tree.value, default=ROOT),), (1.0,))


RRF_K = 60  # of Cormack, Clarke and Büttcher


def reciprocal_rank_fusion(
    lists: Sequence[Sequence[str]], weights: Sequence[float] | None = None, k: int = RRF_K
) -> list[tuple[str, float]]:
    """Items by Σ w / (k + rank) over the lists that have them, best first; of equal ones the one that was named first.

    Cormack, Clarke and Büttcher, *Reciprocal Rank Fusion outperforms Condorcet and individual rank learning methods*
    (SIGIR 2009).

    Args:
        lists: items, best first.
        weights: of the lists; 1 each if `None`.
        k: how little the first places count above the others, 0 or more.

    >>> reciprocal_rank_fusion([["a", "b"], ["b", "c"]], k=1)
    [('b', 0.8333333333333333), ('a', 0.5), ('c', 0.3333333333333333)]
    """
    scores: dict[str, float] = {}
    for items, weight in zip(lists, weights or [1.0] * len(lists), strict=True):
        for rank, item in enumerate(items, 1):
            scores[item] = scores.get(item, 0.0) + weight / (k + rank)
    return sorted(scores.items(), key=lambda one: -one[1])


def fused_rank(fused: Sequence[tuple[str, float]], target: str, last: int) -> int:
    """1-based rank of the target in a merged list; ties count against it, and what no list has is last.

    >>> merged = [("a", 0.5), ("b", 0.5), ("c", 0.1)]
    >>> [fused_rank(merged, item, last=9) for item in "abcz"]
    [2, 2, 3, 9]
    """
    own = dict(fused).get(target)
    return last if own is None else sum(score >= own for _, score in fused)
