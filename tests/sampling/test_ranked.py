import dataclasses
import json

import pytest

from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.paths import PATHS_SCHEMA, paths_table
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.ranked import ranked_paths
from anyo_rl.sampling.seeds import request_seed
from anyo_rl.sampling.transformers import TransformersSampler

ASKED = {"n": 3, "temperature": 1.5, "max_new_tokens": 5, "seed": 2}


@pytest.fixture
def rows(small_catalog):
    """Three examples."""
    ids = small_catalog.item_ids
    return [
        Row(example_id=f"u{i}:1", user_id=f"u{i}", prompt=prompt, history=[ids[i]], target_id=ids[i + 1])
        for i, prompt in enumerate(["History:\na\nNext:\n", "x", "Toys\n"])
    ]


@pytest.fixture
def sampler(small_teacher, small_tokens):
    return TransformersSampler(small_teacher, small_tokens, with_log_probs=True)


@pytest.fixture
def ranker(small_catalog, small_teacher):
    return LikelihoodRanker(small_catalog, small_teacher, cap=6)


def test_each_path_is_ranked_alone(rows, sampler, ranker, small_tokens, small_catalog):
    paths = ranked_paths(rows, sampler, small_tokens, ranker.catalog, Sampling(**ASKED), ranker=ranker)
    assert [(p.example_id, p.sample_index) for p in paths] == [(f"u{i}:1", g) for i in range(3) for g in range(3)]
    titles = dict(zip(small_catalog.item_ids, small_catalog.titles, strict=True))
    for path in paths:
        row = next(row for row in rows if row.example_id == path.example_id)
        context = small_tokens.marked_context(small_tokens.context_ids(row.prompt), path.token_ids)
        alone = ranker.rank([context], [row.target_id], top_k=1)
        assert (path.rank, path.item_id) == (alone.ranks_B[0], alone.top_ids_B_K[0][0])
        assert json.loads(path.rewards)["gain"] == pytest.approx(float(ndcg(path.rank)))
        assert (path.cap, path.ranker, path.seed) == (6, "likelihood", request_seed(2, path.example_id))
        assert path.history == [titles[item] for item in row.history]
        assert (path.item_title, path.target_title) == (titles[path.item_id], titles[row.target_id])
        assert len(path.token_log_probs) == len(path.token_ids)
    assert paths_table([dataclasses.replace(path, policy="p") for path in paths]).schema == PATHS_SCHEMA


def test_the_parts_of_a_job_are_the_whole(rows, sampler, ranker, small_tokens, monkeypatch):
    whole = ranked_paths(rows, sampler, small_tokens, ranker.catalog, Sampling(**ASKED), ranker=ranker)
    monkeypatch.setattr("anyo_rl.sampling.ranked.ROWS_AT_ONCE", 2)
    again = ranked_paths(rows, sampler, small_tokens, ranker.catalog, Sampling(**ASKED), ranker=ranker)
    parts = [
        path
        for row in rows[::-1]
        for path in ranked_paths([row], sampler, small_tokens, ranker.catalog, Sampling(**ASKED), ranker=ranker)
    ]
    for found in (again, sorted(parts, key=lambda p: (p.example_id, p.sample_index))):
        for key in ("example_id", "sample_index", "token_ids", "rank", "item_id", "seed"):
            assert [getattr(p, key) for p in found] == [getattr(p, key) for p in whole]


def test_history_masking_and_a_hint(rows, sampler, ranker, small_tokens):
    """The hint is read while sampling; it is neither ranked under nor kept."""
    hinted = [dataclasses.replace(row, hinted_prompt=f"{row.prompt}hint\n", excluded=row.history) for row in rows]
    paths = ranked_paths(hinted, sampler, small_tokens, ranker.catalog, Sampling(**ASKED), ranker=ranker)
    expected = sampler.sample(
        [small_tokens.context_ids(row.hinted_prompt) for row in hinted],
        Sampling(**ASKED),
        keys_B=[row.example_id for row in rows],
    )
    assert [tuple(p.token_ids) for p in paths] == [s.token_ids for of_row in expected for s in of_row]
    for path, row in zip(paths, [row for row in rows for _ in range(3)], strict=True):
        context = small_tokens.marked_context(small_tokens.context_ids(row.prompt), path.token_ids)
        ranking = ranker.rank([context], [row.target_id], excluded_B=[row.history])
        assert (path.prompt, path.rank) == (row.prompt, ranking.ranks_B[0])
        assert path.item_id not in row.history


def test_no_examples(sampler, ranker, small_tokens):
    assert ranked_paths([], sampler, small_tokens, ranker.catalog, Sampling(**ASKED), ranker=ranker) == []
