"""Constrained decoding in a vLLM engine writes items alone, by the probabilities that the ranking engine computes."""

import shutil

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import chisquare

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.catalog.tree_file import save_tree
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.sampling.constrained.decode import Decoding
from anyo_rl.sampling.constrained.decode import decode_items as decode_items_in_hand
from anyo_rl.sampling.vllm.constrained import constrained_params, decode_items

pytestmark = pytest.mark.slow


def catalog_of(tokens, titles) -> Catalog:
    return build_catalog(pl.DataFrame({"item_id": [f"i{i}" for i in range(len(titles))], "title": titles}), tokens)


@pytest.fixture(scope="module")
def catalog(vllm_engine, small_catalog) -> Catalog:
    """The ten items of `small_catalog`, in the engine's own tokens."""
    return catalog_of(vllm_engine.tokens, list(small_catalog.titles))


@pytest.fixture(scope="module")
def tree_file(catalog, tmp_path_factory):
    path = tmp_path_factory.mktemp("catalog") / "tree.npy"
    save_tree(catalog.tree, path)
    return path


@pytest.fixture(scope="module")
def contexts(vllm_engine) -> list[list[int]]:
    """Contexts of unequal length that end with the marker; the first was cut off inside an earlier answer."""
    tokens = vllm_engine.tokens
    prompts = [("History:\nAlien -> Toys\nNext:\n", ["a", "b c"]), ("x", []), ("Toys\nmug\n", ["wants 3"])]
    return [[*tokens.context_ids(prompt), *tokens.reasoning_ids(steps)] for prompt, steps in prompts]


def generate(vllm_engine, prompts, params) -> list[list[list[int]]]:
    outputs = vllm_engine.llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [[list(sample.token_ids) for sample in output.outputs] for output in outputs]


def test_greedy_writes_what_the_model_in_hand_writes(vllm_engine, catalog, tree_file, contexts):
    rng = np.random.default_rng(0)
    tokens = vllm_engine.tokens
    many = [[*rng.integers(5, tokens.marker_id, n).tolist(), tokens.marker_id] for n in range(40)]
    found = decode_items(vllm_engine.llm, catalog, tokens, tree_file, contexts + many, Decoding("greedy"))
    assert found == decode_items_in_hand(vllm_engine.model, catalog, tokens, contexts + many, Decoding("greedy"))
    assert len({row[0] for row in found}) > 3


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_draws_have_the_engine_s_probabilities(vllm_engine, catalog, tree_file, contexts, temperature):
    llm, tokens = vllm_engine.llm, vllm_engine.tokens
    common = (llm, catalog, tokens, tree_file, contexts)
    # Raises on what is no item.
    drawn = decode_items(*common, Decoding("sample", n=1000, temperature=temperature, seed=5))
    tempered = torch.nn.Linear(1, 1)  # the ranker knows no temperature; logits are linear in the head
    model = vllm_engine.model
    head = model.lm_head.weight
    tempered.weight = torch.nn.Parameter(head.detach() / temperature)
    model.lm_head.weight = tempered.weight
    try:
        probabilities = DistributionRanker(catalog, model).log_probs(contexts).double().exp().numpy()
    finally:
        model.lm_head.weight = head
    for row, expected in zip(drawn, probabilities, strict=True):
        assert expected.max() < 0.9
        counts = np.bincount(catalog.indices(row), minlength=len(catalog))
        rare = expected * len(row) < 5  # the test's approximation wants five expected in each class
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum()) * len(row)
        if expected[-1] < 5:
            counts, expected = np.append(counts[:-2], counts[-2:].sum()), np.append(expected[:-2], expected[-2:].sum())
        assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.001


def test_seeds_repeat(vllm_engine, catalog, tree_file, contexts):
    common = (vllm_engine.llm, catalog, vllm_engine.tokens, tree_file, contexts)
    first = decode_items(*common, Decoding("sample", n=20, temperature=2.0, seed=1))
    assert decode_items(*common, Decoding("sample", n=20, temperature=2.0, seed=1)) == first
    assert decode_items(*common, Decoding("sample", n=20, temperature=2.0, seed=2)) != first


