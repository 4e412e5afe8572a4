"""The engine on semantic ids: both rankers against brute force over every path."""

from collections import defaultdict

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.catalog.semantic_ids import published_ids
from anyo_rl.ranking.distribution import DistributionRanker, rank_scores
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.match import MatchRanker
from anyo_rl.teacher.codes import add_item_tokens, train_item_tokens
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens

TOLERANCE = 2e-5


def make(rows: list[tuple[int, ...]], scale: float = 3.0) -> tuple[nn.Module, Catalog, Tokens, list[int]]:
    """A teacher that knows the codes of these items, scaled so that its answers are far from uniform."""
    written = ["".join(f"<{letter}_{code}>" for letter, code in zip("abc", row, strict=False)) for row in rows]
    ids = [f"i{index}" for index in range(len(rows))]
    items = pl.DataFrame({"item_id": ids, "title": ["lamp oak"] * len(rows), "sid": written})
    semantic_ids = published_ids(items, "sid")
    tokenizer = train_tokenizer([" lamp oak", "History:"] * 3, vocab_size=300)
    model = make_tiny_teacher(tokenizer, hidden_size=16, n_layers=2, n_heads=2, max_length=128).eval()
    codes = add_item_tokens(model, tokenizer, semantic_ids.tokens())
    with torch.no_grad():
        model.get_input_embeddings().weight[codes] *= 30
        for parameter in model.parameters():
            parameter.mul_(scale)
    tokens = Tokens.of(tokenizer)
    return model, build_catalog(items, tokens, semantic_ids), tokens, codes


@torch.no_grad()
def brute_force(model: nn.Module, catalog: Catalog, contexts: list[list[int]]) -> np.ndarray:
    """(B, N) log-probabilities, item by item: each token among those that may follow, by a dict of prefixes."""
    following = defaultdict(set)
    for path in catalog.paths:
        for depth, token in enumerate(path):
            following[path[:depth]].add(token)
    found = np.zeros((len(contexts), len(catalog)))
    for b, context in enumerate(contexts):
        for n, path in enumerate(catalog.paths):
            logits = model(input_ids=torch.tensor([[*context, *path]])).logits[0].double()
            for depth, token in enumerate(path):
                allowed = sorted(following[path[:depth]])
                at = logits[len(context) - 1 + depth, allowed].log_softmax(0)
                found[b, n] += float(at[allowed.index(token)])
    return found


def contexts_of(tokens: Tokens) -> list[list[int]]:
    prompts = ("History:\nlamp oak\n", "lamp")
    return [[*tokens.context_ids(prompt), tokens.marker_id] for prompt in prompts]


rows = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple), min_size=2, max_size=14)


@settings(max_examples=15)
@given(rows, st.sampled_from([1.0, 3.0]), st.integers(1, 5))
def test_ranks_are_those_of_brute_force(rows, scale, nodes_per_forward):
    model, catalog, tokens, _ = make(rows, scale)
    contexts = contexts_of(tokens)
    expected = brute_force(model, catalog, contexts)
    np.testing.assert_allclose(np.exp(expected).sum(1), 1, atol=1e-5)
    whole = DistributionRanker(catalog, model, nodes_per_forward).log_probs(contexts)
    np.testing.assert_allclose(whole.numpy(), expected, atol=TOLERANCE, rtol=0)
    for target in catalog.item_ids:
        targets = [target] * len(contexts)
        found = LikelihoodRanker(catalog, model).rank(contexts, targets)
        ranks = rank_scores(catalog, whole.numpy(), targets).ranks_B
        assert (found.lowest_B <= ranks).all()
        assert (ranks <= found.highest_B).all()
        own = expected[:, catalog.index[target]]
        np.testing.assert_allclose(found.log_probs_B, own, atol=TOLERANCE, rtol=0)
        others = np.delete(expected, catalog.index[target], axis=1)
        if (np.abs(others - own[:, None]) > 1e-4).all():  # no near tie: the rank is beyond doubt
            assert found.ranks_B.tolist() == (1 + (others > own[:, None]).sum(1)).tolist()


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_adapters_train_are_seen(tied):
    model, catalog, tokens, codes = make([(0, 1), (0, 2), (1, 1), (1, 1), (2,)])
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    contexts = contexts_of(tokens)
    before = DistributionRanker(catalog, model).log_probs(contexts)
    config = train_item_tokens(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), model, codes)
    adapted = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.copy_(parameter.flip(0))
    found = DistributionRanker(catalog, adapted).log_probs(contexts)
    assert (found - before).abs().max() > 0.1
    np.testing.assert_allclose(found.numpy(), brute_force(adapted, catalog, contexts), atol=TOLERANCE, rtol=0)
    bounded = LikelihoodRanker(catalog, adapted).rank(contexts, ["i0", "i3"])
    assert bounded.ranks_B.tolist() == rank_scores(catalog, found.numpy(), ["i0", "i3"]).ranks_B.tolist()


def test_an_item_is_written_as_its_codes():
    _, catalog, tokens, _ = make([(0, 1), (0, 2), (0, 2)])
    ranker = MatchRanker(catalog)
    for item_id, path in zip(catalog.item_ids, catalog.paths, strict=True):
        completion = tokens.decode([*tokens.reasoning_ids(["likes lamps"]), *path])
        assert completion == f"likes lamps -> {catalog.names[catalog.index[item_id]]}"
        assert ranker.written_id(completion) == item_id
    assert ranker.written_id("-> <a_0><b_2>") is None  # two items share it: their number belongs to the name
    assert ranker.written_id("-> lamp oak") is None
