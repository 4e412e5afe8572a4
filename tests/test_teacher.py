from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from trl import ModelConfig

from anyo_rl.teacher import load_teacher, make_tiny_teacher, save_teacher, stop_at_marker, train_tokenizer

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
