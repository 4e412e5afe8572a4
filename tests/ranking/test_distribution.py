"""The engine against brute force: every item scored by itself, renormalised over the tree's children at each node.

Tolerance: 1e-4 in the log-probability of an item, fp32.
"""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.ranking.distribution import DistributionRanker, rank_scores
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.teacher.make import make_tiny_teacher
from anyo_rl.teacher.policy import head_logits, last_hidden, row_logits
from anyo_rl.teacher.tokens import Tokens

TOLERANCE = 1e-4
SIZE = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256, "bos_token_id": 1, "eos_token_id": 1}
CONFIGS = {
    "llama": lambda: LlamaConfig(**SIZE, mlp_bias=True),
    "qwen3": lambda: Qwen3Config(**SIZE),
    "gemma": lambda: GemmaConfig(**SIZE),
    "granite": lambda: GraniteConfig(**SIZE, logits_scaling=0.5),
    "gpt2": lambda: GPT2Config(vocab_size=320, **GPT2),
}

WITHOUT_TREES = [
    lambda: Gemma2Config(**SIZE, sliding_window=8),
    lambda: MistralConfig(**SIZE, sliding_window=8),
    lambda: Qwen3Config(**SIZE, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    lambda: Lfm2Config(**SIZE, layer_types=["conv", "full_attention"], block_multiple_of=8),
]


def make_model(config, attention: str = "sdpa", scale: float = 8.0) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ln_" not in name:  # far from uniform
                parameter.mul_(scale)
    return model.eval()


def brute_force(model: nn.Module, catalog: Catalog, contexts) -> np.ndarray:
    """(B, N) log-probabilities, item by item."""
    tree, training = catalog.tree, model.training
    model.eval()
    table = np.zeros((len(contexts), len(catalog)))
    for b, context in enumerate(contexts):
        length = max(map(len, catalog.paths))  # what follows a path, a causal model does not see
        ids = torch.tensor([[*context, *path, *[0] * (length - len(path))] for path in catalog.paths])
        with torch.no_grad():
            logits_N_T_V = model(input_ids=ids).logits.double()
        for i, path in enumerate(catalog.paths):
            logits, node = logits_N_T_V[i], 0
            for depth, token in enumerate(path):
                children = tree.token[tree.children(node)].tolist()
                at_node = logits[len(context) - 1 + depth][children].log_softmax(0)
                table[b, i] += at_node[children.index(token)].item()
                node = tree.walk(path[: depth + 1])
    model.train(training)
    return table


@pytest.fixture(scope="module")
def contexts(small_tokens: Tokens) -> list[list[int]]:
    """Contexts of unequal length, one twice, one of the marker alone."""
    prompts = [
        ("History:\nAlien\nNext:\n", ["a", "b c"]),
        ("x", []),
        ("Toy Story\nToys\nmug\n", ["wants 3"]),
        ("x", []),
    ]
    made = [[*small_tokens.context_ids(p), *small_tokens.reasoning_ids(s)] for p, s in prompts]
    return [*made, [small_tokens.marker_id]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_brute_force(small_catalog, contexts, name, attention):
    model = make_model(CONFIGS[name](), attention)
    expected = brute_force(model, small_catalog, contexts)
    assert expected.max(1).min() > np.log(0.12)  # far from uniform, or the comparison would say little
    for nodes_per_forward in (1, 3, 512):
        found = DistributionRanker(small_catalog, model, nodes_per_forward).log_probs(contexts)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), expected, atol=TOLERANCE, rtol=0)
        np.testing.assert_allclose(found.double().exp().sum(1), 1, atol=1e-5)


def test_batching_changes_nothing(small_catalog, contexts):
    model = make_model(CONFIGS["qwen3"]())
    whole = DistributionRanker(small_catalog, model).log_probs(contexts)
    one_by_one = DistributionRanker(small_catalog, model, tokens_per_forward=1).log_probs(contexts)
    torch.testing.assert_close(one_by_one, whole, atol=TOLERANCE, rtol=0)
    backwards = DistributionRanker(small_catalog, model, tokens_per_forward=60).log_probs(contexts[::-1])
    torch.testing.assert_close(backwards.flip(0), whole, atol=TOLERANCE, rtol=0)
    assert torch.equal(whole[1], whole[3])


