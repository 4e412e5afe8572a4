import json
from types import SimpleNamespace

import polars as pl
import pytest
from accelerate import PartialState
from datasets import load_dataset

from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.schema import DataError
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.paths import SampledPath
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.shards import ShardedJob, run_shards
from anyo_rl.stages.dpo import PAIRS, PairArguments, load_paths, make_pairs

ROWS = [
    Row(example_id=f"u{u}:1", prompt=prompt, target_id=target, user_id="u", history=[])
    for u, (prompt, target) in enumerate([("Alien\n", "i1"), ("mug\n", "i9"), ("Toys and toys\n", "i4")])
]


@pytest.fixture
def job(small_tokens, tmp_path):
    """The folder of a job: of each example one reasoning with rank 1 and one with rank 8."""
    PartialState(cpu=True)
    texts = (("likes films", 1), ("likes mugs", 8))

    def make_paths(rows):
        ids = [small_tokens.reasoning_ids([text]) for text, _ in texts]
        return [
            SampledPath(
                example_id=row.example_id,
                sample_index=index,
                user_id=row.user_id,
                prompt=row.prompt,
                target_id=row.target_id,
                rank=texts[index][1],
                ranker="likelihood",
                token_ids=ids[index],
                completion=small_tokens.decode(ids[index]),
            )
            for row in rows
            for index in (0, 1)
        ]

    folder = tmp_path / "job"
    run_shards(ROWS, ShardedJob(folder, Sampling(n=2), policy="sft", n_shards=2, split="train"), make_paths)
    return folder


@pytest.fixture
def pairs_of(small_tokens, small_catalog):
    """The pairs of a run with these training examples."""
    teacher = Teacher(None, small_tokens, small_catalog)

    def call(folder, args: PairArguments, rows=ROWS):
        train = SimpleNamespace(of=lambda ids: [row for row in rows if row.example_id in set(ids)])
        return make_pairs(SimpleNamespace(folder=folder, rows=lambda split, of: train), teacher, args)

    return call


def test_pairs_are_kept_as_a_data_set_of_preferences_and_made_once(job, pairs_of, small_tokens, tmp_path):
    run = tmp_path / "run"
    args = PairArguments(paths=str(job), max_pairs_per_target=1)
    made = pairs_of(run, args)
    assert made["chosen"] == ["likes films ->"] * 3
    assert made["prompt_ids"][1] == small_tokens.context_ids("mug\n")
    found = load_dataset("parquet", data_files=str(run / PAIRS), split="train", cache_dir=str(tmp_path / "cache"))
    assert found.to_list() == made.to_list()
    counts = json.loads(pl.read_parquet_metadata(run / PAIRS)["counts"])
    assert (counts["pairs"], counts["small_gap"]) == (3, 0)
    # A run that goes on has the same pairs, whatever became of the paths.
    gone = pairs_of(run, PairArguments(paths="nowhere"))
    assert gone.to_list() == made.to_list()


def test_a_job_and_a_parquet_file_are_read_alike(job, tmp_path):
    paths = load_paths(job)
    assert len(paths) == 6
    paths.write_parquet(tmp_path / "paths.parquet")
    assert load_paths(tmp_path / "paths.parquet").equals(paths)


def test_paths_that_cannot_be_used_are_named(job, tmp_path):
    with pytest.raises(DataError, match=r"no paths at .*nowhere"):
        load_paths(tmp_path / "nowhere")
    pl.DataFrame({"rank": [1]}).write_parquet(tmp_path / "ranks.parquet")
    with pytest.raises(DataError, match=r"lacks the columns cap, .* expected a paths table"):
        load_paths(tmp_path / "ranks.parquet")
    (job / "shard-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"1 of 2 shards .* are not done"):
        load_paths(job)


@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        (ROWS[:1], {}, "2 of 3 examples of the paths, such as 'u1:1', are no training examples"),
        (ROWS, {"least_gap": 0.9}, "no preference pairs: lower least_gap"),
        (ROWS, {"least_gap": -1.0}, "least_gap is -1.0, expected above 0"),
    ],
)
def test_what_gives_no_pairs_is_an_error_of_the_data(job, pairs_of, tmp_path, rows, settings, expected):
    with pytest.raises(DataError, match=expected):
        pairs_of(tmp_path / "run", PairArguments(paths=str(job), **settings), rows)
    assert not (tmp_path / "run").exists()
