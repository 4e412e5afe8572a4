import dataclasses
from pathlib import Path

import pytest
from trl import ModelConfig

from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.rows import sample_texts
from anyo_rl.run.shards import JobError
from anyo_rl.sampling.seeds import request_seed
from anyo_rl.sampling.shards import read_paths
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.job import Job
from anyo_rl.stages.sample import JobEngine, SampleArguments, sample_job
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.save import save_teacher


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Runs a job of six examples, with changes, and gives its paths."""
    task = load_task(DataArguments(toy_users=120, toy_categories=5))
    folder = tmp_path_factory.mktemp("job")
    tokenizer = train_tokenizer(sample_texts(task), 400)
    model = make_tiny_teacher(tokenizer, hidden_size=32, n_layers=1, n_heads=2)
    save_teacher(model, tokenizer, folder / "teacher")

    def run(name: str, *, teacher: str | Path | None = folder / "teacher", **changes):
        args = SampleArguments(output_dir=str(folder / name), max_examples=6, n_samples=2, n_shards=2)
        model_args = ModelConfig(model_name_or_path=str(teacher) if teacher else None)
        args = dataclasses.replace(args, **changes)
        sample_job(Job(folder / name, task, model_args, TeacherArguments(max_reasoning_tokens=5), args.seed), args)
        return read_paths(folder / name)

    return run


def test_paths_know_what_they_are_of(job):
    paths = job("whole", log_probs=True, sample_split="test", policy="first", seed=3)
    assert len(paths) == 12
    assert set(paths["split"]) == {"test"}
    assert set(paths["policy"]) == {"first"}
    assert paths["rank"].min() >= 1
    assert set(paths["cap"]) == {1000}
    assert paths["seed"].to_list() == [request_seed(3, example) for example in paths["example_id"]]
    assert paths["token_log_probs"].list.len().to_list() == paths["token_ids"].list.len().to_list()


@pytest.mark.slow
def test_without_ranks_the_rest_is_the_same(job):
    ranked, plain = job("ranked"), job("plain", rank=False)
    ranks = ["item_id", "item_title", "rank", "ranker", "cap", "rewards"]
    assert plain.drop(ranks).equals(ranked.drop(ranks))
    assert all(plain[name].null_count() == len(plain) for name in ranks)
    assert ranked.select(ranks).null_count().sum_horizontal().item() == 0
    with pytest.raises(JobError, match="rank_cap=1000, now 'unset'"):
        job("ranked", rank=False)


def test_an_engine_is_not_started_for_nothing(job, monkeypatch):
    begun = []
    begin = JobEngine.begin

    def spied(self, rows):
        rows = list(rows)
        begun.append(len(rows))
        begin(self, rows)

    monkeypatch.setattr(JobEngine, "begin", spied)
    once = job("once")
    assert job("once").equals(once)
    assert begun == [6]


def test_what_cannot_be_done_is_said(job):
    with pytest.raises(DataError, match=r"no model_name_or_path: name the teacher's folder"):
        job("none", teacher=None)
    with pytest.raises(DataError, match=r"n_engines is 2 and engine vllm: only ray has several"):
        job("none", engine="vllm", n_engines=2)
    with pytest.raises(ValueError, match="no teacher at 'nowhere'"):
        job("none", teacher="nowhere")
    with pytest.raises(ValueError, match="no teacher at 'nowhere'"):
        job("none", teacher="nowhere", engine="vllm", rank=False)
