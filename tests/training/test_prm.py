import math
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from peft import LoraConfig
from transformers import TrainingArguments
from trl import ModelConfig

from anyo_rl.training.prm import PrmTrainer, collate, load_classifier, prm_dataset, step_loss
from anyo_rl.values.prm import IGNORED

QUIET = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}


@pytest.fixture
def labels(small_tokens) -> pl.DataFrame:
    """Paths of which one begins well and ends badly, and one the other way round."""
    texts = {"toys\nmug": [0.5, 0.9, 0.1], "lamp\nAlien": [0.5, 0.1, 0.9], "Toys": [0.5, 0.3]}
    return pl.DataFrame(
        {
            "prompt_ids": [small_tokens.context_ids("mug\n")] * 3,
            "token_ids": [small_tokens.reasoning_ids(text.split("\n")) for text in texts],
            "step_values": list(texts.values()),
        }
    )


@pytest.fixture
def teacher(small_teacher, small_tokens, tmp_path) -> ModelConfig:
    small_teacher.save_pretrained(tmp_path / "teacher")
    return ModelConfig(str(tmp_path / "teacher"), dtype="float32")


def trainer(teacher, labels, tokens, folder, peft_config=None, **settings) -> PrmTrainer:
    torch.manual_seed(0)
    data = prm_dataset(labels, tokens)
    args = TrainingArguments(output_dir=str(folder), per_device_train_batch_size=3, **QUIET, **settings)
    return PrmTrainer(
        load_classifier(teacher),
        args=args,
        train_dataset=data,
        eval_dataset=data,
        processing_class=tokens.tokenizer,
        peft_config=peft_config,
    )


def slow_loss(logits_B_W, labels_B_W) -> list[float]:
    """The cross-entropy of each labelled token, by its definition."""
    found = []
    for logits, labels in zip(logits_B_W, labels_B_W, strict=True):
        for logit, label in zip(logits, labels, strict=True):
            if label != IGNORED:
                p = 1 / (1 + math.exp(-logit))
                found.append(-label * math.log(p) - (1 - label) * math.log(1 - p))
    return found


def test_the_loss_is_that_of_a_slow_loop():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(4, 7)), rng.random((4, 7))
    labels[rng.random((4, 7)) < 0.6] = IGNORED
    outputs, given = SimpleNamespace(logits=torch.tensor(logits)[..., None]), torch.tensor(labels)
    losses = slow_loss(logits, labels)
    assert 2 < len(losses) < 20
    assert step_loss(outputs, given.float()).item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert step_loss(outputs, given.float(), 40).item() == pytest.approx(np.sum(losses) / 40, rel=1e-5)


def test_a_batch_by_hand():
    rows = [{"input_ids": [5, 6, 7], "labels": [IGNORED, 0.5, 1.0]}, {"input_ids": [8], "labels": [0.25]}]
    batch = {name: tensor.tolist() for name, tensor in collate(rows, 0).items()}
    assert batch == {
        "input_ids": [[5, 6, 7], [8, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "position_ids": [[0, 1, 2], [0, 0, 0]],
        "labels": [[IGNORED, 0.5, 1.0], [0.25, IGNORED, IGNORED]],
    }


def test_it_learns_what_each_state_is_worth(teacher, labels, small_tokens, tmp_path):
    made = trainer(teacher, labels, small_tokens, tmp_path, max_steps=60, learning_rate=3e-3)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    first = made.evaluate()["eval_loss"]
    made.train()
    assert all(not torch.equal(p, before[name]) for name, p in made.model.named_parameters())
    # No score has a lower loss than the labels themselves.
    truths = [value for values in labels["step_values"] for value in values]
    least = np.mean([-v * math.log(v) - (1 - v) * math.log(1 - v) for v in truths])
    assert least <= made.evaluate()["eval_loss"] < least + 0.03 < first


@pytest.mark.parametrize("size", [1, 3])
def test_accumulated_batches_weigh_each_label_alike(teacher, labels, small_tokens, tmp_path, size):
    """One update sees the same gradient, however its paths are cut into batches."""
    settings = {"max_steps": 1, "learning_rate": 0.0, "optim": "sgd", "max_grad_norm": 0.0}
    made = trainer(teacher, labels, small_tokens, tmp_path, gradient_accumulation_steps=3 // size, **settings)
    made.args.per_device_train_batch_size = made._train_batch_size = size
    made.model.dropout.p = 0.0
    kept = {}
    made.model.score.weight.register_hook(lambda grad: kept.setdefault("g", []).append(grad.clone()))
    made.train()
    assert len(kept["g"]) == 3 // size
    got = torch.stack(kept["g"]).sum(0)
    batch = collate(list(prm_dataset(labels, small_tokens)), small_tokens.tokenizer.pad_token_id)
    given = batch.pop("labels")
    made.model.zero_grad()
    made.model.eval()
    kept.clear()
    step_loss(made.model(**batch), given).backward()
    torch.testing.assert_close(got, kept["g"][0], atol=1e-6, rtol=1e-4)


def test_under_lora_adapters_and_the_head_move(teacher, labels, small_tokens, tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="TOKEN_CLS")
    made = trainer(teacher, labels, small_tokens, tmp_path, lora, max_steps=2, learning_rate=1e-2)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    made.train()
    moved = {name for name, p in made.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name or "modules_to_save" in name}
    assert any("score.modules_to_save" in name for name in moved)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no teacher at .* that a PRM can be made from"):
        load_classifier(ModelConfig(str(tmp_path), dtype="float32"))
