import math

import numpy as np
import pytest
import torch

from anyo_rl.catalog.tree import build_tree
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.training.advantages.process import process_advantages
from anyo_rl.training.advantages.progress import progress_advantages
from anyo_rl.training.item_loss import branchings, excluded_items, item_log_prob, item_weights, path_log_prob

NAN = math.nan


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("none", [0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("best", [0, 1, 0, 1, 0, 0, 0, 0, 0]),
        ("all", [1 / 3, 1 / 3, 1 / 3, 0.5, 0, 0.5, 0, 0, 0]),
        ("mixture", [1 / 6, 3 / 6, 2 / 6, 0.8, 0, 0.2, 0, 0, 0]),
    ],
)
def test_item_weights_by_hand(kind, expected):
    # Three groups of three: all parse; the middle one does not; none does.
    log_probs = torch.tensor([0.1, 0.3, 0.2, 0.4, NAN, 0.1, NAN, NAN, NAN]).log()
    weights = item_weights(log_probs, 3, kind)
    assert weights.tolist() == pytest.approx(expected)
    assert weights.shape == (9,)


@pytest.mark.parametrize("kind", ["best", "all", "mixture"])
def test_ties_single_paths_and_tiny_probabilities(kind):
    assert item_weights(torch.tensor([-1.0]), 1, kind).tolist() == [1]
    assert item_weights(torch.tensor([-1.0, -1.0]), 2, kind).sum() == 1
    tiny = item_weights(torch.tensor([-900.0, -901.0]), 2, kind)
    assert tiny.sum().item() == pytest.approx(1)
    assert tiny[0] >= tiny[1]


def test_mixture_weights_are_the_gradient_of_the_mixture():
    log_probs = torch.tensor([-1.0, -2.5, -0.3], requires_grad=True)
    (-(log_probs.exp().mean().log())).backward()
    torch.testing.assert_close(item_weights(log_probs.detach(), 3, "mixture"), -log_probs.grad)


def test_an_unknown_item_loss_is_refused():
    with pytest.raises(ValueError, match="item_loss is 'beast'; expected one of none, best, all, mixture"):
        item_weights(torch.zeros(2), 2, "beast")


def test_path_log_prob_by_hand():
    # Path 1: two branchings, of two and three children. Path 2: one branching of three, the second is not there.
    logits = torch.log(torch.tensor([[[2.0, 6, 0], [1, 1, 2]], [[1, 2, 7], [0, 0, 0]]]))
    found = path_log_prob(logits, torch.tensor([[1, 2], [0, -100]]))
    assert found.tolist() == pytest.approx([math.log(6 / 8 * 2 / 4), math.log(1 / 10)])


def test_a_path_without_a_branching_is_certain():
    assert path_log_prob(torch.zeros(2, 1, 1), torch.tensor([[-100], [0]])).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_path_log_prob_gradients_are_finite_and_right(dtype):
    logits = torch.zeros(2, 2, 4, dtype=dtype, requires_grad=True)
    padded = torch.tensor([[[0, 0, 1, 1], [0, 1, 1, 1]], [[0, 0, 0, 0], [1, 1, 1, 1]]]).bool()
    found = path_log_prob(logits.masked_fill(padded, -torch.inf), torch.tensor([[1, 0], [2, -100]]))
    assert found.dtype == torch.float32
    found.sum().backward()
    expected = [[[-0.5, 0.5, 0, 0], [0, 0, 0, 0]], [[-0.25, -0.25, 0.75, -0.25], [0, 0, 0, 0]]]
    torch.testing.assert_close(logits.grad.float(), torch.tensor(expected))


def test_path_log_prob_is_what_the_engine_ranks_by(small_catalog, small_tokens, small_teacher):
    context = [*small_tokens.context_ids("Alien\n"), small_tokens.marker_id]
    engine = DistributionRanker(small_catalog, small_teacher).log_probs([context])[0]
    for item, path in enumerate(small_catalog.paths):
        with torch.no_grad():
            logits = small_teacher(torch.tensor([[*context, *path]])).logits[0, len(context) - 1 :]
        steps = branchings(small_catalog.tree, item)
        rows = [logits[step.depth, torch.from_numpy(step.children)] for step in steps]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-torch.inf)
        found = path_log_prob(padded[None], torch.tensor([[step.child for step in steps]]))
        assert found.item() == pytest.approx(engine[item].item(), abs=1e-4)


