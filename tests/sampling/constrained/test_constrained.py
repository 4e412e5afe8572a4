"""Constrained decoding writes items alone, by the probabilities that the ranking engine computes."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LogitsProcessorList, Qwen3Config

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.catalog.tree import build_tree
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.sampling.constrained.constraint import CatalogConstraint
from anyo_rl.sampling.constrained.decode import Decoding, decode_items
from anyo_rl.sampling.transformers import left_padded
from anyo_rl.teacher.tokens import Tokens

SIZE = {
    "vocab_size": 320,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config}


def make_model(name: str, seed: int = 0, scale: float = 8.0):
    """A tiny model whose answers are far from uniform, with a generation config that would spoil decoding."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(CONFIGS[name](**SIZE)).float().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" not in parameter_name:
                parameter.mul_(scale)
    own = model.generation_config
    own.do_sample, own.top_k, own.temperature, own.repetition_penalty, own.num_beams = True, 1, 0.1, 9.0, 2
    return model


def catalog_of(tokens: Tokens, titles) -> Catalog:
    ids = [f"i{index}" for index in range(len(titles))]
    return build_catalog(pl.DataFrame({"item_id": ids, "title": titles}), tokens)


@pytest.fixture(scope="module")
def contexts(small_tokens: Tokens) -> list[list[int]]:
    """Contexts of unequal length that end with the marker."""
    prompts = [("History:\nAlien\nNext:\n", ["a", "b c"]), ("x", []), ("Toys\nmug\n", ["wants 3"])]
    return [[*small_tokens.context_ids(p), *small_tokens.reasoning_ids(s)] for p, s in prompts]


