"""Item tokens: a rank is one product, and a teacher that was saved ranks as the one that was trained."""

from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn
from trl import ModelConfig

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.catalog.item_tokens import ItemTokens, adapters, load_answering, own_ids, semantic_ids, teacher_files
from anyo_rl.ranking.engine import best_first, nodes
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.protocol import Ranking
from anyo_rl.teacher.codes import show_bias
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.policy import block_logits, causal_lm, head_logits
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens

ITEMS = pl.DataFrame({"item_id": [f"x{n}" for n in range(40)], "title": [f"lamp {n}" for n in range(40)]})
PROMPTS = ["History:\n<i_3>\n<i_17>\nNext:\n", "History:\n<i_39>\nNext:\n", "lamp"]
TARGETS = ["x0", "x20", "x39"]


@pytest.fixture
def base(tmp_path):
    """A teacher that knows no item, by its folder."""
    tokenizer = train_tokenizer(["lamp History: Next:"], vocab_size=300)
    model = make_tiny_teacher(tokenizer, hidden_size=16, n_layers=2, n_heads=2, max_length=128)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    save_teacher(model, tokenizer, tmp_path / "base")
    return ModelConfig(model_name_or_path=str(tmp_path / "base"), dtype="float32")


def ranked(model: nn.Module, catalog: Catalog, tokens: Tokens, excluded: list[list[str]] | None = None) -> Ranking:
    contexts = [tokens.marked_context(tokens.context_ids(prompt), []) for prompt in PROMPTS]
    return LikelihoodRanker(catalog, model, tie_band=0).rank(contexts, TARGETS, top_k=5, excluded_B=excluded)


@torch.no_grad()
def trained(model: nn.Module) -> None:
    """Moves everything that is trained."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.5 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("form", ["full", "lora", "merged"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_teacher_ranks_as_the_trained_one(form, tied, base, tmp_path):
    ids = semantic_ids(tmp_path, ITEMS, ItemTokens("item"), base.model_name_or_path, None)
    base.use_peft, base.lora_target_modules = form != "full", ["q_proj", "v_proj"]

    def start():
        model, tokenizer = load_answering(base, ids)
        if not tied:
            model.config.tie_word_embeddings = False
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        return model, tokenizer

    model, tokenizer = start()
    tokens = Tokens.of(tokenizer)
    catalog = build_catalog(ITEMS, tokens, ids)
    before = ranked(model, catalog, tokens)
    if form != "full":
        model = get_peft_model(model, adapters(base, model, tokenizer, ids))
        show_bias(model)
    trained(model)
    found = ranked(model, catalog, tokens)
    assert np.abs(found.log_probs_B - before.log_probs_B).max() > 0.1
    folder = tmp_path / form
    if form == "lora":
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(start()[0], folder)
    else:
        save_teacher(model, tokenizer, folder, teacher_files(ids))
        assert own_ids(folder)
        assert semantic_ids(tmp_path, ITEMS, ItemTokens("item"), folder, None) == ids
        again, tokenizer = load_answering(ModelConfig(model_name_or_path=str(folder), dtype="float32"), ids)
        tokens = Tokens.of(tokenizer)
        catalog = build_catalog(ITEMS, tokens, ids)
    reread = ranked(again, catalog, tokens)
    assert reread.ranks_B.tolist() == found.ranks_B.tolist()
    assert reread.top_ids_B_K == found.top_ids_B_K
    np.testing.assert_allclose(reread.log_probs_B, found.log_probs_B, atol=1e-5)


@pytest.mark.parametrize("many", [2, 10**6], ids=["wide", "narrow"])
def test_a_wide_branching_is_ranked_as_a_product(many, base, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "WIDE", many)
    monkeypatch.setattr(best_first, "MANY", many)
    ids = semantic_ids(tmp_path, ITEMS, ItemTokens("item"), base.model_name_or_path, None)
    model, tokenizer = load_answering(base, ids)
    with torch.no_grad():
        model.get_input_embeddings().weight[-48:] *= 8
    tokens = Tokens.of(tokenizer)
    catalog = build_catalog(ITEMS, tokens, ids)
    codes = tokens.code_ids(ids.tokens())[:-1]
    excluded = [[], ["x3", "x21", "x5"], ["x1"]]
    found = ranked(model, catalog, tokens, excluded)
    for b, prompt in enumerate(PROMPTS):
        context = torch.tensor([tokens.marked_context(tokens.context_ids(prompt), [])])
        with torch.no_grad():
            log_p = causal_lm(model)(context).logits[0, -1, codes].double().log_softmax(0).numpy()
        out = [catalog.index[item] for item in excluded[b]]
        target = catalog.index[TARGETS[b]]
        assert found.log_probs_B[b] == pytest.approx(log_p[target], abs=1e-5)
        log_p[out] = -np.inf
        assert found.ranks_B[b] == 1 + (log_p > log_p[target]).sum()
        best = np.argsort(-log_p)[:5]
        assert found.top_ids_B_K[b] == [f"x{item}" for item in best]
        assert found.n_nodes_B[b] == 0  # nothing is read but the context


def test_states_meet_rows_of_the_head_that_do_not_follow_one_another(base):
    model, _ = load_answering(base, None)
    hidden = torch.randn(3, 16)
    for tokens in (torch.tensor([4, 7, 9]), torch.tensor([4, 5, 6])):
        torch.testing.assert_close(block_logits(model, hidden, tokens), head_logits(model, hidden)[:, tokens])
    wrapped = SimpleNamespace(get_output_embeddings=lambda: nn.Sequential(model.lm_head), config=model.config)
    with torch.no_grad():
        torch.testing.assert_close(block_logits(wrapped, hidden, tokens), head_logits(model, hidden)[:, tokens])
