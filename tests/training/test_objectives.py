import math

import pytest
import torch

from anyo_rl.ranking.likelihood import LikelihoodRanker
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
    # Two steps over four tokens. Path 1: token 1 among {0, 1}, then token 3, forced. Path 2: one token, 2 among all.
    logits = torch.log(torch.tensor([[[2.0, 6, 1, 1], [1, 1, 1, 1]], [[9, 9, 9, 9], [1, 2, 3, 4]]]))
    path = torch.tensor([[1, 3], [-100, 2]])
    allowed = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 1]], [[0, 0, 0, 0], [1, 1, 1, 1]]]).bool()
    found = path_log_prob(logits, path, allowed)
    assert found.tolist() == pytest.approx([math.log(6 / 8), math.log(3 / 10)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_path_log_prob_gradients_are_finite_and_right(dtype):
    logits = torch.zeros(2, 2, 4, dtype=dtype, requires_grad=True)
    allowed = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 1]], [[0, 0, 0, 0], [1, 1, 1, 1]]]).bool()
    found = path_log_prob(logits, torch.tensor([[1, 3], [-100, 2]]), allowed)
    assert found.dtype == torch.float32
    found.sum().backward()
    expected = [[[-0.5, 0.5, 0, 0], [0, 0, 0, 0]], [[0, 0, 0, 0], [-0.25, -0.25, 0.75, -0.25]]]
    torch.testing.assert_close(logits.grad.float(), torch.tensor(expected))


def test_path_log_prob_is_what_the_engine_ranks_by(small_catalog, small_tokens, small_teacher):
    context = [*small_tokens.context_ids("Alien\n"), small_tokens.marker_id]
    engine = LikelihoodRanker(small_catalog, small_teacher).log_probs([context])[0]
    tree, length = small_catalog.tree, max(map(len, small_catalog.paths))
    n_tokens = small_teacher.config.vocab_size
    logits = torch.full((len(small_catalog), length, n_tokens), 3.0)
    path_B_L = torch.full((len(small_catalog), length), -100)
    allowed = torch.zeros(len(small_catalog), length, n_tokens, dtype=torch.bool)
    for item, path in enumerate(small_catalog.paths):
        with torch.no_grad():
            row = small_teacher(torch.tensor([[*context, *path]])).logits[0, len(context) - 1 : -1]
        start = length - len(path)  # padded on the left, as the trainer does
        logits[item, start:] = row
        path_B_L[item, start:] = torch.tensor(path)
        for depth in range(len(path)):
            allowed[item, start + depth, torch.from_numpy(tree.token[tree.children(tree.walk(path[:depth]))])] = True
    torch.testing.assert_close(path_log_prob(logits, path_B_L, allowed), engine, atol=1e-4, rtol=0)
