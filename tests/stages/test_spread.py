import copy
import dataclasses
import json

import numpy as np
import pytest
from trl import ModelConfig

from anyo_rl.catalog.opening import Teacher
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import How, answer
from anyo_rl.stages.arguments import GrpoArguments, TeacherArguments
from anyo_rl.stages.job import Job
from anyo_rl.stages.spread import keep_spread

PROMPTS = [("Alien\n", "i1", ["i0"]), ("mug\n", "i9", ["i8"]), ("Toys\n", "i4", ["i5"]), ("lamp\n", "i6", ["i7"])]
ROWS = [
    Row(example_id=f"u{u}:1", user_id=f"u{u}", prompt=prompt, history=history, target_id=target, excluded=history)
    for u, (prompt, target, history) in enumerate(PROMPTS)
]
SAMPLING = Sampling(n=4, temperature=1.5, max_new_tokens=6, seed=3)


@pytest.fixture
def keep(small_teacher, small_catalog, small_tokens, tmp_path):
    """Filters `ROWS`, and counts how often the teacher was asked for."""

    teacher = Teacher(small_teacher, small_tokens, small_catalog)
    job = Job(tmp_path, None, ModelConfig(), TeacherArguments())

    def load():
        call.n_loads += 1
        return LikelihoodRanker(small_catalog, copy.deepcopy(small_teacher), tie_band=0.0)

    def call(least: float, **changed) -> list[str]:
        file = tmp_path / "grpo" / "kept_examples.json"
        sampling = dataclasses.replace(SAMPLING, **changed)
        args = GrpoArguments(min_gain_spread=least)
        return sorted(keep_spread(job, ROWS, load, teacher, args, sampling, file))

    call.n_loads = 0
    call.file = tmp_path / "grpo" / "kept_examples.json"
    return call


def test_examples_are_kept_by_the_spread_of_their_gains(keep, small_teacher, small_catalog, small_tokens):
    ranker, sampler = LikelihoodRanker(small_catalog, small_teacher), TransformersSampler(small_teacher, small_tokens)
    paths = answer(ROWS, ranker, sampler, small_tokens, How("mixture", SAMPLING, top_k=1)).paths
    gains = ndcg(np.array([path.rank for path in paths])).reshape(4, 4)
    spread = gains.max(1) - gains.min(1)
    least = float(np.sort(spread)[2])
    assert least > 0
    assert spread.min() < least
    expected = [row.example_id for row, s in zip(ROWS, spread, strict=True) if s >= least]
    assert keep(least) == expected
    assert json.loads(keep.file.read_text())["settings"]["least"] == least


def test_the_outcome_is_kept_for_its_own_settings_only(keep):
    first = keep(1e-9)
    assert keep(1e-9) == first
    assert keep.n_loads == 1
    keep(1e-8)
    keep(1e-8, temperature=1.0)
    assert keep.n_loads == 3


def test_nothing_left_says_what_to_lower(keep):
    with pytest.raises(ValueError, match=r"no example has a gain spread of 1\.5 or more over 4 paths; lower min"):
        keep(1.5)
