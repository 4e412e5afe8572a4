import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.rows import sample_texts
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.finish import load_checkpoint, validation
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens

IDS = torch.tensor([[5, 6, 7, 8]])


def test_a_whole_checkpoint_is_loaded_as_it_was_saved(small_teacher, tmp_path):
    small_teacher.save_pretrained(tmp_path)

    def start():
        pytest.fail("a whole model needs no other")

    found = load_checkpoint(tmp_path, start).eval()
    with torch.no_grad():
        assert torch.equal(found(IDS).logits, small_teacher(IDS).logits)


def test_adapters_of_a_checkpoint_are_merged_into_the_model_that_the_stage_started_from(small_teacher, tmp_path):
    adapted = get_peft_model(copy.deepcopy(small_teacher), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.3)
    adapted.eval().save_pretrained(tmp_path)
    found = load_checkpoint(tmp_path, lambda: copy.deepcopy(small_teacher)).eval()
    assert not hasattr(found, "peft_config") or not any("lora" in name for name, _ in found.named_parameters())
    with torch.no_grad():
        assert not torch.allclose(found(IDS).logits, small_teacher(IDS).logits, atol=1e-2)
        torch.testing.assert_close(found(IDS).logits, adapted(IDS).logits, atol=1e-4, rtol=1e-4)


def test_validation_takes_the_runs_settings():
    task = load_task(DataArguments(toy_users=60, toy_categories=4, max_validation=7, mask_history=True))
    tokens = Tokens.of(train_tokenizer(sample_texts(task), 400))
    catalog = build_catalog(task.interactions.items, tokens)
    found = validation(task, catalog, tokens, TeacherArguments(n_paths=3, max_reasoning_tokens=5), "mixture")
    assert (found.n_paths, found.max_new_tokens, found.mask_history, found.mode) == (3, 5, True, "mixture")
    users = task.split("validation", 7)["user_id"].to_list()
    assert [row["user_id"] for row in found.rows] == users and len(users) == 7


def test_adapters_of_a_quantised_model_end_in_whole_weights(small_tokens, tmp_path):
    """Merged in full precision into what the adapters saw; merged in 4 bits, they would be rounded away."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    make_tiny_teacher(small_tokens.tokenizer, hidden_size=64, n_layers=2).save_pretrained(tmp_path / "start")
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")

    def start():
        return AutoModelForCausalLM.from_pretrained(tmp_path / "start", quantization_config=bits, dtype=torch.float32)

    adapted = get_peft_model(start(), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    adapted.save_pretrained(tmp_path / "adapters")
    found = load_checkpoint(tmp_path / "adapters", start).eval()
    save_teacher(found, small_tokens.tokenizer, tmp_path / "teacher")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "teacher").eval()
    assert not hasattr(saved.config, "quantization_config")
    assert {p.dtype for p in saved.parameters()} == {torch.float32}
    with torch.no_grad():
        # As in training: in eval mode bitsandbytes has another kernel on the CPU, off by itself.
        trained, before = adapted.train()(IDS).logits, start().train()(IDS).logits
        torch.testing.assert_close(saved(IDS).logits, trained, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(trained, before, atol=1e-2)
