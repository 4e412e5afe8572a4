"""Gradient checkpointing changes the memory of a step and nothing else, with full weights and with LoRA."""

import copy

import polars as pl
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainingArguments
from trl import DPOConfig, ModelConfig, SFTConfig

from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.search.answers import How
from anyo_rl.training.advantages.ppo import Ppo
from anyo_rl.training.critic import attach_critic, train_critic
from anyo_rl.training.dpo import TeacherDPOTrainer
from anyo_rl.training.loop.validation import Validation
from anyo_rl.training.prm import PrmTrainer, load_classifier, prm_dataset
from anyo_rl.training.sft import TeacherSFTTrainer, sft_dataset
from tests.training.helpers import QUIET, grpo_config, reasoner

pytestmark = pytest.mark.slow

ROWS = [
    Row(example_id=f"u{u}:1", user_id=f"u{u}", prompt=prompt, history=[], target_id=target)
    for u, (prompt, target) in enumerate([("Alien\n", "i1"), ("mug\n", "i9")])
]
SETTINGS = {"max_steps": 2, "logging_steps": 1, "learning_rate": 1e-2, "per_device_train_batch_size": 4, **QUIET}


def lora(task_type="CAUSAL_LM"):
    return LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type=task_type)


@pytest.fixture
def make(small_teacher, small_catalog, small_tokens, tmp_path):
    """Makes each trainer from the same weights."""
    validation = Validation(ROWS, small_catalog, small_tokens, How("greedy", Sampling(max_new_tokens=3), top_k=1))
    small_teacher.save_pretrained(tmp_path / "teacher")

    def known(model, rows, **more):
        tokenizer = small_tokens.tokenizer
        return {"model": model, "train_dataset": rows, "processing_class": tokenizer, "validation": validation, **more}

    def make(kind, with_lora, checkpointing):
        torch.manual_seed(0)
        model, config = copy.deepcopy(small_teacher), lora() if with_lora else None
        settings = {"output_dir": str(tmp_path), "gradient_checkpointing": checkpointing, **SETTINGS}
        if kind == "sft":
            data = sft_dataset(ROWS, small_catalog, small_tokens, {row.example_id: [("toys",)] for row in ROWS})
            more = {"peft_config": config, "catalog": small_catalog}
            return TeacherSFTTrainer(args=SFTConfig(**settings), **known(model, data, **more))
        if kind in ("grpo", "ppo"):
            more = {"peft_config": config}
            if kind == "ppo":
                attach_critic(model)
                more = {"method": Ppo(), "peft_config": train_critic(config)}
            args = grpo_config(tmp_path, **SETTINGS, gradient_checkpointing=checkpointing)
            more["reward"] = lambda completion_ids, **_: [float(sum(ids) % 7) for ids in completion_ids]
            return reasoner(model, small_catalog, small_tokens, args, rows=ROWS, **more)
        if kind == "dpo":
            sides = {side: small_tokens.reasoning_ids([side]) for side in ("chosen", "rejected")}
            pairs = [
                {f"{side}_ids": ids for side, ids in sides.items()}
                | {"prompt_ids": small_tokens.context_ids(row.prompt), **dict.fromkeys(sides, "x"), **row.columns()}
                for row in ROWS
            ]
            more = {"ref_model": None if with_lora else copy.deepcopy(model), "item_loss_weight": 0.1}
            more |= {"catalog": small_catalog, "tokens": small_tokens, "peft_config": config}
            return TeacherDPOTrainer(args=DPOConfig(**settings), **known(model, Dataset.from_list(pairs), **more))
        labels = {"prompt_ids": [[5, 6]], "token_ids": [small_tokens.reasoning_ids(["a", "b"])]}
        data = prm_dataset(pl.DataFrame({**labels, "step_values": [[0.5, 0.9, 0.1]]}), small_tokens)
        classifier = load_classifier(ModelConfig(str(tmp_path / "teacher"), dtype="float32"))
        args = TrainingArguments(**settings)
        peft_config = lora("TOKEN_CLS") if with_lora else None
        classifier.dropout.p = 0.0
        return PrmTrainer(classifier, small_tokens.tokenizer, peft_config, args=args, train_dataset=data)

    return make


@pytest.mark.parametrize("with_lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["sft", "grpo", "ppo", "dpo", "prm"])
def test_the_same_weights_come_out(make, kind, with_lora):
    found = []
    for checkpointing in (False, True):
        trainer = make(kind, with_lora, checkpointing)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        trainer.train()
        assert trainer.model.is_gradient_checkpointing == checkpointing
        found.append({name: p.detach() for name, p in trainer.model.named_parameters()})
        moved = {name for name, p in found[-1].items() if not torch.equal(p, before[name])}
        if with_lora:
            assert moved == {name for name in before if "lora_" in name or "modules_to_save" in name}
        else:
            assert len(moved) > len(before) / 2
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-5, rtol=1e-4, msg=name)