words = st.sampled_from(["Alien", "3", "Aliens", "oak", "lamp", "a", "b", "é"])


@settings(max_examples=8)
@given(st.lists(st.lists(words, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=10), st.integers(1, 9))
def test_brute_force_on_random_catalogs(small_tokens, contexts, titles, nodes_per_forward):
    ids = [str(index) for index in range(len(titles))]
    catalog = build_catalog(pl.DataFrame({"item_id": ids, "title": titles}), small_tokens)
    model = make_model(CONFIGS["qwen3"]())
    found = DistributionRanker(catalog, model, nodes_per_forward).log_probs(contexts[:2]).numpy()
    np.testing.assert_allclose(found, brute_force(model, catalog, contexts[:2]), atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(np.exp(found).sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["lm_head", "v_proj"], ["embed_tokens", "v_proj"]])
def test_lora(small_catalog, contexts, targets):
    model = get_peft_model(make_model(CONFIGS["llama"]()), LoraConfig(r=2, target_modules=targets, lora_dropout=0.5))
    plain = DistributionRanker(small_catalog, model.get_base_model()).log_probs(contexts)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
    model.train()
    found = DistributionRanker(small_catalog, model).log_probs(contexts)
    assert (found - plain).abs().max() > 0.1  # the adapter is seen
    np.testing.assert_allclose(found, brute_force(model, small_catalog, contexts), atol=TOLERANCE, rtol=0)
    assert model.training  # and its dropout was off: brute force ran in eval mode


def test_a_trained_head_beside_lora(small_catalog, contexts):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
    model = get_peft_model(make_model(CONFIGS["llama"]()), config)
    with torch.no_grad():
        model.get_base_model().lm_head.modules_to_save["default"].weight.mul_(-1)
    found = DistributionRanker(small_catalog, model).log_probs(contexts)
    np.testing.assert_allclose(found, brute_force(model, small_catalog, contexts), atol=TOLERANCE, rtol=0)


def test_wrappers_are_seen_through(small_catalog, contexts):
    model = make_model(CONFIGS["qwen3"]())
    wrapped = nn.Module()
    wrapped.module = model
    assert torch.equal(
        DistributionRanker(small_catalog, wrapped).log_probs(contexts),
        DistributionRanker(small_catalog, model).log_probs(contexts),
    )


def test_training_mode_comes_back_and_no_dropout_acts(small_catalog, contexts):
    model = make_model(LlamaConfig(**SIZE, attention_dropout=0.9))
    model.gradient_checkpointing_enable()
    calm = DistributionRanker(small_catalog, model).log_probs(contexts)
    assert not model.training
    model.train()
    ranker = DistributionRanker(small_catalog, model)
    assert torch.equal(ranker.log_probs(contexts), calm)
    assert model.training
    assert all(module.training for module in model.modules())
    assert not calm.requires_grad
    with pytest.raises(ValueError, match="shorten"):
        ranker.log_probs([[5] * 300])
    assert model.training


def test_weights_are_read_at_each_call(small_catalog, contexts):
    model = make_model(CONFIGS["qwen3"]())
    ranker = DistributionRanker(small_catalog, model)
    before = ranker.log_probs(contexts)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(-1)
    assert (ranker.log_probs(contexts) - before).abs().max() > 0.1


def test_bfloat16_is_close(small_catalog, contexts):
    model = make_model(CONFIGS["qwen3"](), scale=3)
    exact = DistributionRanker(small_catalog, model).log_probs(contexts)
    rough = DistributionRanker(small_catalog, model.bfloat16()).log_probs(contexts)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough.exp().sum(1), torch.ones(len(contexts)), atol=1e-5, rtol=0)
    assert (rough.exp() - exact.exp()).abs().max() < 0.1


