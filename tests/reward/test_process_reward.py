import json
import pickle

import numpy as np
import pytest
import torch
from accelerate import PartialState
from transformers import AutoModelForTokenClassification

from anyo_rl.training.rewards.check import guard
from anyo_rl.values.prm import PRM_FILE, Prm
from reward.load import load_reward
from reward.process import ProcessReward

PROMPTS = ["Alien\n", "mug\n", "x\n", "mug\n"]
TEXTS = ["toys\nmug", "one\ntwo\nthree", "", "one"]


@pytest.fixture
def folder(small_teacher, small_tokens, tmp_path):
    """A PRM with random weights."""
    small_teacher.save_pretrained(tmp_path / "teacher")
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "teacher", num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(tmp_path / "prm")
    small_tokens.tokenizer.save_pretrained(tmp_path / "prm")
    (tmp_path / "prm" / PRM_FILE).write_text(json.dumps({"marker_token": "->", "chat_template_kwargs": None}))
    return str(tmp_path / "prm")


@pytest.fixture
def batch(small_tokens):
    """Three that end with the marker, one of these without a step, and one that does not."""
    ids = [small_tokens.tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    ids = [part if place == 3 else [*part, small_tokens.marker_id] for place, part in enumerate(ids)]
    return {"prompts": PROMPTS, "completions": [small_tokens.decode(part) for part in ids], "completion_ids": ids}


SLOW = {
    "min": min,
    "mean": lambda scores: sum(scores) / len(scores),
    "last": lambda scores: scores[-1],
    "product": lambda scores: (
        scores[0] * (scores[1] if len(scores) > 1 else 1) * (scores[2] if len(scores) > 2 else 1)
    ),
}


@pytest.mark.parametrize("reduction", ["min", "mean", "last", "product"])
def test_scores_after_each_step_become_one_number(folder, batch, small_tokens, reduction):
    reward = guard(load_reward({"name": "process", "kwargs": {"model": folder, "reduction": reduction}}))
    found = reward(**batch, rank=[1, 2, 3, None])
    scores = Prm.load(folder).scores([small_tokens.context_ids(p) for p in PROMPTS], batch["completion_ids"])
    for place in (0, 1):
        assert found[place] == pytest.approx(SLOW[reduction](scores[place][1:].tolist()))
        assert 0 <= found[place] <= 1
    assert found[2] is None  # no step: not applicable
    assert found[3] == 0.0  # never ended


def test_chats_and_an_empty_batch(folder, batch):
    reward = ProcessReward(folder)
    messages = [[{"role": "assistant", "content": text}] for text in batch["completions"]]
    assert reward(**batch) == reward(**{**batch, "completions": messages})
    assert reward(prompts=[], completions=[], completion_ids=[]) == []


def test_name_pickle_and_defaults(folder, batch):
    reward = ProcessReward(folder)
    assert (reward.__name__, reward.reduction) == ("process", "min")
    again = pickle.loads(pickle.dumps(reward))
    np.testing.assert_allclose([again(**batch)[0]], [reward(**batch)[0]])


def test_clear_errors(folder, batch, tmp_path):
    with pytest.raises(ValueError, match=r"unknown reduction 'max': choose one of min, mean, last, product"):
        ProcessReward(folder, reduction="max")
    with pytest.raises(ValueError, match=r"no PRM at .*nowhere: expected a folder that recipes/train_prm.py saved"):
        ProcessReward(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="unknown engine 'ray': choose one of hf, vllm"):
        ProcessReward(folder, engine="ray")
    with pytest.raises(ValueError, match="reward 'process' needs model"):
        load_reward("process")
    with pytest.raises(ValueError, match="train the PRM from a teacher with the same tokenizer"):
        ProcessReward(folder)(**{**batch, "completions": ["something else ->"] * 4})


def test_an_engine_is_a_setting_and_one_process_has_one(folder, batch, small_tokens, monkeypatch):
    """The engine itself is tested in tests/values/test_vllm_prm.py."""
    asked = []

    def load(model, **settings):
        asked.append((model, settings))
        return Prm.load(model)

    monkeypatch.setattr("reward.process.VllmPrm.load", load)
    reward = load_reward({"name": "process", "kwargs": {"model": folder, "engine": "vllm", "max_model_len": 99}})
    assert not asked  # it starts with the first batch
    assert reward(**batch) == ProcessReward(folder)(**batch)
    reward(**batch)
    assert asked == [(folder, {"on_gpu": False, "max_model_len": 99})]
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    with pytest.raises(
        ValueError, match="2 processes would start their vLLM engines on the same GPU: set engine to hf"
    ):
        ProcessReward(folder, engine="vllm")
