"""A beam of partial reasonings: from each of the best b so far k next steps are drawn, and the best b of all go on.

Stepwise beam search as in Xie et al., *Self-Evaluation Guided Beam Search for Reasoning* (2023, arXiv 2305.00633),
with a value that asks no model to judge itself, and without their temperature: the best b are kept. Reasonings that
have ended keep their place among the b, so that the beam ends when all of it has.
"""

from collections.abc import Sequence

from anyo_rl.search.how import How
from anyo_rl.search.rounds import Judge, Search, Write
from anyo_rl.search.tree import ROOT, Ending, Tree, weighted


def best(nodes: Sequence[int], values: Sequence[float], b: int) -> list[int]:
    """The b nodes of the highest value; of equal ones those named first.

    >>> best([3, 5, 8], [0.2, 0.7, 0.7], 2)
    [5, 8]
    """
    order = sorted(range(len(nodes)), key=lambda place: -values[place])
    return [nodes[place] for place in order[:b]]


def ending_of(tree: Tree, leaves: Sequence[int], how: How) -> Ending:
    """The answer after reasonings: after the best, or their mixture weighted by value; at once where there is none."""
    if not leaves:
        return Ending((ROOT,), (1.0,))
    values = [tree.value(leaf) for leaf in leaves]
    if how.settings.final == "best":
        return Ending((best(leaves, values, 1)[0],), (1.0,))
    return weighted(leaves, values)


def turns(nodes: Sequence[int], k: int) -> list[int]:
    """Each node k times, by turns: where a budget ends, none has had two draws more than another."""
    return [node for _ in range(k) for node in nodes]


def step_beam(tree: Tree, how: How) -> Search:
    """The beam."""
    beam = [ROOT]
    while True:
        going = [node for node in beam if not tree.nodes[node].finished]
        # The first step has one state to be drawn from, and all draws go there.
        n_draws = how.expand if beam != [ROOT] else how.width * how.expand
        children = yield Write(turns(going, n_draws))
        if not children:
            return ending_of(tree, [node for node in beam if node != ROOT], how)
        yield Judge(children)
        done = [node for node in beam if tree.nodes[node].finished]
        # A state that the budget left without a child stays in the running as it is.
        parents = {tree.nodes[child].parent for child in children}
        left = [node for node in going if node not in parents and node != ROOT]
        running = [*done, *left, *children]
        beam = best(running, [tree.value(node) for node in running], how.width)
