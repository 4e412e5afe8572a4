"""Each method by hand: what is written is a script, and what it is worth stands beside it."""

import math

import pytest

from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sample, Sampling
from anyo_rl.search.how import How, Settings
from anyo_rl.search.mcts import backup, by_visits, mcts, select, uct
from anyo_rl.search.rounds import Judge, Write
from anyo_rl.search.step_beam import best, step_beam, turns
from anyo_rl.search.thoughts import promising, tree_of_thoughts
from anyo_rl.search.tree import ROOT, Node, Tree, weighted
from anyo_rl.search.whole import at_once, best_of_n, fused_rank, reasonings, reciprocal_rank_fusion

# Name of a node → its value, and whether its reasoning has ended. Draws beyond those named here write nothing new.
SCRIPT = {
    "0": (0.5, False),
    "1": (0.4, False),
    "0.0": (0.2, True),
    "0.1": (0.1, True),
    "1.0": (0.9, False),
    "1.1": (0.45, True),
    "1.0.0": (0.8, True),
    "1.0.1": (0.3, True),
}


def play(method, how, script=SCRIPT, most_draws=10**6):
    """Carries out a search by a script; its tree, ending, and what was asked round by round."""
    tree = Tree("u:1", [1], [Node(-1, Sample((), None, "stop"), value=None)])
    search, asked, answer = method(tree, how), [], None
    while True:
        try:
            ask = next(search) if answer is None else search.send(answer)
        except StopIteration as done:
            return tree, done.value, asked
        if isinstance(ask, Judge):
            for node in ask.nodes:
                tree.nodes[node].value = script[tree.nodes[node].name][0] if node != ROOT else 0.0
            answer = list(ask.nodes)
            continue
        assert isinstance(ask, Write)
        asked.append([tree.nodes[node].name for node in ask.nodes])
        answer = []
        for node in ask.nodes[:most_draws]:
            number = tree.asked.get(node, 0)
            tree.asked[node] = number + 1
            name = f"{tree.nodes[node].name}.{number}".lstrip(".")
            most_draws -= 1
            if name in script and not tree.nodes[node].finished:
                tree.nodes.append(Node(node, Sample((len(tree.nodes),), None, "stop"), script[name][1], name=name))
                answer.append(len(tree.nodes) - 1)


def names(tree, ending):
    return [tree.nodes[leaf].name for leaf in ending.leaves]


def how(mode, n=4, **settings):
    return How(mode, Sampling(n=n, max_new_tokens=9), settings=Settings(**settings))


def test_a_beam_keeps_the_best_of_all_that_is_in_the_running():
    # Two levels: .5 and .4; then .9 (going on), .45, .2, .1; then .8 and .3. The ended .45 keeps its place.
    tree, ending, asked = play(step_beam, how("step_beam", width=2, expand=2))
    assert asked == [["", "", "", ""], ["0", "1", "0", "1"], ["1.0", "1.0"], []]
    assert names(tree, ending) == ["1.0.0", "1.1"]
    assert ending.weights == pytest.approx((0.8 / 1.25, 0.45 / 1.25))
    _, ending, _ = play(step_beam, how("step_beam", width=2, expand=2, final="best"))
    assert ending.weights == (1.0,)
    # A beam of one is greedy, and misses what looked worse at first.
    tree, ending, _ = play(step_beam, how("step_beam", width=1, expand=2))
    assert names(tree, ending) == ["0.0"]


def test_a_beam_without_a_budget_answers_at_once_and_one_cut_short_where_it_stands():
    tree, ending, _ = play(step_beam, how("step_beam"), most_draws=0)
    assert ending.leaves == (ROOT,)
    tree, ending, _ = play(step_beam, how("step_beam", width=2, expand=2), most_draws=4)
    assert names(tree, ending) == ["0", "1"]


def test_depth_first_goes_into_the_best_step_and_turns_back():
    # Into "0" (.5), whose steps are worth less than half of it but for none: back to "1", down to "1.0" and its best.
    tree, ending, asked = play(tree_of_thoughts, how("tree", n=2, width=2, expand=2, order="depth", least_value=0.5))
    assert asked == [["", "", "", ""], ["0", "0"], ["1", "1"], ["1.0", "1.0"]]
    assert names(tree, ending) == ["1.0.0", "1.1"]  # 0.0 and 0.1 were dropped; 1.0.1 too, being under .45
    # Where nothing is turned back from, the first branch is enough.
    tree, ending, asked = play(tree_of_thoughts, how("tree", n=2, width=2, expand=2, order="depth", least_value=0.0))
    assert asked == [["", "", "", ""], ["0", "0"]]
    assert names(tree, ending) == ["0.0", "0.1"]


def test_breadth_first_goes_level_by_level():
    tree, ending, asked = play(tree_of_thoughts, how("tree", width=2, expand=2, order="breadth", least_value=0.0))
    assert asked == [["", "", "", ""], ["0", "1", "0", "1"], ["1.0", "1.0"]]
    assert names(tree, ending) == ["1.0.0", "1.1", "1.0.1"]


def test_a_tree_cut_short_answers_after_what_it_has():
    tree, ending, _ = play(tree_of_thoughts, how("tree", width=2, expand=2), most_draws=4)
    assert names(tree, ending) == ["0", "1"]
    assert play(tree_of_thoughts, how("tree"), most_draws=0)[1].leaves == (ROOT,)


