"""Searches of many users together: the same trees as alone, within budgets, and blind to targets."""

from dataclasses import replace

import numpy as np
import pytest

from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sample, Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import answer, answer_blindly, explore, interleaved
from anyo_rl.search.how import LINE_BY_LINE, SEARCHES, How, Settings
from anyo_rl.search.rounds import Explorer
from anyo_rl.search.values import Certainty, agreement, certainty, sharpness, value_of

ASKED = Sampling(n=4, max_new_tokens=12, seed=5)


def how(mode, **settings):
    return How(mode, ASKED, top_k=20, settings=Settings(**settings), keep_found=True, keep_paths=False)


def shape(tree):
    """What a tree is, but for float noise in the last place."""
    return [(node.parent, node.token_ids, node.finished, node.name, node.draws, node.visits) for node in tree.nodes]


@pytest.mark.parametrize("mode", SEARCHES)
def test_users_together_have_the_trees_of_each_alone_in_any_order(rows, ranker, sampler, small_tokens, mode):
    together = answer(rows, ranker, sampler, small_tokens, how(mode))
    turned = answer(rows[::-1], ranker, sampler, small_tokens, how(mode)).found_U[::-1]
    for user, row in enumerate(rows[:3]):
        alone = answer([row], ranker, sampler, small_tokens, how(mode))
        for one in (alone.found_U[0], turned[user]):
            mine = together.found_U[user]
            assert shape(one.tree) == shape(mine.tree)
            assert one.item_ids_K == mine.item_ids_K
            assert one.ending.leaves == mine.ending.leaves
            np.testing.assert_allclose(one.scores_K, mine.scores_K, atol=1e-5)
            assert (one.n_tokens, one.n_nodes) == (mine.n_tokens, mine.n_nodes)
        assert alone.ranks_U[0] == together.ranks_U[user]


def test_the_trees_are_trees(rows, ranker, sampler, small_tokens):
    """The tiny teacher makes trees of several levels: what the other tests hold is no empty statement."""
    for mode in LINE_BY_LINE:
        found = answer(rows, ranker, sampler, small_tokens, how(mode)).found_U
        assert any(node.parent > 0 for one in found for node in one.tree.nodes)
        assert any(len(one.ending.leaves) > 1 for one in found)
        for one in found:
            for node in one.tree.nodes[1:]:
                assert node.finished or node.token_ids[-1] in small_tokens.break_ids
                assert node.finished or len(node.text.splitlines()) == 1
                assert not node.finished or all(child.parent != one.tree.nodes.index(node) for child in one.tree.nodes)


@pytest.mark.parametrize("mode", SEARCHES)
def test_no_search_sees_a_target(rows, ranker, sampler, small_tokens, mode):
    known = answer(rows, ranker, sampler, small_tokens, how(mode))
    others = [replace(row, target_id=f"i{(int(row.target_id[1:]) + 3) % 10}") for row in rows]
    exchanged = answer(others, ranker, sampler, small_tokens, how(mode))
    unknown = answer([replace(row, target_id="") for row in rows], ranker, sampler, small_tokens, how(mode))
    blind = answer_blindly(rows, ranker, sampler, small_tokens, how(mode))
    assert unknown.ranks_U.tolist() == [0] * len(rows)
    assert blind.ranks_U.tolist() == known.ranks_U.tolist()
    for user in range(len(rows)):
        mine = known.found_U[user]
        for one in (exchanged.found_U[user], unknown.found_U[user], blind.found_U[user]):
            assert shape(one.tree) == shape(mine.tree)
            assert one.item_ids_K == mine.item_ids_K
        # All ten items are named: where the target stands among them is its rank, after what it ties with.
        for found, row in ((known, rows[user]), (exchanged, others[user])):
            own = mine.scores_K[mine.item_ids_K.index(row.target_id)]
            assert found.ranks_U[user] == sum(score >= own for score in mine.scores_K)


@pytest.mark.parametrize("mode", LINE_BY_LINE)
@pytest.mark.parametrize("budget", [0, 5, 13, 30])
def test_budgets_are_never_exceeded(rows, ranker, sampler, small_tokens, mode, budget):
    asked = how(mode, token_budget=budget, node_budget=budget, value_nodes=3)
    most = max(3, value_of(asked, ranker, small_tokens).most_nodes)
    for one in answer(rows, ranker, sampler, small_tokens, asked).found_U:
        assert one.n_tokens <= budget
        assert one.tree.n_nodes <= budget
        written = sum(len(node.token_ids) * node.draws for node in one.tree.nodes[1:])
        assert written == one.n_tokens
        assert all(len(one.tree.reasoning(n)) <= ASKED.max_new_tokens for n in range(len(one.tree.nodes)))
        assert len(one.item_ids_K) == 10
    assert most <= 12


@pytest.mark.parametrize("mode", ["mixture", "best_of_n", "rank_fusion"])
def test_a_token_budget_leaves_out_whole_reasonings(rows, ranker, sampler, small_tokens, mode):
    found = answer(rows, ranker, sampler, small_tokens, how(mode, token_budget=30)).found_U
    whole = answer(rows, ranker, sampler, small_tokens, how(mode)).found_U
    for one, other in zip(found, whole, strict=True):
        assert shape(one.tree) == shape(other.tree)[:3]  # two of 12 tokens; the same draws come first
        assert one.n_tokens <= 30


