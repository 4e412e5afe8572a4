"""The bounded search on a vLLM engine says the same as the model in hand.

Tolerance: 1e-4 in the log-probability of an item, the tie band in fp32. Ranks are equal where the target has no
neighbour that close.
"""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.ranking.distribution import DistributionRanker, rank_scores
from anyo_rl.ranking.engine.best_first import Goal
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.engine.vllm import TOKENS_PER_REQUEST, VllmRanker, token_scores
from anyo_rl.ranking.protocol import Ranking

pytestmark = pytest.mark.slow
BAND = 1e-4


@pytest.fixture(scope="module")
def catalog(vllm_engine) -> Catalog:
    """500 items of one to three words; the root has more children than one request can name."""
    tokenizer = vllm_engine.tokens.tokenizer
    words = [word[1:] for word in map(tokenizer.decode, range(len(tokenizer))) if len(word) == 4 and word[0] == " "]
    assert len(words) > 2 * TOKENS_PER_REQUEST
    rng = np.random.default_rng(0)
    few = words[:9]
    titles = [
        *words[: 2 * TOKENS_PER_REQUEST + 7],
        *(" ".join(rng.choice(few, rng.integers(2, 5))) for _ in range(240)),
    ]
    made = build_catalog(
        pl.DataFrame({"item_id": [f"i{i}" for i in range(len(titles))], "title": titles}), vllm_engine.tokens
    )
    assert made.tree.n_children.max() > 2 * TOKENS_PER_REQUEST
    return made


@pytest.fixture(scope="module")
def contexts(vllm_engine) -> list[list[int]]:
    """Contexts of 1 to 150 tokens; the first and the last are the same."""
    rng = np.random.default_rng(1)
    marker = vllm_engine.tokens.marker_id  # the last token
    made = [[*rng.integers(5, marker, n).tolist(), marker] for n in (31, 0, 149, 12, 64, 5)]
    return [*made, made[0]]


@pytest.fixture(scope="module")
def table(vllm_engine, catalog, contexts) -> np.ndarray:
    """(B, N) log-probabilities of all items by the model in hand."""
    return DistributionRanker(catalog, vllm_engine.model).log_probs(contexts).double().numpy()


def check_exact(found: Ranking, table: np.ndarray, catalog: Catalog, targets: list[str], **asked) -> None:
    expected = rank_scores(catalog, table, targets, **asked)
    np.testing.assert_allclose(found.log_probs_B, expected.log_probs_B, atol=BAND, rtol=0)
    assert (found.lowest_B <= expected.ranks_B).all()
    assert (expected.ranks_B <= found.highest_B).all()
    alone = (np.abs(table - expected.log_probs_B[:, None]) < 2 * BAND).sum(1) == 1
    assert alone.any()
    assert found.ranks_B[alone].tolist() == expected.ranks_B[alone].tolist()
    assert (found.lowest_B == found.highest_B)[alone].all()
    assert found.top_exact_B.all()
    for b, top in enumerate(found.top_ids_B_K):
        np.testing.assert_allclose(found.top_scores_B_K[b], expected.top_scores_B_K[b], atol=BAND, rtol=0)
        np.testing.assert_allclose(table[b, catalog.indices(top)], found.top_scores_B_K[b], atol=BAND, rtol=0)
        assert len(set(top)) == len(top)


def test_ranks_and_top_items_are_those_of_the_model_in_hand(vllm_engine, catalog, contexts, table):
    ranker = VllmRanker(catalog, vllm_engine.llm)
    assert ranker.tie_band == BAND
    order = np.argsort(-table, axis=1)
    for place, top_k in ((0, 1), (2, 10), (30, 3), (300, 600)):
        targets = [catalog.item_ids[i] for i in order[:, place]]
        found = ranker.rank(contexts, targets, top_k=top_k)
        check_exact(found, table, catalog, targets, top_k=top_k)
        in_hand = LikelihoodRanker(catalog, vllm_engine.model).rank(contexts, targets, top_k=top_k)
        if top_k == 600:  # everything is read, once, in whatever order
            assert found.n_nodes_B.tolist() == in_hand.n_nodes_B.tolist()


def test_masks_and_candidates(vllm_engine, catalog, contexts, table):
    rng = np.random.default_rng(3)
    targets = [catalog.item_ids[i] for i in rng.integers(0, len(catalog), len(contexts))]
    few = [rng.choice(catalog.item_ids, 40).tolist() for _ in contexts]
    ranker = VllmRanker(catalog, vllm_engine.llm, nodes_per_forward=20)
    for asked in ({"excluded_B": few}, {"candidates_B": few}, {"candidates_B": few, "excluded_B": few[::-1]}):
        check_exact(ranker.rank(contexts, targets, top_k=5, **asked), table, catalog, targets, top_k=5, **asked)


