"""A round of STaR that samples with vLLM: the draws are the engine's, and it is stopped before training."""

from types import SimpleNamespace

import polars as pl
import pytest
from trl import ModelConfig

from anyo_rl.data.schema import DataError
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.ranked import ranked_paths
from anyo_rl.sampling.vllm.sampler import VllmSampler
from anyo_rl.stages import sample as sample_job
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.job import Job
from anyo_rl.stages.path_arguments import StarArguments
from anyo_rl.stages.star import Star


def star_of(tmp_path, **of_teacher) -> Star:
    task = load_task(DataArguments(toy_users=120, toy_categories=5, history_tokens=60))
    args = StarArguments(engine="vllm", n_shards=2, max_examples=6)
    teacher_args = TeacherArguments(max_reasoning_tokens=12, **of_teacher)
    return Star(Job(tmp_path, task, ModelConfig(dtype="float32"), teacher_args, 3), args, SimpleNamespace(seed=3))


@pytest.mark.slow
def test_a_round_samples_with_the_engine(vllm_engine, tmp_path, monkeypatch):
    teacher, events = vllm_engine.llm.llm_engine.model_config.model, []

    class Shared:
        def __init__(self, **settings):
            events.append("start")

        def sampler_for(self, asked, tokens, **settings):
            assert asked == teacher
            return VllmSampler(vllm_engine.llm, tokens, **settings)

        def close(self):
            events.append("stop")

    monkeypatch.setattr(sample_job, "RoundEngine", Shared)
    star = star_of(tmp_path)
    with star.job.opened(teacher) as opened:
        rows = star.job.rows("train", opened).at(star.paths(1).places)
        paths = star.paths(1).sample("paths", teacher, opened, rows, 2)
        sampler = VllmSampler(vllm_engine.llm, opened.tokens)
        asked = Sampling(n=2, max_new_tokens=12, seed=4)
        expected = ranked_paths(rows, sampler, opened.tokens, opened.catalog, asked)
        columns = ["example_id", "sample_index", "token_ids"]
        assert paths.select(columns).equals(pl.DataFrame(expected).select(columns))
        assert paths["rank"].null_count() == 0
        assert events == ["start", "stop"]
        assert star.paths(1).sample("paths", teacher, opened, rows, 2).equals(paths)
        assert events == ["start", "stop"]  # nothing was left to do


def test_codes_that_vllm_cannot_add_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no semantic_ids\S*, and vLLM cannot add their tokens"):
        star_of(tmp_path, item_tokens="semantic_id").kept(1, "teacher")
