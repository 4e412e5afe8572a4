"""What only a GPU can show: ranks, sampling and gradients there agree with the CPU's. Not yet run on one."""

import copy

import pytest
import torch

from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: bash benchmarks/gpu.sh"),
]


@pytest.fixture
def contexts(small_tokens):
    return [small_tokens.marked_context(small_tokens.context_ids(text), []) for text in (" Alien", " Toy Story 2")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ranks_on_the_gpu_hold_those_of_the_cpu(small_teacher, small_catalog, contexts, dtype):
    targets = [small_catalog.item_ids[2], small_catalog.item_ids[7]]
    expected = LikelihoodRanker(small_catalog, small_teacher).rank(contexts, targets)
    model = copy.deepcopy(small_teacher).to("cuda", dtype)
    found = LikelihoodRanker(small_catalog, model).rank(contexts, targets)
    assert (found.lowest_B <= expected.ranks_B).all()
    assert (expected.ranks_B <= found.highest_B).all()
    if dtype == torch.float32:
        assert found.log_probs_B == pytest.approx(expected.log_probs_B, abs=1e-3)


def test_greedy_completions_are_those_of_the_cpu(small_teacher, small_tokens, contexts):
    asked = Sampling(temperature=0, max_new_tokens=8)
    unmarked = [ids[:-1] for ids in contexts]
    on_cpu = TransformersSampler(small_teacher, small_tokens).sample(unmarked, asked)
    on_gpu = TransformersSampler(copy.deepcopy(small_teacher).cuda(), small_tokens).sample(unmarked, asked)
    assert [[one.token_ids for one in row] for row in on_gpu] == [[one.token_ids for one in row] for row in on_cpu]


def test_a_backward_pass_gives_the_cpu_s_gradients(small_teacher):
    ids = torch.arange(2, 34).reshape(2, 16)
    on_gpu = copy.deepcopy(small_teacher).cuda()
    for model in (small_teacher, on_gpu):
        on = ids.to(next(model.parameters()).device)
        model(input_ids=on, labels=on).loss.backward()
    for (name, expected), found in zip(small_teacher.named_parameters(), on_gpu.parameters(), strict=True):
        assert torch.allclose(found.grad.cpu(), expected.grad, atol=1e-3, rtol=1e-2), name
