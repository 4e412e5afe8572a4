"""Tree of thoughts (Yao et al. 2023, arXiv 2305.10601): propose steps, value them, go on, and turn back from bad ones.

Steps are sampled from the teacher (the paper's independent proposals), and valued by `anyo_rl.search.values` in place
of a prompt that asks a model. `breadth` goes level by level with the best b of each; `depth` goes into the best child
first, and turns back where a step is worth less than `least_value` of the state before it, or where a reasoning ended,
until n reasonings ended or a budget did. With breadth it is a step beam that also drops such steps.
"""

from collections.abc import Sequence

from anyo_rl.search.how import How
from anyo_rl.search.rounds import Judge, Search, Write
from anyo_rl.search.step_beam import best, ending_of, turns
from anyo_rl.search.tree import ROOT, Tree


def promising(tree: Tree, children: Sequence[int], least_value: float) -> list[int]:
    """The children that are worth at least a share of their parent; all of them where the parent has no value."""
    return [
        child for child in children if tree.value(child) >= least_value * tree.value(max(0, tree.nodes[child].parent))
    ]


def tree_of_thoughts(tree: Tree, how: How) -> Search:
    """The tree, in the order in which it is written."""
    yield Judge([ROOT])
    settings, waiting = how.settings, [ROOT]
    ended: list[int] = []
    left_alone: list[int] = []  # what the budget ended on
    while waiting and len(ended) < how.sampling.n:
        level = waiting if settings.order == "breadth" else [waiting.pop()]
        n_draws = how.expand if level != [ROOT] else how.width * how.expand
        children = yield Write(turns(level, n_draws))
        yield Judge(children)
        if not children:
            left_alone += [node for node in [*level, *waiting] if node != ROOT]
            break
        good = promising(tree, children, settings.least_value)
        good = best(good, [tree.value(child) for child in good], how.width)
        ended += [child for child in good if tree.nodes[child].finished]
        going = [child for child in good if not tree.nodes[child].finished]
        # Depth first: the best of the newest steps is the last, and is taken next.
        waiting = going if settings.order == "breadth" else [*waiting, *going[::-1]]
    return ending_of(tree, ended or best(left_alone, [tree.value(node) for node in left_alone], how.width), how)