def test_promising_by_hand():
    tree = Tree("u", [1], [Node(-1, Sample((), None, "stop"), value=0.6)])
    tree.nodes += [Node(0, Sample((i,), None, "stop"), value=value) for i, value in enumerate((0.29, 0.3, 0.9))]
    assert promising(tree, [1, 2, 3], 0.5) == [2, 3]


def test_uct_backup_and_selection_by_hand():
    tree = Tree("u", [1], [Node(-1, Sample((), None, "stop"))])
    tree.nodes += [Node(0, Sample((i,), None, "stop")) for i in range(2)] + [Node(1, Sample((9,), None, "stop"))]
    backup(tree, 1, 0.5)
    backup(tree, 2, 0.9)
    backup(tree, 3, 0.3)
    assert [(node.visits, round(node.total, 3)) for node in tree.nodes] == [(3, 1.7), (2, 0.8), (1, 0.9), (1, 0.3)]
    # .4 + c √(ln 3 / 2) = .4 + .741 c against .9 + 1.048 c: the second, whatever c is.
    assert select(tree, 0.0) == select(tree, 5.0) == 2
    assert uct(0.8, 2, 3, 1.0) == pytest.approx(0.4 + math.sqrt(math.log(3) / 2))
    assert select(tree, 0.0, closed=[2]) == 3  # a state that nothing can be drawn from is passed by


def test_mcts_by_hand():
    # Root's draws: .5 and .4, two more write nothing. c = 0 is greedy: "0" (.5) comes first; its steps .2 and .1 bring
    # it to (.5 + .2 + .1) / 3 = .267, below .4, so "1" is next: .9 and .45 make it .583.
    settings = {"width": 2, "expand": 2, "exploration": 0.0, "simulations": 3}
    tree, ending, asked = play(mcts, how("mcts", **settings))
    assert asked == [["", ""], ["0", "0"], ["1", "1"]]
    visits = {node.name: node.visits for node in tree.nodes}
    assert visits == {"": 6, "0": 3, "1": 3, "0.0": 1, "0.1": 1, "1.0": 1, "1.1": 1}
    assert tree.nodes[ROOT].total == pytest.approx(0.5 + 0.4 + 0.2 + 0.1 + 0.9 + 0.45)
    assert set(names(tree, ending)) == {"0.0", "0.1", "1.1"}  # of those that have ended, each was visited once
    # With more simulations: "1.0" (.9) is expanded, and then "1.0.0" (.8) is visited again at no price.
    tree, ending, asked = play(mcts, how("mcts", **settings | {"simulations": 6}))
    assert asked[3:] == [["1.0", "1.0"]]
    assert {node.name: node.visits for node in tree.nodes}["1.0.0"] == 3
    assert names(tree, ending)[0] == "1.0.0"
    assert sum(ending.weights) == pytest.approx(1)
    _, ending, _ = play(mcts, how("mcts", **settings | {"simulations": 6, "final": "best"}))
    assert ending.weights == (1.0,)


def test_mcts_ends_where_the_budget_does():
    tree, ending, asked = play(mcts, how("mcts", simulations=50), most_draws=0)
    assert ending.leaves == (ROOT,)
    assert len(asked) == 1
    tree, ending, asked = play(mcts, how("mcts", width=2, expand=2, simulations=50), most_draws=2)
    assert set(names(tree, ending)) == {"0", "1"}
    assert len(asked) <= 4


def test_leaves_that_have_not_ended_count_where_none_has():
    tree = Tree("u", [1], [Node(-1, Sample((), None, "stop"))])
    tree.nodes += [Node(0, Sample((i,), None, "stop"), visits=i) for i in (1, 3)]
    assert by_visits(tree, how("mcts")).weights == (0.75, 0.25)


def test_whole_reasonings():
    script = {"0": (0.2, True), "1": (0.7, True), "2": (0.7, True)}
    tree, ending, asked = play(best_of_n, how("best_of_n", n=3), script)
    assert (asked, names(tree, ending)) == ([["", "", ""]], ["1"])
    tree, ending, _ = play(reasonings, how("mixture", n=3), script)
    assert ending.weights == (1 / 3,) * 3
    tree, ending, _ = play(reasonings, how("weighted_mixture", n=3), script)
    assert names(tree, ending) == ["1", "2", "0"]
    assert ending.weights == pytest.approx((0.4375, 0.4375, 0.125))
    assert play(at_once, how("plain"))[1].leaves == (ROOT,)
    for method in (best_of_n, reasonings):
        assert play(method, how("best_of_n"), script, most_draws=0)[1].leaves == (ROOT,)


def test_reciprocal_rank_fusion_by_hand():
    found = reciprocal_rank_fusion([["a", "b", "c"], ["c", "b"]], [1.0, 0.5], k=0)
    assert found == [("a", 1.0), ("c", 1 / 3 + 0.5), ("b", 0.5 + 0.25)]
    assert reciprocal_rank_fusion([]) == []
    assert fused_rank(found, "c", 7) == 2
    assert fused_rank(found, "z", 7) == 7


def test_small_parts():
    assert best([1, 2], [0.1, 0.1], 5) == [1, 2]
    assert turns([3, 4], 2) == [3, 4, 3, 4]
    assert weighted([5], [0.0]).weights == (1.0,)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"score": "luck"}, "expected one of certainty"),
        ({"score": "prm"}, "set prm to the folder"),
        ({"width": 0}, "expected 1 or more"),
        ({"least_value": -0.1}, "expected 0 or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        Settings(**wrong)
    with pytest.raises(UsageError, match="expected one of plain"):
        How("beam")
