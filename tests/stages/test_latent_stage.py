"""SFT of a teacher that thinks without words trains its thoughts, and an evaluation may ask with fewer."""

import polars as pl
import pytest
import torch
from accelerate import PartialState
from trl import ModelConfig, SFTConfig

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.evaluate import evaluate_run
from anyo_rl.stages.job import Job
from anyo_rl.stages.sft import DIRECTLY, train_sft

pytestmark = pytest.mark.slow


def job_of(folder, task, n_thoughts):
    args = TeacherArguments(reasoning_kind="latent", n_thoughts=n_thoughts, tiny_hidden_size=32, tiny_layers=1)
    return Job(folder, task, ModelConfig(dtype="float32"), args)


def test_thoughts_are_trained_and_fewer_are_asked_for(tmp_path):
    PartialState(cpu=True)
    data = DataArguments(toy_users=60, toy_categories=4)
    data.max_validation, data.max_test = 7, 11
    task = load_task(data)
    job = job_of(tmp_path, task, 2)
    training = SFTConfig(
        str(tmp_path),
        max_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        save_steps=3,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    before = job.opening.load(None)
    folder = train_sft(job, "direct", training, DIRECTLY)
    after = job.opening.load(folder)
    ids = after.tokens.tokenizer.convert_tokens_to_ids(["<thought_1>", "<thought_2>"])
    tables = [teacher.model.get_input_embeddings().weight[ids] for teacher in (before, after)]
    assert torch.all((tables[0] - tables[1]).abs().amax(1) > 1e-3)

    answers = tmp_path / "answers" / "direct.plain.parquet"
    found = []
    for n_thoughts in (2, 1):
        evaluate_run(job_of(tmp_path, task, n_thoughts), {"direct": folder}, baselines=False)
        found.append(pl.read_parquet(answers))
    assert found[0]["example_id"].to_list() == found[1]["example_id"].to_list()
    assert not found[0].equals(found[1])
