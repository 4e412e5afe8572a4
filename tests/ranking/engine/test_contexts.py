"""What contexts begin with together is read once, and changes no state."""

import pytest
import torch

from anyo_rl.ranking.engine.context import Beginnings, ContextCache, in_common, shared_beginnings
from anyo_rl.teacher.policy import inference


def test_beginnings_by_hand():
    assert in_common([1, 2, 3], [1, 2, 4, 5]) == 2
    assert in_common([1, 2], [1, 2, 3]) == 2
    assert in_common([], [1]) == 0
    paths = [[1, 2, 3, 4, 9], [5, 6, 7, 8, 9], [1, 2, 3, 4, 0, 9], [5, 6, 7, 8, 1, 9]]
    # In alphabetical order 1 2 3 4 0 | 1 2 3 4 | 5 6 7 8 1 | 5 6 7 8, each without its last token: two beginnings of 4
    # tokens and four ends of at most 2 are 16 tokens, 4 contexts of 6 are 24.
    assert shared_beginnings(paths) == Beginnings([(1, 2, 3, 4), (5, 6, 7, 8)], [0, 1, 0, 1])
    # Two beginnings of 4 and two ends of 1 are no fewer than two contexts of 5.
    assert shared_beginnings(paths[:2]) is None
    # One token each: nothing comes before the last one.
    assert shared_beginnings([[9], [9]]) is None
    # Less than half in common is not enough.
    assert shared_beginnings([[1, 2, 3, 4, 5, 9], [1, 2, 6, 7, 8, 9]]) is None


def test_the_same_context_many_times():
    assert shared_beginnings([[1, 2, 3]] * 3) == Beginnings([(1, 2)], [0, 0, 0])


@pytest.mark.parametrize("shared", [True, False])
def test_states_and_nodes_are_those_of_contexts_read_alone(small_teacher, shared):
    prompts = [[11, 12, 13, 14, 15, 16, 17, 18], [21, 22, 23, 24, 25]] if shared else [[11], [21]]
    ends = [[31, 9], [32, 33, 34, 9], [9], [35, 36, 9]]
    contexts = [prompt + end for end in ends for prompt in prompts]
    assert (shared_beginnings(contexts) is not None) == shared
    nodes = torch.tensor([[41, 42, 43]])
    depth = torch.tensor([[1, 2, 1]])
    allowed = torch.tensor([[[1, 0, 0], [1, 1, 0], [0, 0, 1]]], dtype=torch.bool)
    with inference(small_teacher):
        cache = ContextCache(small_teacher, contexts)
        assert cache.lengths_B.tolist() == list(map(len, contexts))
        read = cache.read(nodes, depth, allowed)
        assert cache.n_kept == 3
        cache.forget_nodes()
        kept = torch.tensor([5, 0])
        cache.select(kept)
        again = cache.read(nodes, depth, allowed)
        for row, context in enumerate(contexts):
            decoder = small_teacher.get_decoder()
            whole = decoder(torch.tensor([[*context, 41, 42]])).last_hidden_state[0]
            other = decoder(torch.tensor([[*context, 43]])).last_hidden_state[0, -1]
            expected = torch.stack([whole[-2], whole[-1], other])
            torch.testing.assert_close(read[row], expected, atol=2e-5, rtol=1e-4)
            for place in (kept == row).nonzero()[:, 0].tolist():
                torch.testing.assert_close(again[place], expected, atol=2e-5, rtol=1e-4)
                torch.testing.assert_close(cache.states_B_D[place], whole[-3], atol=2e-5, rtol=1e-4)
