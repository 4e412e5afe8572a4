"""The bounded search against the whole distribution, which `test_distribution` holds against brute force.

Tolerance: 1e-5 in the log-probability of an item, the tie band in fp32. Ranks and top items are equal where no other
item is that close.
"""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GemmaConfig, LlamaConfig, PreTrainedModel, Qwen3Config

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.ranking.distribution import DistributionRanker, rank_scores
from anyo_rl.ranking.engine import best_first, nodes
from anyo_rl.ranking.engine.best_first import Goal
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.protocol import Ranking
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens

BAND = 1e-5
SIZE = {"vocab_size": 320, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
SIZE |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 256}
SIZE |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config, "gemma": GemmaConfig}
WORDS = ["Alien", "3", "Aliens", "oak", "lamp", "a", "b", "é", "toy story", "x9"]


def make_model(name: str = "qwen3", scale: float = 8.0, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
    """A tiny model; the larger the scale, the more peaked its answers. At 0 every child is as likely as the other."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[name](**SIZE), attn_implementation=attention).float()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" not in parameter_name:
                parameter.mul_(scale)
    return model.eval()


def make_catalog(tokens: Tokens, titles: list[str]) -> Catalog:
    return build_catalog(pl.DataFrame({"item_id": [f"i{i}" for i in range(len(titles))], "title": titles}), tokens)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens.of(train_tokenizer([f" {word}" for word in WORDS] * 3, vocab_size=300))


@pytest.fixture(scope="module")
def catalog(tokens: Tokens) -> Catalog:
    """300 items; many titles begin alike, and some are the same."""
    rng = np.random.default_rng(0)
    return make_catalog(tokens, [" ".join(rng.choice(WORDS, rng.integers(1, 5))) for _ in range(300)])


@pytest.fixture(scope="module")
def contexts(tokens: Tokens) -> list[list[int]]:
    """Contexts of 1 to 30 tokens; the first and the last are the same."""
    rng = np.random.default_rng(1)
    made = [[*rng.integers(5, 250, n).tolist(), tokens.marker_id] for n in (5, 0, 29, 12, 3, 17)]
    return [*made, made[0]]


def targets_of(catalog: Catalog, n: int, seed: int = 0) -> list[str]:
    return [catalog.item_ids[i] for i in np.random.default_rng(seed).integers(0, len(catalog), n)]


def check_exact(found: Ranking, expected: Ranking, table: np.ndarray, catalog: Catalog, band: float = BAND) -> None:
    """The bracket holds the rank, and both are equal where the target has no neighbour within the band."""
    assert (found.lowest_B <= found.ranks_B).all()
    assert (found.ranks_B <= found.highest_B).all()
    assert (found.lowest_B <= expected.ranks_B).all()
    assert (expected.ranks_B <= found.highest_B).all()
    np.testing.assert_allclose(found.log_probs_B, expected.log_probs_B, atol=band, rtol=0)
    alone = (np.abs(table - expected.log_probs_B[:, None]) < 2 * band).sum(1) == 1
    assert (found.lowest_B == found.highest_B)[alone].all()
    assert found.ranks_B[alone].tolist() == expected.ranks_B[alone].tolist()
    assert found.top_exact_B.all()
    for b, (top, of_expected) in enumerate(zip(found.top_ids_B_K, expected.top_ids_B_K, strict=True)):
        np.testing.assert_allclose(found.top_scores_B_K[b], expected.top_scores_B_K[b], atol=band, rtol=0)
        assert len(set(top)) == len(top)
        for item, score, other in zip(top, found.top_scores_B_K[b], of_expected, strict=True):
            assert item == other or (table[b] > score - 2 * band).sum() - (table[b] > score + 2 * band).sum() > 1
            assert table[b, catalog.index[item]] == pytest.approx(score, abs=band)


SLOW, ON_REQUEST = [pytest.mark.slow], [pytest.mark.slow, pytest.mark.on_request]


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        ("qwen3", "sdpa"),
        pytest.param("qwen3", "eager", marks=SLOW),
        pytest.param("llama", "sdpa", marks=ON_REQUEST),
        pytest.param("llama", "eager", marks=SLOW),
        pytest.param("gemma", "sdpa", marks=SLOW),
        pytest.param("gemma", "eager", marks=ON_REQUEST),
    ],
)
def test_the_whole_distribution_says_the_same(catalog, contexts, name, attention):
    model = make_model(name, attention=attention)
    targets = targets_of(catalog, len(contexts))
    whole = DistributionRanker(catalog, model)
    table = whole.log_probs(contexts).numpy()
    for nodes_per_forward, tokens_per_forward, top_k in ((1, 9, 1), (5, 200, 3), (64, 32_768, 20), (2048, 600, 400)):
        ranker = LikelihoodRanker(
            catalog, model, nodes_per_forward=nodes_per_forward, tokens_per_forward=tokens_per_forward
        )
        found = ranker.rank(contexts, targets, top_k=top_k)
        check_exact(found, whole.rank(contexts, targets, top_k=top_k), table, catalog)
        assert ranker.most_nodes <= nodes_per_forward


@pytest.mark.parametrize("n_paths", [1, 3])
def test_log_probabilities_of_candidates_are_those_of_the_whole_distribution(catalog, contexts, n_paths):
    model, rng = make_model(scale=3.0), np.random.default_rng(0)
    rows = [[contexts[(b + g) % len(contexts)] for g in range(n_paths)] for b in range(5)]
    items = [rng.choice(len(catalog), n, replace=False).tolist() for n in (40, 3, 1, 0, 40)]
    table = DistributionRanker(catalog, model).log_probs([c for row in rows for c in row]).double().exp()
    table = table.view(5, n_paths, -1).mean(1).log().numpy()
    ranker = LikelihoodRanker(catalog, model, node_budget=2, cap=1, nodes_per_forward=7, tokens_per_forward=300)
    for found, of_row, row in zip(ranker.log_probs_of(rows, items), items, table, strict=True):
        np.testing.assert_allclose(found, row[of_row], atol=BAND)
    assert ranker.node_budget == 2
    assert ranker.log_probs_of([], []) == []


@pytest.mark.parametrize("scale", [1.0, 3.0, 20.0])
def test_flat_and_peaked_policies(catalog, contexts, scale):
    model = make_model(scale=scale)
    whole = DistributionRanker(catalog, model)
    table = whole.log_probs(contexts).numpy()
    best = [catalog.item_ids[i] for i in table.argmax(1)]
    worst = [catalog.item_ids[i] for i in table.argmin(1)]
    for targets in (best, worst, targets_of(catalog, len(contexts))):
        found = LikelihoodRanker(catalog, model).rank(contexts, targets, top_k=5)
        check_exact(found, whole.rank(contexts, targets, top_k=5), table, catalog)


def test_where_everything_ties_the_bracket_holds_every_tie(tokens):
    catalog = make_catalog(tokens, ["a", "b", "é", "oak", "lamp"])
    model = make_model(scale=0.0)
    table = DistributionRanker(catalog, model).log_probs([[5, tokens.marker_id]]).numpy()
    found = LikelihoodRanker(catalog, model).rank([[5, tokens.marker_id]], ["i2"], top_k=3)
    target = table[0, 2]
    assert found.lowest_B[0] == 1 + (table[0] >= target + BAND).sum()
    assert found.highest_B[0] == (table[0] >= target - BAND).sum()
    assert found.highest_B[0] > found.lowest_B[0]


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join), min_size=1, max_size=14),
    st.lists(st.lists(st.integers(5, 250), max_size=9), min_size=1, max_size=4),
    st.sampled_from(["llama", "qwen3"]),
    st.sampled_from([1.0, 4.0, 12.0]),
    st.integers(1, 30),
    st.integers(0, 6),
    st.integers(0, 2**16),
)
def test_random_trees_models_and_contexts(tokens, titles, texts, name, scale, nodes_per_forward, top_k, seed):
    catalog = make_catalog(tokens, titles)
    model = make_model(name, scale, seed=seed)
    contexts = [[*text, tokens.marker_id] for text in texts]
    rng = np.random.default_rng(seed)
    targets = targets_of(catalog, len(contexts), seed)
    masks = {
        "excluded_B": [[i for i in catalog.item_ids if rng.random() < 0.3] for _ in contexts],
        "candidates_B": [[i for i in catalog.item_ids if rng.random() < 0.7] for _ in contexts],
    }
    whole = DistributionRanker(catalog, model)
    table = whole.log_probs(contexts).numpy()
    ranker = LikelihoodRanker(
        catalog, model, nodes_per_forward=nodes_per_forward, tokens_per_forward=4 * seed % 999 + 1
    )
    for names in ((), ("excluded_B",), ("candidates_B",), ("excluded_B", "candidates_B")):
        asked = {name: masks[name] for name in names}
        found = ranker.rank(contexts, targets, top_k=top_k, **asked)
        expected = whole.rank(contexts, targets, top_k=max(top_k, 1), **asked)
        if top_k == 0:
            assert found.top_ids_B_K == [[] for _ in contexts]
            found = Ranking(**{**vars(found), "top_ids_B_K": expected.top_ids_B_K})
            found = Ranking(**{**vars(found), "top_scores_B_K": expected.top_scores_B_K})
        check_exact(found, expected, table, catalog)
    tight = LikelihoodRanker(catalog, model, node_budget=1 + seed % 7, cap=1 + seed % 5).rank(contexts, targets)
    expected = whole.rank(contexts, targets)
    assert (tight.lowest_B <= expected.ranks_B).all()
    assert (tight.highest_B >= expected.ranks_B).all()


@pytest.mark.parametrize("titles", [["Alien", "Alien 3"], ["Alien", "Alien 3", "Aliens", "Alien 3 a"], ["a", "a"]])
def test_nested_titles(tokens, titles):
    catalog, model = make_catalog(tokens, titles), make_model()
    context = [7, 9, tokens.marker_id]
    whole = DistributionRanker(catalog, model)
    table = whole.log_probs([context]).numpy()
    for target in catalog.item_ids:
        found = LikelihoodRanker(catalog, model).rank([context], [target], top_k=10)
        check_exact(found, whole.rank([context], [target], top_k=10), table, catalog)


def test_one_item_and_no_context(tokens):
    catalog, model = make_catalog(tokens, ["Alien"]), make_model()
    ranker, context = LikelihoodRanker(catalog, model), [5, tokens.marker_id]
    found = ranker.rank([context], ["i0"], excluded_B=[["i0"]])
    assert (found.ranks_B.tolist(), found.top_ids_B_K, found.log_probs_B.tolist()) == ([1], [["i0"]], [0.0])
    assert (found.lowest_B.tolist(), found.highest_B.tolist(), found.n_nodes_B.tolist()) == ([1], [1], [0])
    found = ranker.rank([context], ["i0"], candidates_B=[[]])
    assert (found.ranks_B.tolist(), found.top_ids_B_K) == ([1], [[]])
    assert ranker.rank([context], ["i0"], top_k=0).top_ids_B_K == [[]]
    assert ranker.rank([], []).ranks_B.shape == (0,)


def test_budget_and_cap_give_brackets_that_hold_the_rank(catalog, contexts):
    model = make_model(scale=3.0)
    targets = targets_of(catalog, len(contexts))
    expected = DistributionRanker(catalog, model).rank(contexts, targets, top_k=10)
    widths = []
    for budget in (1, 5, 20, 60, 120, 4096):
        found = LikelihoodRanker(catalog, model, node_budget=budget).rank(contexts, targets, top_k=10)
        path = max(map(len, catalog.paths))
        assert (found.n_nodes_B <= max(budget, path)).all()
        assert (found.lowest_B <= expected.ranks_B).all()
        assert (expected.ranks_B <= found.highest_B).all()
        assert (found.highest_B <= len(catalog)).all()
        assert found.complete_B[found.lowest_B == found.highest_B].all() or budget < 4096
        assert (found.lowest_B == found.highest_B)[found.complete_B].all()
        widths.append((found.highest_B - found.lowest_B).sum())
        for top, of_expected, exact in zip(found.top_ids_B_K, expected.top_ids_B_K, found.top_exact_B, strict=True):
            assert not exact or top == of_expected
    assert widths[0] > 0
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] == 0

    for cap in (1, 10, 100):
        found = LikelihoodRanker(catalog, model, cap=cap, nodes_per_forward=32).rank(contexts, targets, top_k=1)
        within = expected.ranks_B <= cap
        assert found.ranks_B[within].tolist() == expected.ranks_B[within].tolist()
        assert (found.lowest_B == found.highest_B)[within].all()
        assert (found.lowest_B[~within] > cap).all()
        assert (found.ranks_B[~within] == min(cap + 1, len(catalog))).all()
        assert (found.lowest_B <= expected.ranks_B).all()
        assert (expected.ranks_B <= found.highest_B).all()


def test_a_cap_saves_nodes(catalog, contexts):
    model = make_model(scale=3.0)
    worst = DistributionRanker(catalog, model).log_probs(contexts).argmin(1)
    targets = [catalog.item_ids[i] for i in worst]

    def n_nodes(cap: int | None) -> int:
        return LikelihoodRanker(catalog, model, cap=cap, nodes_per_forward=32).rank(contexts, targets).n_nodes_B.sum()

    assert n_nodes(3) < n_nodes(None) / 2


@pytest.mark.parametrize("scale", [1.0, 4.0, 12.0])
def test_nodes_stay_under_depth_over_p(catalog, contexts, scale):
    model = make_model(scale=scale)
    table = DistributionRanker(catalog, model).log_probs(contexts).numpy()
    order = np.argsort(-table, axis=1)
    depth = max(map(len, catalog.paths))
    for place in (0, 2, 10, 100):
        found = LikelihoodRanker(catalog, model).rank(
            contexts, [catalog.item_ids[i] for i in order[:, place]], top_k=1
        )
        bound = depth / np.exp(found.log_probs_B - BAND)
        assert (found.n_nodes_B <= bound).all()
        assert (found.n_nodes_B <= DistributionRanker(catalog, model).n_nodes_evaluated).all()  # each node once


def test_memory_is_bounded(catalog, contexts, monkeypatch):
    model = make_model(scale=3.0)
    sizes, cached = [], []
    forward = model.model.forward

    def spy(**kwargs):
        if kwargs["past_key_values"].get_seq_length():
            sizes.append(kwargs["input_ids"].numel())
            cached.append(kwargs["attention_mask"].shape[0] * kwargs["attention_mask"].shape[-1])
        return forward(**kwargs)

    monkeypatch.setattr(model.model, "forward", spy)
    targets = targets_of(catalog, len(contexts))
    whole = LikelihoodRanker(catalog, model).rank(contexts, targets)
    forgets: list[int] = []
    original = nodes.NodeReader.forget_nodes
    monkeypatch.setattr(nodes.NodeReader, "forget_nodes", lambda self: (forgets.append(1), original(self)))
    for nodes_per_forward, tokens_per_forward in ((64, 400), (2048, 400), (7, 100)):
        sizes.clear()
        cached.clear()
        forgets.clear()
        ranker = LikelihoodRanker(
            catalog, model, nodes_per_forward=nodes_per_forward, tokens_per_forward=tokens_per_forward
        )
        found = ranker.rank(contexts, targets)
        assert forgets
        assert max(sizes) == ranker.most_nodes <= nodes_per_forward
        assert max(cached) <= tokens_per_forward
        assert found.ranks_B.tolist() == whole.ranks_B.tolist()
        assert found.top_ids_B_K == whole.top_ids_B_K


def test_masks_and_candidates(catalog, contexts):
    model = make_model(scale=4.0)
    rng = np.random.default_rng(3)
    targets = targets_of(catalog, len(contexts))
    whole, ranker = DistributionRanker(catalog, model), LikelihoodRanker(catalog, model)
    table = whole.log_probs(contexts).numpy()
    few = [[*rng.choice(catalog.item_ids, 12).tolist(), "nowhere"] for _ in contexts]
    with_target = [[*items, target] for items, target in zip(few, targets, strict=True)]
    many = [rng.choice(catalog.item_ids, 250).tolist() for _ in contexts]
    asked = (
        {"excluded_B": few},
        {"excluded_B": with_target},  # never the target
        {"excluded_B": many},
        {"candidates_B": few},  # without the target: last
        {"candidates_B": with_target},
        {"candidates_B": many, "excluded_B": few},
        {"candidates_B": [[] for _ in contexts]},
    )
    for masks in asked:
        found = ranker.rank(contexts, targets, top_k=5, **masks)
        check_exact(found, whole.rank(contexts, targets, top_k=5, **masks), table, catalog)
    everything = ranker.rank(contexts, targets, top_k=5).n_nodes_B
    assert ranker.rank(contexts, targets, top_k=5, candidates_B=with_target).n_nodes_B.sum() < everything.sum()


def test_equal_rows_are_searched_once(catalog, contexts, monkeypatch):
    ranker = LikelihoodRanker(catalog, make_model())
    made: list[int] = []
    original = best_first.Search.__init__

    def spy(self, reader, tree, goals, limits):
        made.append(len(goals))
        original(self, reader, tree, goals, limits)

    monkeypatch.setattr(best_first.Search, "__init__", spy)
    found = ranker.rank([contexts[0]] * 3 + [contexts[1]], ["i0", "i0", "i1", "i0"])
    assert made == [3]
    assert found.ranks_B[0] == found.ranks_B[1]
    assert found.log_probs_B[0] != found.log_probs_B[2]


@pytest.mark.parametrize("scale", [4.0, *(pytest.param(scale, marks=pytest.mark.slow) for scale in (1.0, 12.0))])
def test_mixture_is_the_mean_of_the_distributions(catalog, contexts, scale):
    model = make_model(scale=scale)
    paths = [contexts[:3], contexts[2:5], [contexts[0]] * 3, [contexts[5], contexts[5], contexts[1]]]
    targets = targets_of(catalog, len(paths))
    log_probs = DistributionRanker(catalog, model).log_probs([c for of_user in paths for c in of_user]).double()
    table = (log_probs.view(len(paths), 3, -1).logsumexp(1) - np.log(3)).numpy()
    excluded = [list(catalog.item_ids[:40])] * len(paths)
    for masks in ({}, {"excluded_B": excluded}):
        for nodes_per_forward in (3, 50, 2048):
            ranker = LikelihoodRanker(catalog, model, nodes_per_forward=nodes_per_forward)
            found = ranker.rank_mixture(paths, targets, top_k=7, **masks)
            check_exact(found, rank_scores(catalog, table, targets, top_k=7, **masks), table, catalog)
            assert ranker.most_nodes <= nodes_per_forward
    single = LikelihoodRanker(catalog, model).rank([contexts[0]], targets[2:3], top_k=7)
    assert found.log_probs_B[2] == pytest.approx(single.log_probs_B[0], abs=BAND)  # three times the same path


def test_top_items_without_a_target(catalog, contexts):
    model = make_model(scale=4.0)
    table = DistributionRanker(catalog, model).log_probs(contexts).numpy()
    ranker = LikelihoodRanker(catalog, model)
    found = ranker.search([[context] for context in contexts], [Goal(None)] * len(contexts), 6)
    for b, of_context in enumerate(found):
        assert [item for item, _ in of_context.top] == np.argsort(-table[b], kind="stable")[:6].tolist()
        assert of_context.top_exact
        assert (of_context.rank, of_context.lowest, of_context.highest, of_context.log_prob) == (None,) * 4


@pytest.mark.parametrize("scale", [1.0, 3.0, 8.0])
@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_brackets_hold_the_true_rank(catalog, contexts, name, scale):
    model = make_model(name, scale=scale).bfloat16()
    targets = targets_of(catalog, len(contexts))
    found = LikelihoodRanker(catalog, model).rank(contexts, targets)
    exact = DistributionRanker(catalog, model.float()).rank(
        contexts, targets
    )  # the same weights, without the rounding
    assert np.abs(found.log_probs_B - exact.log_probs_B).max() < 0.1  # far less than the band, on tiny models
    assert (found.lowest_B <= exact.ranks_B).all()
    assert (exact.ranks_B <= found.highest_B).all()


@pytest.mark.parametrize("modules", [["q_proj", "down_proj"], ["lm_head", "v_proj"]])
def test_lora(catalog, contexts, modules):
    config = LoraConfig(r=2, target_modules=modules, lora_dropout=0.5)
    model = get_peft_model(make_model("llama", scale=4.0), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    model.train()
    targets = targets_of(catalog, len(contexts))
    whole = DistributionRanker(catalog, model)
    found = LikelihoodRanker(catalog, model).rank(contexts, targets)
    check_exact(found, whole.rank(contexts, targets), whole.log_probs(contexts).numpy(), catalog)
    assert model.training


def test_what_cannot_be_ranked_is_refused(catalog, contexts):
    model = make_model()
    ranker = LikelihoodRanker(catalog, model)
    with pytest.raises(ValueError, match="shorten the history budget"):
        ranker.rank([[5] * 256], ["i0"])
    with pytest.raises(ValueError, match="a context is empty"):
        ranker.rank([contexts[0], []], ["i0", "i1"])
    with pytest.raises(ValueError, match="target 'x' is not one of the 300 items"):
        ranker.rank(contexts[:1], ["x"])
    with pytest.raises(ValueError, match="2 contexts but 1 rows in target_ids_B"):
        ranker.rank(contexts[:2], ["i0"])
    with pytest.raises(ValueError, match=r"same number of contexts.*found \[1, 2\]"):
        ranker.rank_mixture([contexts[:1], contexts[:2]], ["i0", "i1"])
    with pytest.raises(ValueError, match="node_budget must be 1 or more, found 0"):
        LikelihoodRanker(catalog, model, node_budget=0)