def test_the_answer_is_the_weighted_mixture_over_the_leaves(
    rows, ranker, sampler, small_tokens, small_catalog, writer
):
    exact = DistributionRanker(small_catalog, writer)
    for mode in (*LINE_BY_LINE, "weighted_mixture"):
        for one in answer(rows, ranker, sampler, small_tokens, how(mode)).found_U:
            contexts = [one.tree.asked_at(leaf, small_tokens) for leaf in one.ending.leaves]
            mean_N = np.array(one.ending.weights) @ np.exp(exact.log_probs(contexts).double().numpy())
            np.testing.assert_allclose(np.exp(one.scores_K), np.sort(mean_N)[::-1], atol=1e-5)


def test_best_of_n_and_the_mixture_draw_the_same_reasonings(rows, ranker, sampler, small_tokens):
    a, b = (answer(rows, ranker, sampler, small_tokens, how(mode)).found_U for mode in ("mixture", "best_of_n"))
    for mixture, best in zip(a, b, strict=True):
        assert [node.token_ids for node in mixture.tree.nodes] == [node.token_ids for node in best.tree.nodes]
        values = [node.value for node in best.tree.nodes[1:]]
        assert best.ending.leaves == (1 + values.index(max(values)),)
        assert best.steps == best.tree.steps(best.ending.leaves[0])


def test_masked_items_are_neither_answered_nor_valued(rows, ranker, sampler, small_tokens):
    masked = [replace(row, excluded=row.history, target_id="i8") for row in rows]
    for mode in ("step_beam", "rank_fusion"):
        for row, one in zip(masked, answer(masked, ranker, sampler, small_tokens, how(mode)).found_U, strict=True):
            assert not set(row.history) & set(one.item_ids_K)


def test_scores_that_lack_something_say_so(rows, ranker, sampler, writer, small_tokens):
    with pytest.raises(UsageError, match="needs evidence"):
        answer(rows, ranker, sampler, small_tokens, how("mcts", score="evidence"))
    plain = TransformersSampler(writer, small_tokens)
    with pytest.raises(UsageError, match="log-probabilities"):
        answer(rows, ranker, plain, small_tokens, how("best_of_n", score="likelihood"))
    for mode in ("best_of_n", "step_beam"):
        found = answer(rows, ranker, sampler, small_tokens, how(mode, score="likelihood")).found_U
        assert all(
            0 < (node.value or 0) <= 1 for one in found for node in one.tree.nodes[1:] if node.value is not None
        )

    class Whole:
        """Samples whole reasonings alone, as Ray's engines do."""

        def sample(self, contexts_B, sampling, *, keys_B=None):
            return [[Sample((5,), None, "length")] * sampling.n for _ in contexts_B]

    with pytest.raises(UsageError, match="samples whole ones"):
        answer(rows, ranker, Whole(), small_tokens, how("tree"))
    assert len(answer(rows, ranker, Whole(), small_tokens, how("best_of_n")).found_U) == len(rows)


def test_blank_lines_are_no_steps(rows, small_tokens, ranker):
    (line_break,) = small_tokens.tokenizer.encode("\n", add_special_tokens=False)

    class Blanks:
        """Writes blank lines before each step, and a marker in the third."""

        def sample(self, contexts_B, sampling, *, keys_B=None):
            raise AssertionError

        def sample_lines(self, contexts_B, sampling, limits_B, keys_B):
            assert len(set(keys_B)) == len(keys_B)
            texts = [(line_break,), (line_break,), (small_tokens.tokenizer.encode("mug")[0], line_break)]
            return [Sample(texts[key.count("+")], None, "stop") for key in keys_B]

    asked = replace(how("step_beam", width=1, expand=1), sampling=Sampling(n=1, max_new_tokens=8))
    (one,) = explore(rows[:1], Explorer(Blanks(), small_tokens, asked, Certainty(ranker, small_tokens)))
    assert [node.text for node in one.tree.nodes[1:]] == ["mu", "mu"]
    assert one.tree.n_tokens == 8


def test_values_by_hand():
    assert certainty(np.log([0.6, 0.2])) == pytest.approx(0.6)
    assert sharpness(np.log([0.5, 0.25]), 4) == pytest.approx(0.125)  # and .125 for each of the two others
    assert sharpness(np.log([0.25] * 4), 4) == pytest.approx(0)
    assert sharpness(np.log([0.01]), 100) == pytest.approx(0)  # a flat distribution is not sharp
    assert agreement(np.log([0.5, 0.5]), np.array([0.0, 0.0])) == pytest.approx(1)
    assert agreement(np.log([1.0, 1e-30]), np.array([-np.inf, 0.0])) == pytest.approx(0, abs=1e-10)
    assert agreement(np.log([0.5]), np.array([-np.inf])) == 0


def test_answers_of_processes_go_back_to_the_order_of_the_users(rows, ranker, sampler, small_tokens):
    asked = replace(how("mcts"), keep_paths=True)
    whole = answer(rows, ranker, sampler, small_tokens, asked)
    shares = [answer(rows[place::2], ranker, sampler, small_tokens, asked) for place in range(2)]
    found = interleaved(shares, [row.example_id for row in rows])
    assert found.ranks_U.tolist() == whole.ranks_U.tolist()
    assert found.top_ids_U_K == whole.top_ids_U_K
    assert [(p.example_id, p.sample_index, p.token_ids, p.rank) for p in found.paths] == [
        (p.example_id, p.sample_index, p.token_ids, p.rank) for p in whole.paths
    ]
    assert [one.item_ids_K for one in found.found_U] == [one.item_ids_K for one in whole.found_U]
