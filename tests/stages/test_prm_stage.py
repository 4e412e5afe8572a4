from types import SimpleNamespace

import polars as pl
import pytest
from accelerate import PartialState
from trl import ModelConfig

from anyo_rl.catalog.opening import Teacher
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.job import Job
from anyo_rl.stages.prm import PrmArguments, label_in_parts, some_examples
from tests.tables import table_of

ROWS = [
    Row(example_id=f"u{u}:1", prompt=prompt, target_id=target, history=[], user_id="u")
    for u, (prompt, target) in enumerate([("Alien\n", "i1"), ("mug\n", "i9"), ("Toys and toys\n", "i4")])
]


@pytest.fixture
def paths(small_tokens) -> pl.DataFrame:
    """Of each example two paths of two steps that begin alike."""
    PartialState(cpu=True)
    ids = [small_tokens.reasoning_ids(steps) for steps in (["toys", "mug"], ["toys", "Alien"])]
    return table_of(
        [
            {
                "example_id": row.example_id,
                "sample_index": index,
                "policy": "sft",
                "ranker": "likelihood",
                "token_ids": ids[index],
                "completion": small_tokens.decode(ids[index]),
                "rank": 1 + index,
            }
            for row in ROWS
            for index in (0, 1)
        ]
    )


@pytest.fixture
def label(small_teacher, small_catalog, small_tokens, paths, tmp_path):
    asked, teacher = [], Teacher(small_teacher, small_tokens, small_catalog)

    class Counting(LikelihoodRanker):
        def rank(self, contexts_B, *args, **kwargs):
            asked.append(len(contexts_B))
            return super().rank(contexts_B, *args, **kwargs)

    def label(source="forced_answer", judge=None) -> pl.DataFrame:
        file = tmp_path / "labels" / f"{source}.parquet"
        job = Job(tmp_path, SimpleNamespace(), ModelConfig(), TeacherArguments(max_reasoning_tokens=4))
        args = PrmArguments(step_values=source, n_shards=2, judge=judge)
        label_in_parts(job, teacher, args, paths, ROWS, file, 2)
        return pl.read_parquet(file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anyo_rl.stages.sample.LikelihoodRanker", Counting)
        yield SimpleNamespace(run=label, asked=asked, folder=tmp_path / "labels")


@pytest.mark.parametrize("source", ["forced_answer", "monte_carlo"])
def test_paths_are_labelled_in_parts_and_once(label, paths, source):
    found = label.run(source)
    assert found["example_id"].to_list() == paths["example_id"].to_list()
    values = found["step_values"].to_list()
    assert [len(of_path) for of_path in values] == [3] * 6
    for one, other in zip(values[::2], values[1::2], strict=True):
        assert one[:2] == other[:2]  # the same states
        assert (one[2], other[2]) == (1.0, pytest.approx(ndcg(2)))
    n_asked = len(label.asked)
    label.run(source)
    assert len(label.asked) == n_asked
    if source == "forced_answer":
        assert len({tuple(of_path) for of_path in values[::2]}) == 3
        assert label.asked == [2, 4]  # two states of one example, then of two
    assert not (label.folder / source).exists()


def test_a_judge_labels_what_comes_before_the_end_and_is_asked_once(label, fake_server):
    fake_server.say = lambda prompt, seed: "SCORE: 10" if "toys\n</reasoning>" in prompt else "SCORE: 2"
    judge = {"url": fake_server.url, "model": "m", "first_wait_s": 0.0}
    found = label.run("judge", judge=judge)["step_values"].to_list()
    assert [of_path[:2] for of_path in found] == [[pytest.approx(0.2), 1.0]] * 6
    assert [of_path[2] for of_path in found] == [1.0, pytest.approx(ndcg(2))] * 3  # what the paths had
    assert len(fake_server.bodies) == 6  # two states of each of three examples
    (label.folder / "judge.parquet").unlink()
    label.run("judge", judge=judge)
    assert len(fake_server.bodies) == 6


def test_a_part_that_is_there_is_not_labelled_again(label):
    whole = label.run()
    (label.folder / "forced_answer.parquet").unlink()
    (label.folder / "forced_answer").mkdir()
    whole.head(2).write_parquet(label.folder / "forced_answer" / "part-00000-of-00002.parquet")
    label.asked.clear()
    assert label.run().equals(whole)
    assert label.asked == [4]


def test_some_examples_keep_all_their_paths(paths):
    assert some_examples(paths, None, 0) is paths
    assert some_examples(paths, 3, 0) is paths
    found = some_examples(paths, 2, 0)
    assert found["example_id"].n_unique() == 2
    assert len(found) == 4
    assert some_examples(paths, 2, 0).equals(found)


@pytest.mark.parametrize("name", ["n_continuations", "n_validation_paths", "n_shards", "max_examples"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0: expected 1 or more"):
        PrmArguments(**{name: 0})