def test_branchings_by_hand():
    # Items 1 2 3, 1 2 4, 5 6: a choice at the root, a forced 2 (or 6), then a choice under 1 2.
    tree = build_tree([(1, 2, 3), (1, 2, 4), (5, 6)])
    found = [[(s.depth, s.children.tolist(), s.child) for s in branchings(tree, item)] for item in range(3)]
    assert found == [[(0, [1, 5], 0), (2, [3, 4], 0)], [(0, [1, 5], 0), (2, [3, 4], 1)], [(0, [1, 5], 1)]]
    assert branchings(build_tree([(1, 2, 3)]), 0) == []


def test_a_branch_to_excluded_items_alone_is_no_choice():
    # Items 1 2 3, 1 2 4, 5 6, 7: with 5 6 out the root has 1 and 7; with all below 1 out but 1 2 3 nothing branches.
    tree = build_tree([(1, 2, 3), (1, 2, 4), (5, 6), (7,)])

    def choices(item, *excluded):
        return [(s.depth, s.children.tolist(), s.child) for s in branchings(tree, item, np.array(excluded, dtype=int))]

    assert choices(1, 2) == [(0, [1, 7], 0), (2, [3, 4], 1)]
    assert choices(3, 1) == [(0, [1, 5, 7], 2)]  # 1 2 3 is still there
    assert choices(3, 0, 1) == [(0, [5, 7], 1)]
    assert choices(0, 1, 2, 3) == []
    assert choices(0, 0, 1) == [(0, [1, 5, 7], 0)]  # never the item itself
    assert choices(0) == [(0, [1, 5, 7], 0), (2, [3, 4], 0)]


def test_the_item_loss_leaves_excluded_items_out(small_catalog, small_tokens, small_teacher):
    """Where nothing below a branching is left but the item, its log-probability there is 0; alone it is 0 in all."""
    context = [*small_tokens.context_ids("Alien\n"), small_tokens.marker_id]
    ids = small_catalog.item_ids
    items = torch.tensor([1, 1, 1])
    excluded = excluded_items(small_catalog, [[], [ids[0], "gone"], [item for item in ids if item != ids[1]]])
    assert excluded.shape == (3, len(ids) - 1)
    assert excluded[1].tolist() == [0] + [-1] * (len(ids) - 2)
    with torch.no_grad():
        found = item_log_prob(small_teacher, small_catalog, [context] * 3, items, excluded, pad_id=0)
    whole = DistributionRanker(small_catalog, small_teacher).log_probs([context])[0, 1]
    assert found[0].item() == pytest.approx(whole.item(), abs=1e-4)
    assert found[2].item() == 0.0
    assert found[0] <= found[1] < 0
    assert excluded_items(small_catalog, [[], []]).shape == (2, 0)


def test_the_spread_of_process_rewards_is_the_groups_the_batchs_or_none():
    """A group whose steps hardly differ is blown up by its own spread, and left small by that of the batch."""
    rewards = torch.tensor([[0.4, NAN], [-0.4, NAN], [0.001, NAN], [-0.001, NAN]])
    by_group = process_advantages(rewards, 2)[:, 0]
    assert by_group[2] > 0.6 * by_group[0]
    std = math.sqrt((2 * 0.4**2 + 2 * 0.001**2) / 2)  # a degree of freedom of each group is spent on its mean
    by_batch = process_advantages(rewards, 2, scale="batch")[:, 0]
    assert by_batch.tolist() == pytest.approx([value / (std + 1e-4) for value in (0.4, -0.4, 0.001, -0.001)])
    assert process_advantages(rewards, 2, scale="none")[:, 0].tolist() == pytest.approx([0.4, -0.4, 0.001, -0.001])
    with pytest.raises(ValueError, match="scale_rewards is 'all'"):
        process_advantages(rewards, 2, scale="all")


