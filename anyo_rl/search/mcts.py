"""Monte Carlo tree search over steps: UCT (Kocsis and Szepesvári 2006) with a value in place of rollouts.

A simulation goes down from the root by UCT to a state without children. The first time, k steps are drawn there and
valued; each child's value is backed up to the root, as a mean over visits. Departures: all k children of a state come
at once, so that a round asks for as much as it can; and a reasoning that has ended is visited again at no price, which
weighs its branch by what it is worth. The answer is the mixture over the leaves by visits, or comes after the best.
"""

import math
from collections.abc import Sequence

from anyo_rl.search.how import How
from anyo_rl.search.rounds import Judge, Search, Write
from anyo_rl.search.step_beam import best
from anyo_rl.search.tree import ROOT, Ending, Tree, weighted


def uct(total: float, visits: int, parent_visits: int, c: float) -> float:
    """Mean value and what is worth exploring: Q + c √(ln N / n); infinite where nobody was.

    >>> round(uct(1.5, 2, 8, 1.0), 3)
    1.77
    >>> uct(0.0, 0, 8, 1.0)
    inf
    """
    return math.inf if not visits else total / visits + c * math.sqrt(math.log(parent_visits) / visits)


def select(tree: Tree, c: float, closed: Sequence[int] = ()) -> int:
    """The leaf that UCT goes down to; of equal ones the first.

    Args:
        tree: with visits and totals.
        c: of `uct`.
        closed: states without children that nothing more can be drawn from.
    """
    children: dict[int, list[int]] = {}
    for number, one in enumerate(tree.nodes[1:], 1):
        children.setdefault(one.parent, []).append(number)
    node = ROOT
    while node in children:
        above = tree.nodes[node]

        def worth(child: int, n: int = above.visits) -> float:
            one = tree.nodes[child]
            return uct(one.total, one.visits, n, c)

        below = [child for child in children[node] if child not in closed] or children[node]
        node = max(below, key=worth)
    return node


def backup(tree: Tree, node: int, value: float) -> None:
    """Adds a visit and a value to a node and to all above it, the root included."""
    for number in [*tree.above(node), ROOT]:
        tree.nodes[number].visits += 1
        tree.nodes[number].total += value


def by_visits(tree: Tree, how: How) -> Ending:
    """The answer: over the n most visited leaves by their visits, reasonings that have ended if there are any."""
    parents = {one.parent for one in tree.nodes}
    leaves = [number for number in range(1, len(tree.nodes)) if number not in parents]
    leaves = [leaf for leaf in leaves if tree.nodes[leaf].finished] or leaves
    if not leaves:
        return Ending((ROOT,), (1.0,))
    if how.settings.final == "best":
        # By value, and of equal ones by visits.
        order = sorted(leaves, key=lambda leaf: (-tree.value(leaf), -tree.nodes[leaf].visits))
        return Ending((order[0],), (1.0,))
    visits = [float(tree.nodes[leaf].visits) for leaf in leaves]
    kept = best(leaves, visits, how.sampling.n)
    return weighted(kept, [float(tree.nodes[leaf].visits) for leaf in kept])


def mcts(tree: Tree, how: How) -> Search:
    """The search."""
    closed: list[int] = []
    for _ in range(how.simulations):
        leaf = select(tree, how.settings.exploration, closed)
        if tree.nodes[leaf].finished:
            backup(tree, leaf, tree.value(leaf))
            continue
        if leaf in closed:  # all of them are
            break
        children = yield Write([leaf] * how.expand)
        if not children:  # the budget has no room for a step here
            closed.append(leaf)
            continue
        yield Judge(children)
        for child in children:
            for _ in range(tree.nodes[child].draws):
                backup(tree, child, tree.value(child))
    return by_visits(tree, how)