def test_other_requests_of_the_batch_are_left_alone(vllm_engine, catalog, tree_file, contexts):
    """Requests of all kinds and lengths, more than the engine takes at once: they enter, leave and change places."""
    from vllm import SamplingParams

    tokens = vllm_engine.tokens
    other = catalog_of(tokens, ["lamp", "lamp oak", "mug oak", "Toys R"])
    other_file = tree_file.with_name("other.npy")
    save_tree(other.tree, other_file)
    rng = np.random.default_rng(0)
    prompts = [[*rng.integers(5, tokens.marker_id, n % 9).tolist(), tokens.marker_id] for n in range(120)]
    free = [
        SamplingParams(temperature=0.0, max_tokens=1 + n % 13, ignore_eos=True, detokenize=False) for n in range(120)
    ]
    alone = generate(vllm_engine, prompts, free)
    ours = constrained_params(catalog, tokens, tree_file, temperature=2.0, seed=0)
    theirs = constrained_params(other, tokens, other_file, temperature=2.0, seed=0)
    kinds = rng.integers(0, 3, len(prompts))
    params = [(free[i], ours, theirs)[kind] for i, kind in enumerate(kinds)]
    found = generate(vllm_engine, prompts, params)
    for i, kind in enumerate(kinds):
        if kind == 0:
            assert found[i] == alone[i]
        else:
            assert tuple(found[i][0]) in (catalog, other)[kind - 1].paths


@pytest.mark.parametrize("most", [0, 1, 5])
def test_a_budget_makes_every_completion_end_in_an_item(vllm_engine, catalog, tree_file, most):
    tokens = vllm_engine.tokens
    prompts = [tokens.context_ids("x y"), [5, tokens.marker_id, 6], [5], tokens.context_ids("Toys\n")]
    params = constrained_params(
        catalog, tokens, tree_file, max_reasoning_tokens=most, n=30, temperature=2.0, seed=most
    )
    cuts = set()
    for row in generate(vllm_engine, prompts, params):
        for written in row:
            cut = written.index(tokens.marker_id)
            cuts.add(cut)
            assert tokens.eos_id not in written[:cut]
            assert tuple(written[cut + 1 :]) in catalog.paths
    assert max(cuts) == most


def test_without_a_budget_everything_is_free_before_the_marker(vllm_engine, catalog, tree_file):
    tokens = vllm_engine.tokens
    prompts = [tokens.context_ids("x y"), [5, tokens.marker_id, 6, 7, 8], [5]]
    params = constrained_params(catalog, tokens, tree_file, temperature=0.0, max_tokens=9)
    plain = params.clone()
    plain.extra_args = None
    free = generate(vllm_engine, prompts, plain)
    assert all(tokens.marker_id not in row[0] for row in free)
    assert generate(vllm_engine, prompts, params) == free


def test_what_does_not_fit_is_refused_and_the_engine_goes_on(vllm_engine, catalog, tree_file, contexts, tmp_path):
    llm, tokens = vllm_engine.llm, vllm_engine.tokens
    common = (llm, catalog, tokens)
    gone = tmp_path / "gone.npy"
    with pytest.raises(ValueError, match="names no tree that can be read"):
        decode_items(*common, gone, contexts, Decoding("greedy"))
    broken = tmp_path / "broken.npy"
    broken.write_bytes(b"no tree")
    with pytest.raises(ValueError, match="is not a complete prefix tree"):
        decode_items(*common, broken, contexts, Decoding("greedy"))
    other = catalog_of(tokens, ["lamp", "mug"])
    with pytest.raises(ValueError, match="is of other token paths"):
        decode_items(llm, other, tokens, shutil.copy(tree_file, tmp_path / "copy.npy"), contexts, Decoding("greedy"))
    for wrong in (Decoding("beam"), Decoding("sample", temperature=2.5)):
        with pytest.raises(ValueError, match="vLLM takes sample or greedy, and at most 2"):
            decode_items(*common, tree_file, contexts, wrong)
    with pytest.raises(ValueError, match="2 of 3 contexts do not end with the marker"):
        decode_items(*common, tree_file, [contexts[0], [5], []], Decoding("greedy"))
    with pytest.raises(ValueError, match=r"take \d+ tokens, the model 256"):
        decode_items(*common, tree_file, [[5] * 253 + contexts[1]], Decoding("greedy"))
    # What comes past us is refused by the engine's frontend.
    params = constrained_params(catalog, tokens, tree_file)
    params.extra_args["anyo_rl_catalog"]["fingerprint"] = "0"
    with pytest.raises(Exception, match="is of other token paths"):
        generate(vllm_engine, contexts, params)
    assert decode_items(*common, tree_file, contexts, Decoding("greedy"))