def test_progress_advantages_by_hand():
    # Two groups of two. Rewards .5 and 0; V_0 = .2, and after the first step .6 (path 0) and .1 (path 1).
    rewards = torch.tensor([0.5, 0.0, 1.0, 1.0])
    values = torch.tensor([[0.2, 0.6, NAN], [0.2, 0.1, 0.3], [0.4, NAN, NAN], [0.4, 0.4, NAN]])
    expected = torch.tensor([[0.25, -0.15, 0], [-0.25, -0.15, -0.35], [0, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(progress_advantages(rewards, values, 2, "none"), expected)
    mean_squares = [(0.25**2 + 0.15**2) / 2, (0.25**2 + 0.15**2 + 0.35**2) / 3]
    spread = math.sqrt(sum(mean_squares) / 2)
    found = progress_advantages(rewards, values, 2, "group")
    torch.testing.assert_close(found[:2], expected[:2] / (spread + 1e-4))
    assert not found[2:].any()
    batch = math.sqrt(sum(mean_squares) / 4)
    torch.testing.assert_close(progress_advantages(rewards, values, 2, "batch"), expected / (batch + 1e-4))
    with pytest.raises(ValueError, match="scale_rewards is 'all'"):
        progress_advantages(rewards, values, 2, "all")


@pytest.mark.parametrize("scale", ["none", "group", "batch"])
def test_equal_outcomes_begin_with_equal_advantages_whatever_their_number_of_steps(scale):
    rewards = torch.tensor([0.7, 0.7, 0.7, 0.1])
    values = torch.tensor([[0.3, NAN, NAN, NAN], [0.3, 0.9, 0.2, 0.4], [0.3, 0.1, NAN, NAN], [0.3, 0.2, 0.2, NAN]])
    first = progress_advantages(rewards, values, 4, scale)[:, 0]
    assert first[0] == first[1] == first[2] > 0 > first[3]


@pytest.mark.parametrize("scale", ["group", "batch"])
def test_without_progress_they_are_grpos_but_for_the_kind_of_deviation(scale):
    torch.manual_seed(0)
    rewards, n_steps = torch.rand(12), torch.randint(1, 5, (12,))
    values = torch.full((12, 4), 0.37).masked_fill(torch.arange(4) >= n_steps[:, None], NAN)
    found = progress_advantages(rewards, values, 4, scale)
    groups = rewards.view(3, 4)
    centred = groups - groups.mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt() if scale == "group" else centred.square().mean().sqrt()
    expected = (centred / (spread + 1e-4)).flatten()
    torch.testing.assert_close(found, torch.where(values.isnan(), 0.0, expected[:, None]))


def test_a_path_without_a_reward_teaches_nothing():
    rewards = torch.tensor([NAN, 0.0, 1.0, NAN, NAN, NAN])
    values = torch.tensor([[0.2, 0.9], [0.2, 0.2], [0.2, NAN], [0.1, 0.5], [0.1, 0.5], [0.1, NAN]])
    found = progress_advantages(rewards, values, 3, "none")
    torch.testing.assert_close(found, torch.tensor([[0, 0], [-0.5, -0.5], [0.5, 0], [0, 0], [0, 0], [0, 0]]))


def slow_process(step_rewards, group_size, reduction):
    """The paper's formula, a step at a time."""
    found = torch.zeros_like(step_rewards)
    for start in range(0, len(step_rewards), group_size):
        paths = [[r for r in row.tolist() if not math.isnan(r)] for row in step_rewards[start : start + group_size]]
        pooled = [r for path in paths for r in path]
        mean = sum(pooled) / max(len(pooled), 1)
        std = math.sqrt(sum((r - mean) ** 2 for r in pooled) / max(len(pooled) - 1, 1))
        for g, path in enumerate(paths):
            normal = [(r - mean) / (std + 1e-4) for r in path]
            for j in range(len(path)):
                total = sum(normal[j:])
                found[start + g, j] = total if reduction == "sum" else total / len(normal[j:])
    return found


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_process_advantages_against_a_slow_loop(reduction):
    torch.manual_seed(1)
    n_steps = torch.tensor([1, 4, 2, 3, 4, 0, 1, 2])
    rewards = torch.randn(8, 4).masked_fill(torch.arange(4) >= n_steps[:, None], NAN)
    found = process_advantages(rewards, 4, reduction)
    torch.testing.assert_close(found, slow_process(rewards, 4, reduction), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="reduction is 'max'"):
        process_advantages(rewards, 4, "max")


def test_padding_a_path_with_steps_like_its_others_pays_with_sum_alone():
    # Steps of .3 against steps of 0: one, or four of them.
    rewards = torch.tensor([[0.3, NAN, NAN, NAN], [0.3, 0.3, 0.3, 0.3], [0.0, NAN, NAN, NAN], [0.0, 0.0, 0.0, 0.0]])
    first = {reduction: process_advantages(rewards, 4, reduction)[:, 0] for reduction in ("sum", "mean")}
    assert first["sum"][1] == pytest.approx(4 * first["sum"][0].item())
    assert first["mean"][1] == pytest.approx(first["mean"][0].item())
