"""A tiny teacher that writes lines: line breaks and the marker come often enough for trees of a few levels."""

import pytest
import torch

from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.transformers import TransformersSampler


@pytest.fixture
def rows() -> list[Row]:
    """Users with prompts of several lengths."""
    told = [("Alien\n", ["i0", "i4"], "i4"), ("Toys mug\n", ["i5", "i9"], "i0"), ("x", [], "i9")]
    told += [("lamp oak 1\n", ["i6"], "i7"), ("mug\nToys\nAliens\n", ["i9", "i5", "i2"], "i1")]
    return [
        Row(example_id=f"u{u}:3", user_id=f"u{u}", prompt=prompt, history=history, target_id=target)
        for u, (prompt, history, target) in enumerate(told)
    ]


@pytest.fixture
def writer(small_teacher, small_tokens):
    """The teacher, with a bias for line breaks and the marker."""
    (line_break,) = small_tokens.tokenizer.encode("\n", add_special_tokens=False)
    head = torch.nn.Linear(small_teacher.config.hidden_size, small_teacher.config.vocab_size)
    head.weight = torch.nn.Parameter(0.5 * small_teacher.lm_head.weight.detach())
    with torch.no_grad():
        head.bias.zero_()
        head.bias[line_break], head.bias[small_tokens.marker_id] = 5.5, 4.5
    small_teacher.lm_head = head
    return small_teacher


@pytest.fixture
def ranker(small_catalog, writer) -> LikelihoodRanker:
    return LikelihoodRanker(small_catalog, writer)


@pytest.fixture
def sampler(writer, small_tokens) -> TransformersSampler:
    return TransformersSampler(writer, small_tokens, with_log_probs=True)
