"""A run's teacher answers training histories as evaluation asks it, with states and reasonings besides."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from trl import ModelConfig

from anyo_rl.data.sequences import training_positions
from anyo_rl.distill.cache import TeacherCache
from anyo_rl.encoders.hidden_states import teacher_encoder
from anyo_rl.evidence.fusion import FusedRanker
from anyo_rl.evidence.opened import Evidence
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Rows
from anyo_rl.run.settings import UsageError
from anyo_rl.run.shards import JobError
from anyo_rl.search.answers import answer, reasoned
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.cache import CacheArguments, cache_of_teacher
from anyo_rl.stages.job import Job
from anyo_rl.teacher.save import save_teacher

SMALL = TeacherArguments(max_reasoning_tokens=6, n_paths=3, tiny_hidden_size=16, tiny_layers=2)


@pytest.fixture(scope="module")
def job(toy, tmp_path_factory):
    """A run with an untrained teacher."""
    task, _ = toy
    job = Job(tmp_path_factory.mktemp("run"), task, ModelConfig(dtype="float32"), SMALL, seed=1)
    with job.opened(None) as teacher:
        save_teacher(teacher.model, teacher.tokens.tokenizer, job.teacher_folder("grpo"))
    return job


def args_of(folder, **changes) -> CacheArguments:
    asked = {"source": "teacher", "top_k": 12, "last_positions": 1, "seed": 1, "rank_cap": 0, "run_dir": "told"}
    return CacheArguments(output_dir=str(folder), **asked | changes)


def rows_of(job, teacher) -> Rows:
    histories = training_positions(job.task, dict(teacher.catalog.index), 1)
    return Rows(job.task, histories["place"].to_numpy(), teacher.catalog, teacher.tokens)


@pytest.mark.parametrize("mode", ["plain", "greedy", pytest.param("mixture", marks=pytest.mark.slow)])
def test_answers_are_those_of_evaluation(job, tmp_path, mode):
    cache_of_teacher(job, args_of(tmp_path, mode=mode))
    found = TeacherCache.open(tmp_path, job.task)
    with job.opened(job.teacher_folder("grpo")) as teacher:
        tokens, catalog, rows = teacher.tokens, teacher.catalog, rows_of(job, teacher)
        how = job.how(mode, seed=1, top_k=12)
        sampler = job.sampler(teacher.model, tokens)
        expected = answer(rows, LikelihoodRanker(catalog, teacher.model), sampler, tokens, how)
        assert [[catalog.item_ids[i] for i in row] for row in found.top_items_B_K[:]] == expected.top_ids_U_K
        assert found.rank_B.tolist() == expected.ranks_U.tolist()
        (batch, _, samples, marked) = next(reasoned(rows, sampler, tokens, how))
        for row in (0, len(batch) - 1):
            with torch.no_grad():  # the whole model's own forward, one context at a time
                states = [
                    teacher.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1]
                    for ids in marked[row]
                ]
            assert found.states_B_D[row] == pytest.approx(torch.stack(states).mean(0).numpy(), abs=2e-3)
        items_K = [int(item) for item in found.top_items_B_K[0]]
        (log_p_K,) = LikelihoodRanker(catalog, teacher.model).log_probs_of(marked[:1], [items_K])
        assert found.top_log_probs_B_K[0] == pytest.approx(log_p_K, abs=1e-4)
        table = found.table().collect()
        if mode == "plain":
            assert found.reasoning_vectors_B_D is None
            assert table["reasoning"].null_count() == len(found)
            return
        n_paths = len(samples[0])
        texts = ["\n".join(path.steps) for path in expected.paths]
        assert table["reasoning"].to_list() == texts[::n_paths]
        encoder = teacher_encoder(teacher.model, tokens.tokenizer, pooling="mean")
        vectors = [encoder([text])[0] if text else torch.zeros(16) for text in texts[-n_paths:]]
        assert found.reasoning_vectors_B_D[len(found) - 1] == pytest.approx(
            torch.stack(vectors).mean(0).numpy(), abs=2e-3
        )


@pytest.mark.slow
def test_with_evidence_the_answers_are_fused(job, toy, tmp_path):
    _, folder = toy
    fused_job = replace(job, teacher_args=replace(SMALL, evidence=str(folder)))
    cache_of_teacher(fused_job, args_of(tmp_path, mode="greedy", reasoning_vectors="none", states=False))
    found = TeacherCache.open(tmp_path, job.task)
    assert (found.states_B_D, found.reasoning_vectors_B_D) == (None, None)
    alpha = found.card.settings["alpha"]
    (choice,) = tmp_path.glob("choice-*.json")
    assert json.loads(choice.read_text())["alpha"] == alpha
    with job.opened(job.teacher_folder("grpo")) as teacher:
        rows, how = rows_of(job, teacher), job.how("greedy", seed=1, top_k=12)
        ranker = FusedRanker(
            LikelihoodRanker(teacher.catalog, teacher.model), Evidence.open(folder, job.task), float(alpha)
        )
        expected = answer(rows, ranker, job.sampler(teacher.model, teacher.tokens), teacher.tokens, how)
        named = [[teacher.catalog.item_ids[i] for i in row if i >= 0] for row in found.top_items_B_K[:]]
    assert named == expected.top_ids_U_K
    assert found.rank_B.tolist() == expected.ranks_U.tolist()
    with pytest.raises(JobError, match="settings="):  # the same teacher by itself
        cache_of_teacher(job, args_of(tmp_path, mode="greedy", reasoning_vectors="none", states=False))


@pytest.mark.slow
def test_another_teacher_is_refused(job, tmp_path):
    args = args_of(tmp_path / "cache", mode="plain", states=False)
    cache_of_teacher(job, args)
    before = TeacherCache.open(tmp_path / "cache", job.task).card.weights
    cache_of_teacher(job, args)  # the same again
    other = replace(job, folder=tmp_path / "other")
    with job.opened(job.teacher_folder("grpo")) as teacher:
        with torch.no_grad():
            next(teacher.model.parameters())[0, 0] += 0.5
        save_teacher(teacher.model, teacher.tokens.tokenizer, other.teacher_folder("grpo"))
    with pytest.raises(JobError, match=f"weights='{before}', now"):
        cache_of_teacher(other, args)
    with pytest.raises(UsageError, match="found no teacher in"):
        cache_of_teacher(job, replace(args, stage="star"))


@pytest.mark.slow
def test_states_that_float16_does_not_hold_are_refused(job, tmp_path):
    loud = replace(job, folder=tmp_path / "loud")
    with job.opened(job.teacher_folder("grpo")) as teacher:
        with torch.no_grad():
            teacher.model.model.norm.weight *= 1e6
        save_teacher(teacher.model, teacher.tokens.tokenizer, loud.teacher_folder("grpo"))
    with pytest.raises(UsageError, match="states have numbers that float16 does not hold"):
        cache_of_teacher(loud, args_of(tmp_path / "cache", mode="plain"))
    cache_of_teacher(loud, args_of(tmp_path / "without", mode="plain", states=False))
    assert np.isfinite(TeacherCache.open(tmp_path / "without", job.task).top_log_probs_B_K[:]).all()
