import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from anyo_rl.encoders.titles import title_vectors
from anyo_rl.teacher.codes import add_item_tokens, show_bias, train_item_tokens
from anyo_rl.teacher.load import load_teacher, stop_at_marker
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens

IDS = torch.tensor([[5, 6, 7, 8]])


def load(folder: Path):
    return load_teacher(ModelConfig(model_name_or_path=str(folder), dtype="float32"))


def test_the_tokenizer_reads_back_any_text_and_keeps_the_marker_apart():
    tokenizer = train_tokenizer(["likes tea -> mug"] * 5, vocab_size=280)
    for text in ("likes tea -> mug", "日本語 🙂", "  two  blanks", "don't ,stop !", "a\n\nb\t"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.tokenize("tea->mug").count("->") == 1
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.padding_side) == ("<pad>", "<eos>", "left")
    assert len(tokenizer) <= 280
    words = [f"word{i}" for i in range(500)]
    assert len(train_tokenizer(words, vocab_size=300)) == 300
    assert len(train_tokenizer(words, vocab_size=10)) == 259


def test_the_tiny_teacher_repeats_and_leaves_other_draws_alone(small_tokens):
    torch.manual_seed(3)
    untouched = torch.rand(2)
    torch.manual_seed(3)
    models = [
        make_tiny_teacher(small_tokens.tokenizer, hidden_size=16, n_layers=1, n_heads=2, seed=s) for s in (0, 0, 1)
    ]
    assert torch.equal(torch.rand(2), untouched)
    first, same, other = (model.model.embed_tokens.weight for model in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert models[0].config.vocab_size % 8 == 0
    assert 0 <= models[0].config.vocab_size - len(small_tokens.tokenizer) < 8


def test_a_saved_teacher_is_the_same_and_stops_at_the_marker(small_teacher, small_tokens, tmp_path):
    stop_at_marker(small_teacher, small_tokens)
    folder = tmp_path / "sft" / "teacher"
    partial = folder.with_name("teacher.partial")
    partial.mkdir(parents=True)
    (partial / "config.json").write_text("{half")  # left by a kill
    save_teacher(small_teacher, small_tokens.tokenizer, folder)
    assert not partial.exists()
    model, tokenizer = load(folder)
    torch.testing.assert_close(model(IDS).logits, small_teacher(IDS).logits)
    assert model.generation_config.eos_token_id == [small_tokens.eos_id, small_tokens.marker_id]
    assert tokenizer.encode("Alien ->") == small_tokens.tokenizer.encode("Alien ->")
    assert tokenizer.padding_side == "left"
    assert model.config._attn_implementation == "sdpa"


def test_adapters_are_merged_when_saved(small_teacher, small_tokens, tmp_path):
    model = get_peft_model(small_teacher, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).eval()
    expected = model(IDS).logits.detach()
    save_teacher(model, small_tokens.tokenizer, tmp_path / "teacher")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher", dtype=torch.float32)
    torch.testing.assert_close(plain(IDS).logits, expected, atol=1e-4, rtol=1e-4)
    assert not list((tmp_path / "teacher").glob("adapter*"))


def test_what_is_no_teacher_is_refused(small_teacher, small_tokens, tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ValueError, match=r"no teacher at .*expected a model folder"):
            load(folder)
    small_tokens.tokenizer.save_pretrained(tmp_path)
    small_teacher.config.save_pretrained(tmp_path)
    torch.save(small_teacher.state_dict(), tmp_path / "pytorch_model.bin")  # a pickle may run code: never read
    with pytest.raises(ValueError, match=r"no teacher at .*expected a model folder with config\.json"):
        load(tmp_path)


def test_a_marker_that_cannot_be_told_from_other_tokens_is_refused(small_teacher, small_tokens):
    head = small_teacher.get_output_embeddings().weight
    with torch.no_grad():
        head[7] = head[small_tokens.marker_id]
    with pytest.raises(ValueError, match=r"marker '->' has the same vector as 1 other tokens.*set marker_token"):
        stop_at_marker(small_teacher, small_tokens)


CODES = [f"<{letter}_{number}>" for letter in "abc" for number in range(7)]


def fresh_teacher(tied: bool = True, reserve: int = 0):
    """A teacher of its own tokenizer, with rows in reserve that no token has and that are all alike."""
    tokenizer = train_tokenizer([" likes tea", " lamp oak"] * 3, vocab_size=300)
    model = make_tiny_teacher(tokenizer, hidden_size=16, n_layers=1, n_heads=2)
    if not tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() * 2)
    if reserve:
        model.resize_token_embeddings(len(tokenizer) + reserve, mean_resizing=False)
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight.data[len(tokenizer) :] = 100.0
    return model.eval(), tokenizer


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("reserve", [0, 8, 64])
def test_added_tokens_are_like_the_mean_and_no_two_alike(tied, reserve):
    model, tokenizer = fresh_teacher(tied, reserve)
    n_known = len(tokenizer)
    before = [layer.weight.detach().clone() for layer in (model.model.embed_tokens, model.lm_head)]
    logits = model(IDS).logits.detach()[..., :n_known]
    token_ids = add_item_tokens(model, tokenizer, CODES, seed=1)
    assert token_ids == list(range(n_known, n_known + len(CODES)))
    assert model.config.vocab_size == len(model.model.embed_tokens.weight) == len(model.lm_head.weight)
    assert len(tokenizer) <= model.config.vocab_size < max(len(tokenizer) + 8, n_known + reserve + 1)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    torch.testing.assert_close(model(IDS).logits[..., :n_known], logits)  # what it knew it still says
    for layer, old in zip((model.model.embed_tokens, model.lm_head), before, strict=True):
        new, known = layer.weight[token_ids], old[:n_known]
        assert torch.equal(layer.weight[:n_known], known)
        assert len(torch.unique(new, dim=0)) == len(CODES)
        # A tenth of the deviation, so 4 of them are 0.4.
        assert ((new - known.mean(0)).abs() < 0.5 * known.std(0)).all()
        assert torch.cdist(new, new).fill_diagonal_(1).min() > 0
    state = copy.deepcopy(model.state_dict())
    assert add_item_tokens(model, tokenizer, CODES[::-1], seed=2) == token_ids[::-1]
    assert all(torch.equal(state[name], found) for name, found in model.state_dict().items())
    again, other = fresh_teacher(tied, reserve)
    add_item_tokens(again, other, CODES, seed=1)
    assert all(torch.equal(state[name], found) for name, found in again.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_teacher_knows_its_added_tokens(tied, tmp_path):
    model, tokenizer = fresh_teacher(tied)
    token_ids = add_item_tokens(model, tokenizer, CODES)
    save_teacher(model, tokenizer, tmp_path / "teacher", {"notes.json": "{}"})
    assert (tmp_path / "teacher" / "notes.json").read_text() == "{}"
    again, reread = load(tmp_path / "teacher")
    assert Tokens.of(reread).code_ids(CODES) == [*token_ids, reread.eos_token_id]
    ids = torch.tensor([token_ids])
    torch.testing.assert_close(again(ids).logits, model(ids).logits)
    assert add_item_tokens(again, reread, CODES, seed=5) == token_ids
    torch.testing.assert_close(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_train_the_added_rows_and_no_other(tied, tmp_path):
    model, tokenizer = fresh_teacher(tied)
    token_ids = add_item_tokens(model, tokenizer, CODES)
    start = copy.deepcopy(model)
    config = train_item_tokens(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), model, token_ids)
    adapted = get_peft_model(model, config)
    show_bias(adapted)
    assert adapted.get_base_model().get_output_embeddings().bias is None  # TRL's fused head asks for it
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=10.0)
    ids = torch.tensor([[5, 6, *token_ids[:6], 7]])
    adapted(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    adapted.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = adapted(ids).logits
    merged = PeftModel.from_pretrained(copy.deepcopy(start), tmp_path).merge_and_unload()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, expected, atol=1e-5, rtol=1e-4)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    n_known = token_ids[0]
    for name in ("embed_tokens", "lm_head"):
        new, old = (dict(m.named_modules()) for m in (merged, start))
        now, before = (next(m.weight for n, m in side.items() if n.endswith(name)) for side in (new, old))
        assert torch.equal(now[:n_known], before[:n_known])
        assert (now[token_ids[:6]] - before[token_ids[:6]]).abs().max() > 1e-4


def test_adapters_are_left_alone_where_nothing_is_to_be_done():
    model, _ = fresh_teacher()
    assert train_item_tokens(None, model, [3]) is None
    config = LoraConfig(target_modules=["q_proj"])
    assert train_item_tokens(config, model, []).trainable_token_indices is None
    whole = LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    assert train_item_tokens(whole, model, [3]).trainable_token_indices is None
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(len(model.lm_head.weight)))
    with pytest.raises(ValueError, match="a head with a bias: set lora_modules_to_save to"):
        train_item_tokens(config, model, [3])


def test_title_vectors_are_means_of_token_vectors():
    model, tokenizer = fresh_teacher()
    tokens = Tokens.of(tokenizer)
    found = title_vectors(model, tokens, ["tea", "lamp oak", "->", ""])
    table = model.get_input_embeddings().weight.detach().numpy()
    for row, text in zip(found, (" tea", " lamp oak", " ?", " ?"), strict=True):
        np.testing.assert_allclose(row, table[tokenizer.encode(text)].mean(0), rtol=1e-6)
    assert found.dtype == np.float32