def test_mixture_is_the_mean_of_the_distributions(vllm_engine, catalog, contexts, table):
    rows = np.array([[0, 1, 2], [2, 3, 4], [5, 5, 5]])
    mixed = torch.from_numpy(table)[rows].logsumexp(1).numpy() - np.log(3)
    targets = [catalog.item_ids[i] for i in np.argsort(-mixed, axis=1)[:, 4]]
    paths = [[contexts[i] for i in of_row] for of_row in rows.tolist()]
    found = VllmRanker(catalog, vllm_engine.llm).rank_mixture(paths, targets, top_k=7)
    check_exact(found, mixed, catalog, targets, top_k=7)


def test_top_items_without_a_target(vllm_engine, catalog, contexts, table):
    goals = [Goal(None)] * len(contexts)
    found = VllmRanker(catalog, vllm_engine.llm).search([[context] for context in contexts], goals, 6)
    for of_context, row in zip(found, table, strict=True):
        np.testing.assert_allclose([log_p for _, log_p in of_context.top], np.sort(row)[::-1][:6], atol=BAND, rtol=0)
        assert of_context.top_exact
        assert of_context.rank is None


def test_budget_and_cap_give_brackets_that_hold_the_rank(vllm_engine, catalog, contexts, table):
    targets = [catalog.item_ids[i] for i in np.argsort(-table, axis=1)[:, 200]]
    expected = rank_scores(catalog, table, targets).ranks_B
    assert expected.tolist() == [201] * len(contexts)
    open_brackets = 0
    for limits in ({"node_budget": 1}, {"node_budget": 30}, {"cap": 10}):
        found = VllmRanker(catalog, vllm_engine.llm, **limits).rank(contexts, targets)
        assert (found.lowest_B <= expected).all()
        assert (expected <= found.highest_B).all()
        open_brackets += (found.lowest_B < found.highest_B).sum()
    assert open_brackets


def test_a_context_is_computed_once(vllm_engine, catalog, contexts, monkeypatch):
    """Whole blocks of a context come from the cache in all requests but the first."""
    llm, block = vllm_engine.llm, 32
    outputs = []
    generate = llm.generate

    def spy(*args, **kwargs):
        outputs.extend(generate(*args, **kwargs))
        return outputs[-len(args[0]) :]

    monkeypatch.setattr(llm, "generate", spy)
    assert llm.reset_prefix_cache()
    long = contexts[2]
    VllmRanker(catalog, llm).rank([long], ["i300"], top_k=20)
    assert len(outputs) > 20
    whole = (len(long) - 1) // block * block
    assert [output.num_cached_tokens >= whole for output in outputs] == [False] + [True] * (len(outputs) - 1)


def test_scores_leave_the_checkpoint_s_generation_config_aside(vllm_engine, contexts):
    """Any number of tokens a request, in one batch, in any order."""
    asked = [[7, 5, 300], [400], list(range(399, 299, -1))]
    found = token_scores(vllm_engine.llm, contexts[:3], asked)
    for context, tokens, scores in zip(contexts, asked, found, strict=False):
        with torch.no_grad():
            logits = vllm_engine.model(torch.tensor([context])).logits[0, -1, tokens].double().numpy()
        np.testing.assert_allclose(np.diff(scores), np.diff(logits), atol=BAND, rtol=0)


def test_what_cannot_be_ranked_is_refused(vllm_engine, catalog, contexts, small_tokens):
    ranker = VllmRanker(catalog, vllm_engine.llm)
    with pytest.raises(ValueError, match=r"tokens, the model 256; shorten the history budget"):
        ranker.rank([[5] * 256], ["i0"])
    with pytest.raises(ValueError, match="a context is empty"):
        ranker.rank([contexts[0], []], ["i0", "i1"])
    with pytest.raises(ValueError, match="cap must be 1 or more, found 0"):
        VllmRanker(catalog, vllm_engine.llm, cap=0)

    def engine(n_tokens: int, prefix_caching: bool) -> SimpleNamespace:
        cache = SimpleNamespace(enable_prefix_caching=prefix_caching, num_gpu_blocks=8, block_size=16)
        model = SimpleNamespace(dtype=torch.bfloat16, get_vocab_size=lambda: n_tokens)
        config = SimpleNamespace(cache_config=cache, model_config=model)
        return SimpleNamespace(llm_engine=SimpleNamespace(vllm_config=config, model_config=model))

    with pytest.raises(ValueError, match="enable_prefix_caching=True"):
        VllmRanker(catalog, engine(2000, prefix_caching=False))
    with pytest.raises(ValueError, match=r"has token \d+ but the model knows 40 tokens"):
        VllmRanker(catalog, engine(40, prefix_caching=True))
    assert VllmRanker(catalog, engine(2000, prefix_caching=True)).tie_band == 0.5