titles = st.lists(
    st.text("ab 3", min_size=1, max_size=6) | st.sampled_from(["Alien", "Alien 3", "Aliens", "Toy Story 2", "Toy"]),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize(
    "name", ["qwen3", *(pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS if name != "qwen3")]
)
@settings(max_examples=15)
@given(titles, st.integers(0, 3), st.integers(1, 6))
def test_every_mode_writes_items_alone(small_tokens, contexts, name, titles, seed, n):
    catalog, model = catalog_of(small_tokens, titles), make_model(name, seed)
    common = (model, catalog, small_tokens, contexts)
    # An unknown item would have raised: what is left to see is that nothing is missing, doubled or out of order.
    greedy = decode_items(*common, Decoding("greedy"))
    assert [len(row) for row in greedy] == [1] * len(contexts)
    drawn = decode_items(*common, Decoding("sample", n=n, temperature=3.0, seed=seed), batch_size=4)
    assert [len(row) for row in drawn] == [n] * len(contexts)
    for row in decode_items(*common, Decoding("beam", n=n)):
        assert 1 <= len(row) == len(set(row)) <= n
    log_probs = DistributionRanker(catalog, model).log_probs(contexts).numpy()
    k = min(n, len(catalog))
    for row, expected in zip(decode_items(*common, Decoding("beam", n=n, n_beams=24)), log_probs, strict=True):
        assert len(row) == k  # a beam as wide as the catalog finds the engine's best
        found = expected[catalog.indices(row)]
        np.testing.assert_allclose(found, np.sort(expected)[::-1][:k], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_takes_the_best_token_at_each_node(small_tokens, small_catalog, contexts, name):
    model, tree = make_model(name), small_catalog.tree
    expected = []
    for context in contexts:
        node, written = 0, []
        while tree.n_children[node]:
            with torch.no_grad():
                logits = model(torch.tensor([[*context, *written]])).logits[0, -1]
            children = tree.children(node)
            node = children.start + int(logits[tree.token[children].tolist()].argmax())
            written.append(int(tree.token[node]))
        expected.append([small_catalog.item_ids[list(small_catalog.paths).index(tuple(written))]])
    assert decode_items(model, small_catalog, small_tokens, contexts, Decoding("greedy")) == expected
    assert len({row[0] for row in expected}) > 1


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", CONFIGS)
def test_draws_have_the_engine_s_probabilities(small_tokens, small_catalog, contexts, name, temperature):
    model = make_model(name, scale=5.0)
    how = Decoding("sample", n=2000, temperature=temperature)
    drawn = decode_items(model, small_catalog, small_tokens, contexts, how, batch_size=6000)
    model.lm_head.weight.data /= temperature  # the engine knows no temperature; logits are linear in the head
    probabilities = DistributionRanker(small_catalog, model).log_probs(contexts).double().exp().numpy()
    for row, expected in zip(drawn, probabilities, strict=True):
        assert expected.max() < 0.9
        counts = np.bincount(small_catalog.indices(row), minlength=len(small_catalog))
        rare = expected * len(row) < 5  # the test's approximation wants five expected in each class
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum()) * len(row)
        if expected[-1] < 5:
            counts, expected = np.append(counts[:-2], counts[-2:].sum()), np.append(expected[:-2], expected[-2:].sum())
        assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.001


def test_seeds_repeat_and_the_model_is_left_as_it_was(small_tokens, small_catalog, contexts):
    model = make_model("llama").train()
    own, before = model.generation_config, model.generation_config.to_dict()
    untouched = torch.random.get_rng_state()
    common = (model, small_catalog, small_tokens, contexts)
    first = decode_items(*common, Decoding("sample", n=20, temperature=3.0, seed=1))
    assert decode_items(*common, Decoding("sample", n=20, temperature=3.0, seed=1)) == first
    assert decode_items(*common, Decoding("sample", n=20, temperature=3.0, seed=2)) != first
    assert torch.equal(torch.random.get_rng_state(), untouched)
    assert model.training
    assert model.generation_config is own
    assert own.to_dict() == before
    beams = decode_items(*common, Decoding("beam", n=3), batch_size=1)
    assert beams == decode_items(*common, Decoding("beam", n=3))
    assert beams[::-1] == decode_items(model, small_catalog, small_tokens, contexts[::-1], Decoding("beam", n=3))
    assert decode_items(model, small_catalog, small_tokens, [], Decoding("greedy")) == []


def test_what_does_not_fit_is_refused(small_tokens, small_catalog, contexts):
    model = make_model("llama")
    for wrong in ({"mode": "best"}, {"mode": "sample", "n": 0}, {"mode": "sample", "temperature": 0.0}):
        with pytest.raises(ValueError, match="expected greedy, sample or beam"):
            decode_items(model, small_catalog, small_tokens, contexts, Decoding(**wrong))
    for wrong in ({"mode": "greedy", "n": 2}, {"mode": "beam", "n": 3, "n_beams": 2}):
        with pytest.raises(ValueError, match=r"cannot give \d items with \d beams"):
            decode_items(model, small_catalog, small_tokens, contexts, Decoding(**wrong))
    with pytest.raises(ValueError, match="2 of 3 contexts do not end with the marker"):
        decode_items(model, small_catalog, small_tokens, [contexts[0], [5], []], Decoding("greedy"))
    with pytest.raises(ValueError, match=r"take \d+ tokens, the model 256"):
        decode_items(model, small_catalog, small_tokens, [[5] * 253 + contexts[1]], Decoding("greedy"))
    model.config.vocab_size = 40
    with pytest.raises(ValueError, match=r"has token \d+ but the model knows 40 tokens"):
        decode_items(model, small_catalog, small_tokens, contexts, Decoding("greedy"))


def generate(model, tokens: Tokens, prompts, constraint=None, **settings):
    """Completions by `generate` itself, left-padded prompts and all."""
    ids, mask = left_padded(prompts, tokens.tokenizer.pad_token_id, model.device)
    model.generation_config = GenerationConfig()
    config = GenerationConfig(eos_token_id=tokens.eos_id, pad_token_id=tokens.tokenizer.pad_token_id, **settings)
    processors = LogitsProcessorList([constraint(ids.shape[1])] if constraint else [])
    written = model.generate(input_ids=ids, attention_mask=mask, generation_config=config, logits_processor=processors)
    return written[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(
    "mode", [{"do_sample": False}, {"do_sample": True, "top_k": 0}, {"num_beams": 4, "num_return_sequences": 4}]
)
@pytest.mark.parametrize("most", [0, 1, 7])
def test_reasoning_under_a_budget_always_ends_in_an_item(small_tokens, small_catalog, name, mode, most):
    # A marker inside a prompt, as a chat template may put it there, starts no item.
    prompts = [small_tokens.context_ids("x y"), [5, small_tokens.marker_id, 6, 7, 8], [5]]
    tree = small_catalog.tree
    torch.manual_seed(0)
    completions = generate(
        make_model(name, scale=2.0),
        small_tokens,
        prompts,
        lambda width: CatalogConstraint(tree, small_tokens, width, max_reasoning_tokens=most),
        max_new_tokens=most + 1 + int(tree.depth.max()),
        **mode,
    )
    assert len(completions) == len(prompts) * mode.get("num_return_sequences", 1)
    for completion in completions:
        cut = completion.index(small_tokens.marker_id)
        assert cut <= most
        assert small_tokens.eos_id not in completion[:cut]
        item = completion[cut + 1 : completion.index(small_tokens.eos_id) + 1]
        assert tuple(item) in small_catalog.paths


def test_without_a_budget_everything_is_free_before_the_marker(small_tokens, small_catalog):
    model, tree = make_model("qwen3"), small_catalog.tree
    prompts = [small_tokens.context_ids("x y"), [5, small_tokens.marker_id, 6, 7, 8], [5]]
    free = generate(model, small_tokens, prompts, do_sample=False, max_new_tokens=9)
    assert all(small_tokens.marker_id not in row for row in free)
    constraint = lambda width: CatalogConstraint(tree, small_tokens, width)  # noqa: E731
    assert generate(model, small_tokens, prompts, constraint, do_sample=False, max_new_tokens=9) == free


paths = st.lists(
    st.lists(st.integers(0, 3), max_size=5).map(lambda path: (*path, 9)), min_size=1, max_size=15, unique=True
)


@given(paths, st.data())
def test_masks_are_those_of_a_dict_of_prefixes(paths, data):
    """Step by step, rows at all stages of their way, sometimes changing places as beams do."""
    marker, eos, width = 8, 9, 3

    class Ids:
        marker_id, eos_id = marker, eos

    allowed: dict[tuple[int, ...], set[int]] = {}
    for path in paths:
        for end in range(len(path)):
            allowed.setdefault(path[:end], set()).add(path[end])
    tree = build_tree(paths)
    constraint = CatalogConstraint(tree, Ids(), prompt_width=width)
    reasoning = st.lists(st.integers(0, 7), max_size=3)
    rows = data.draw(st.lists(st.tuples(reasoning, st.sampled_from(paths)), min_size=1, max_size=6))
    written = [[marker, 1, 1, *before, marker, *path, *[0] * 9][: 3 + 8] for before, path in rows]
    torch.manual_seed(0)
    for step in range(9):
        if data.draw(st.booleans()):
            order = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
            rows, written = [rows[i] for i in order], [written[i] for i in order]
        if data.draw(st.booleans()):  # one that has not seen the steps before
            constraint = CatalogConstraint(tree, Ids(), prompt_width=width)
        scores = torch.randn(len(rows), 10)
        found = constraint(torch.tensor([row[: width + step] for row in written]), scores.clone())
        for (before, _), row, old, new in zip(rows, written, scores, found, strict=True):
            prefix = tuple(row[width + len(before) + 1 : width + step])
            if step <= len(before):
                assert torch.equal(new, old)
                continue
            children = sorted(allowed.get(prefix, {eos}))
            expected = torch.full_like(old, -torch.inf)
            expected[children] = old[children].log_softmax(0)
            torch.testing.assert_close(new, expected)


def test_a_prompt_that_ends_with_the_marker_is_answered_at_once(small_tokens, small_catalog):
    constraint = CatalogConstraint(small_catalog.tree, small_tokens, prompt_width=3)
    found = constraint(
        torch.tensor([[5, 6, small_tokens.marker_id], [small_tokens.marker_id, 5, 6]]), torch.ones(2, 320)
    )
    first = small_catalog.tree.token[small_catalog.tree.children(0)]
    assert found[0].isfinite().nonzero()[:, 0].tolist() == first.tolist()
    assert torch.equal(found[1], torch.ones(320))