def test_under_autocast_the_layers_round_and_the_head_does_not(small_catalog, contexts):
    targets = small_catalog.item_ids[: len(contexts)]
    model = make_model(CONFIGS["qwen3"](), scale=4.0)
    heads = []
    model.lm_head.register_forward_hook(lambda _, args, out: heads.append(out.dtype))
    full = DistributionRanker(small_catalog, model).log_probs(contexts)
    assert LikelihoodRanker(small_catalog, model).tie_band == 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = DistributionRanker(small_catalog, model).log_probs(contexts)
        ranker = LikelihoodRanker(small_catalog, model)
        assert ranker.tie_band == 0.5
        bounded = ranker.rank(contexts, targets)
        with last_hidden(model) as states:
            model(torch.tensor([contexts[0]]))
        states_D = states[0][0, -1].float()
        logits = row_logits(model, states[0][:, -1:], torch.tensor([0, 0]), torch.tensor([5, 9]))[0]
        assert head_logits(model, states[0]).dtype == torch.float32
    assert heads == [torch.bfloat16, torch.float32]  # the model's own, and ours
    torch.testing.assert_close(logits, (model.lm_head.weight[[5, 9]] @ states_D).detach(), rtol=1e-6, atol=1e-6)
    assert 1e-3 < (found - full).abs().max() < 0.5
    rows = np.arange(len(contexts))
    np.testing.assert_allclose(bounded.log_probs_B, found[rows, small_catalog.indices(targets)], atol=0.05)


def test_only_nodes_above_a_branching_are_evaluated(small_tokens):
    def n_nodes(*titles: str) -> tuple[int, int]:
        items = pl.DataFrame({"item_id": list(titles), "title": list(titles)})
        ranker = DistributionRanker(build_catalog(items, small_tokens), make_model(CONFIGS["qwen3"]()))
        return ranker.n_nodes_evaluated, ranker.n_edges

    assert n_nodes("mug") == (0, 0)
    assert n_nodes("mug", "zebra" * 20)[1] == 2  # the long forced tail costs nothing
    assert n_nodes("mug", "zebra" * 20)[0] <= 1  # the blank before both, where it is a token of its own


def test_ranks_follow_the_log_probs(small_catalog, contexts):
    ranker = DistributionRanker(small_catalog, make_model(CONFIGS["qwen3"]()))
    table = ranker.log_probs(contexts).numpy()
    targets = ["i0", "i4", "i9", "i4", "i2"]
    ranking = ranker.rank(contexts, targets, top_k=3)
    for b, target in enumerate(targets):
        best = np.argsort(-table[b], kind="stable")
        assert ranking.ranks_B[b] == 1 + best.tolist().index(int(target[1:]))
        assert ranking.top_ids_B_K[b] == [f"i{i}" for i in best[:3]]
        assert ranking.top_scores_B_K[b] == table[b][best[:3]].tolist()
        assert ranking.log_probs_B[b] == table[b, int(target[1:])]


def test_excluded_and_candidates_by_hand(small_catalog):
    table = np.log(np.array([[0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.05, 0.03, 0.01, 0.01]], dtype=np.float32))

    def rank(target, **kwargs):
        ranking = rank_scores(small_catalog, table, [target], top_k=2, **kwargs)
        return int(ranking.ranks_B[0]), ranking.top_ids_B_K[0], float(ranking.log_probs_B[0])

    log = {item: float(table[0, int(item[1])]) for item in small_catalog.item_ids}
    assert rank("i0") == (1, ["i0", "i1"], log["i0"])
    assert rank("i2") == (6, ["i0", "i1"], log["i2"])  # ties count against the target
    assert rank("i9") == (10, ["i0", "i1"], log["i9"])
    assert rank("i2", excluded_B=[["i0", "i3", "nowhere"]]) == (4, ["i1", "i2"], log["i2"])
    assert rank("i2", excluded_B=[["i2", "i0"]]) == (5, ["i1", "i2"], log["i2"])  # never the target
    assert rank("i2", candidates_B=[["i2", "i9", "i1"]]) == (2, ["i1", "i2"], log["i2"])
    assert rank("i2", candidates_B=[["i8", "i9"]]) == (10, ["i8", "i9"], log["i2"])  # not retrieved: last
    assert rank("i2", candidates_B=[["i8", "i9"]], excluded_B=[["i8", "i0"]]) == (8, ["i9"], log["i2"])
    everything = list(small_catalog.item_ids)
    assert rank("i7", excluded_B=[everything]) == (1, ["i7"], log["i7"])
    assert rank("i7", candidates_B=[[]]) == (10, [], log["i7"])
    assert table[0, 0] == np.float32(np.log(np.float32(0.3)))  # the table was not written to


