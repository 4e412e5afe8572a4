"""Thoughts without words: where they stand, whose they are, and that fewer may be taken."""

import re
from collections import Counter

import pytest
import torch
from trl import ModelConfig

from anyo_rl.catalog.item_tokens import adapters
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.kinds.load import load_kind
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.job import Job
from anyo_rl.teacher.save import save_teacher

TASK = load_task(DataArguments(toy_users=40, toy_categories=5))
THREE = "<thought_1><thought_2><thought_3>"


def job_of(folder, n_thoughts, start=None, **more):
    args = TeacherArguments(reasoning_kind="latent", n_thoughts=n_thoughts, tiny_hidden_size=32, tiny_layers=1, **more)
    return Job(folder, TASK, ModelConfig(model_name_or_path=start, dtype="float32"), args)


def test_thoughts_end_the_prompt_and_are_a_token_each(tmp_path):
    job = job_of(tmp_path, 3)
    teacher = job.opening.load(None)
    row = job.rows("test", teacher)[0]
    assert row.prompt.endswith(f"Next:\n{THREE}\n")
    ids = teacher.tokens.context_ids(row.prompt)
    vocabulary = teacher.tokens.tokenizer.get_added_vocab()
    assert ids[-4:-1] == [vocabulary[f"<thought_{n}>"] for n in (1, 2, 3)]
    assert max(ids) < len(teacher.model.get_input_embeddings().weight)
    words = load_kind("latent", {"n_thoughts": 2}).words
    assert words.question.endswith("next?\n<thought_1><thought_2>")
    assert load_kind("latent", {"n_thoughts": 0}).words == load_kind("steps").words


def test_data_cannot_hold_a_thought(tmp_path):
    teacher = job_of(tmp_path, 3).opening.load(None)
    assert teacher.tokens.safe_text("a <thought_2>lamp") == "a lamp"


def test_training_may_show_any_number_and_the_rest_shows_all(tmp_path):
    job = job_of(tmp_path, 3, kind_settings={"any_number": True})
    teacher = job.opening.load(None)
    found = Counter(len(re.findall(r"<thought_", row.prompt)) for row in job.rows("train", teacher))
    assert set(found) == {0, 1, 2, 3}
    assert min(found.values()) > sum(found.values()) / 8
    assert {len(re.findall(r"<thought_", row.prompt)) for row in job.rows("test", teacher)} == {3}
    again = [row.prompt for row in job.rows("train", teacher)[:9]]
    assert again == [row.prompt for row in job.rows("train", teacher)[:9]]


def test_fewer_are_taken_of_a_teacher_that_knows_more_and_more_are_refused(tmp_path):
    teacher = job_of(tmp_path, 3).opening.load(None)
    save_teacher(teacher.model, teacher.tokens.tokenizer, tmp_path / "teacher")
    folder = str(tmp_path / "teacher")
    fewer = job_of(tmp_path, 1, folder)
    again = fewer.opening.load(folder)
    assert fewer.rows("test", again)[0].prompt.endswith("Next:\n<thought_1>\n")
    table = teacher.model.get_input_embeddings().weight
    assert torch.equal(again.model.get_input_embeddings().weight, table)
    assert fewer.opening.catalog(folder)[0].tokenizer.get_added_vocab() == again.tokens.tokenizer.get_added_vocab()
    with pytest.raises(UsageError, match="n_thoughts is 4, and the teacher was trained with 3"):
        job_of(tmp_path, 4, folder).opening.load(folder)


def test_adapters_train_the_vectors_of_thoughts(tmp_path):
    teacher = job_of(tmp_path, 3).opening.load(None)
    lora = ModelConfig(use_peft=True, lora_target_modules=["q_proj"])
    config = adapters(lora, teacher.model, teacher.tokens.tokenizer, None)
    expected = teacher.tokens.tokenizer.convert_tokens_to_ids(re.findall(r"<.*?>", THREE))
    assert set(map(tuple, config.trainable_token_indices.values())) == {tuple(expected)}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"reasoning_kind": "steps", "n_thoughts": 2}, "reasoning kind 'steps' has no parameter 'n_thoughts'"),
        ({"reasoning_kind": "latent", "kind_settings": {"n_thoughts": 99}}, "n_thoughts"),
    ],
)
def test_what_cannot_be_is_refused(told, message):
    with pytest.raises(UsageError, match=message):
        TeacherArguments(**told).kind()
