import math

import pytest
import torch

from anyo_rl.catalog.tree import build_tree
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.training.item_loss import branchings
from anyo_rl.training.objectives import item_weights, path_log_prob

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
