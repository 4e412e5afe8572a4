"""Stages of one run do not stay in memory: what each held is let go of before the next."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel
from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.job import Job
from anyo_rl.stages.sft import DIRECTLY, train_sft
from anyo_rl.training.sft import TeacherSFTTrainer

pytestmark = pytest.mark.slow


def live(kind: type) -> list[object]:
    """What is in memory of a kind, whether or not anything still refers to it: nothing is collected here."""
    return [one for one in gc.get_objects() if isinstance(one, kind)]


@pytest.fixture
def job(tmp_path) -> Job:
    task = load_task(DataArguments(toy_users=40, toy_categories=4, max_validation=4, rationale_share=0.5))
    args = TeacherArguments(tiny_hidden_size=32, tiny_layers=1, tiny_vocab_size=300, max_reasoning_tokens=8)
    return Job(tmp_path, task, ModelConfig(), args)


def settings(folder: Path) -> SFTConfig:
    return SFTConfig(
        *(str(folder),),
        max_steps=2,
        per_device_train_batch_size=2,
        eval_strategy="steps",
        eval_steps=2,
        save_steps=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
        max_length=None,
    )


def test_two_sft_stages_end_with_the_memory_of_one(job, tmp_path, monkeypatch):
    held, trainers = [], []
    original = TeacherSFTTrainer.train

    def train(self, *args, **kwargs):
        trainers.append(weakref.ref(self))
        held.append((len(live(PreTrainedModel)), len(live(torch.optim.Optimizer))))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(TeacherSFTTrainer, "train", train)
    gc.collect()
    before = len(live(PreTrainedModel)), len(live(torch.optim.Optimizer))
    train_sft(job, "sft", settings(tmp_path))
    assert (len(live(PreTrainedModel)), len(live(torch.optim.Optimizer))) == before
    train_sft(job, "direct", settings(tmp_path), DIRECTLY)
    assert (len(live(PreTrainedModel)), len(live(torch.optim.Optimizer))) == before
    assert held[0] == held[1], "the second stage trains beside what the first one left"
    assert [trainer() for trainer in trainers] == [None, None]