def test_no_contexts_and_one_item(small_tokens, small_catalog):
    model = make_model(CONFIGS["qwen3"]())
    ranker = DistributionRanker(small_catalog, model)
    assert ranker.log_probs([]).shape == (0, 10)
    assert ranker.rank([], []).ranks_B.shape == (0,)
    single = build_catalog(pl.DataFrame({"item_id": ["a"], "title": ["Alien"]}), small_tokens)
    ranking = DistributionRanker(single, model).rank([[5, small_tokens.marker_id]], ["a"], excluded_B=[["a"]])
    assert (ranking.ranks_B.tolist(), ranking.top_ids_B_K, ranking.log_probs_B.tolist()) == ([1], [["a"]], [0.0])


def test_what_cannot_be_ranked_is_refused(small_tokens, small_catalog, contexts):
    model = make_tiny_teacher(small_tokens.tokenizer, hidden_size=16, n_layers=1, n_heads=2, max_length=40)
    ranker = DistributionRanker(small_catalog, model)
    longest = max(map(len, small_catalog.paths))
    ranker.log_probs([[5] * (40 - longest)])
    with pytest.raises(ValueError, match="a context and its item take 41 tokens, the model 40; shorten"):
        ranker.log_probs([[5] * (41 - longest)])
    with pytest.raises(ValueError, match="a context is empty"):
        ranker.log_probs([contexts[1], []])
    with pytest.raises(ValueError, match="target 'x' is not one of the 10 items"):
        ranker.rank(contexts[1:2], ["x"])
    with pytest.raises(ValueError, match="2 contexts but 1 rows in target_ids_B"):
        ranker.rank(contexts[:2], ["i0"])
    with pytest.raises(ValueError, match="2 contexts but 3 rows in excluded_B"):
        ranker.rank([contexts[1]] * 2, ["i0", "i1"], excluded_B=[[], [], []])


def test_another_vocabulary_is_refused(small_catalog):
    with pytest.raises(ValueError, match="but the model knows 50 tokens; build the catalog with the model's own"):
        DistributionRanker(small_catalog, make_model(Qwen3Config(**{**SIZE, "vocab_size": 50})))


@pytest.mark.parametrize("config", WITHOUT_TREES, ids=lambda make: type(make()).__name__)
def test_what_cannot_attend_over_a_tree_reads_each_path_anew(small_catalog, contexts, config):
    model = make_model(config(), scale=4.0)
    expected = brute_force(model, small_catalog, contexts)
    for limits in ({}, {"nodes_per_forward": 3, "tokens_per_forward": 25}):
        found = DistributionRanker(small_catalog, model, **limits).log_probs(contexts)
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)
        targets = small_catalog.item_ids[: len(contexts)]
        ranking = LikelihoodRanker(small_catalog, model, **limits).rank(contexts, targets, top_k=4)
        table = rank_scores(small_catalog, expected, targets, top_k=4)
        assert (ranking.lowest_B <= table.ranks_B).all()
        assert (table.ranks_B <= ranking.highest_B).all()
        np.testing.assert_allclose(ranking.log_probs_B, table.log_probs_B, atol=TOLERANCE)
        np.testing.assert_allclose(ranking.top_scores_B_K, table.top_scores_B_K, atol=TOLERANCE)


def test_mistral_without_a_window_ranks(small_catalog, contexts):
    model = make_model(MistralConfig(**SIZE, sliding_window=None))
    found = DistributionRanker(small_catalog, model).log_probs(contexts[:1])
    np.testing.assert_allclose(found, brute_force(model, small_catalog, contexts[:1]), atol=TOLERANCE, rtol=0)
