import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from anyo_rl.teacher.policy import (
    attends_over_trees,
    causal_lm,
    head_logits,
    inference,
    last_hidden,
    row_logits,
    set_attention_dropout,
    tree_attention,
)

SIZE = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


@pytest.fixture
def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZE))


@pytest.mark.parametrize("kind", ["plain", "bias", "softcap", "other head"])
def test_row_logits_are_the_models_own(kind):
    if kind == "softcap":
        model = Gemma2ForCausalLM(Gemma2Config(**SIZE, final_logit_softcapping=0.05)).eval()
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZE)).eval()
    if kind == "bias":
        model.lm_head = nn.Linear(16, 40)
    if kind == "other head":
        model.lm_head = nn.Sequential(nn.Linear(16, 40), nn.Tanh())
    ids = torch.tensor([[3, 4, 5], [6, 7, 8]])
    row, tokens = torch.tensor([0, 2, 2, 1]), torch.tensor([5, 0, 39, 5])
    with torch.no_grad():
        with last_hidden(model) as states:
            expected = model(ids).logits
        found = row_logits(model, states[0], row, tokens)
        torch.testing.assert_close(head_logits(model, states[0]), expected, atol=1e-6, rtol=1e-5)
        model(ids)
    assert len(states) == 1  # what is computed afterwards is not kept
    assert found.shape == (2, 4)
    torch.testing.assert_close(found, expected[:, row, tokens], atol=1e-6, rtol=1e-5)


def test_row_logits_are_fp32_for_half_weights(llama):
    model = llama.bfloat16()
    hidden = torch.randn(1, 2, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = row_logits(model, hidden, torch.tensor([1]), torch.tensor([7]))
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx((hidden[0, 1].float() @ model.lm_head.weight[7].float()).item(), abs=1e-6)


def test_what_is_no_causal_lm_is_refused(llama):
    assert causal_lm(llama) is llama
    for other in (nn.Linear(2, 2), LlamaModel(LlamaConfig(**SIZE))):
        with pytest.raises(TypeError, match="is not a causal language model of transformers"):
            causal_lm(other)


@pytest.mark.parametrize("own", ["flash_attention_2", "eager"])
def test_attention_over_a_tree_is_put_back_even_after_an_error(llama, own):
    llama.config._attn_implementation = own
    assert attends_over_trees(llama)

    def ask() -> None:
        with tree_attention(llama):
            assert llama.config._attn_implementation == ("eager" if own == "eager" else "sdpa")
            raise KeyError

    with pytest.raises(KeyError):
        ask()
    assert llama.config._attn_implementation == own


@pytest.mark.parametrize("training", [True, False])
def test_inference_restores_the_mode_even_after_an_error(llama, training):
    llama.train(training)

    def ask() -> None:
        with inference(llama):
            assert not llama.training
            assert not torch.is_grad_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        ask()
    assert llama.training is training
    assert torch.is_grad_enabled()


def test_dropout_of_the_attention_is_in_training_alone(llama):
    set_attention_dropout(llama, 0.5)
    ids = torch.tensor([[3, 4, 5, 6]])
    torch.manual_seed(0)
    trained = [llama.train()(ids).logits for _ in range(2)]
    asked = [llama.eval()(ids).logits for _ in range(2)]
    assert not torch.equal(*trained)
    assert torch.equal(*asked)
    assert llama.config.attention_dropout == 0.0  # a teacher is saved as it was
    set_attention_dropout(llama, 0.0)
    assert torch.equal(llama.train()(ids).logits, asked[0])
