"""Whatever answers a training history was fitted without its user, and saw nothing of what came after it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from anyo_rl.data.schema import Interactions
from anyo_rl.data.sequences import sequences_by_user, training_positions
from anyo_rl.data.splits import make_examples
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.distill.cache import TeacherCache
from anyo_rl.distill.scorers import Candidates, CrossFitted
from anyo_rl.evidence.opened import Evidence
from anyo_rl.evidence.retrievers import RetrieverSettings
from anyo_rl.evidence.softening import Softening
from anyo_rl.run.settings import UsageError
from anyo_rl.run.shards import JobError
from anyo_rl.stages.cache import CacheArguments, cache_of_scores
from tests.distill.conftest import N_ITEMS, index_of
from tests.evidence.conftest import write_log

PLAIN = Softening(1.0)


def popular(task: Task, n_folds: int = 2) -> CrossFitted:
    return CrossFitted(task, RetrieverSettings(("popularity",)), n_folds, seed=0)


def knn(task: Task) -> CrossFitted:
    return CrossFitted(task, RetrieverSettings(("item_knn",)), n_folds=3, seed=0)


def test_popularity_by_hand(tmp_path):
    """Of four users the first two train events count; u0's fold is u0 and u3 (by the draw), so u1 and u2 answer."""
    task = load_task(
        write_log(tmp_path, {"u0": [0, 1, 2, 3], "u1": [4, 1, 2, 3], "u2": [4, 5, 2, 3], "u3": [6, 7, 2, 3]})
    )
    source = popular(task)
    assert source.crossed.folds["u0"] == source.crossed.folds["u3"] != source.crossed.folds["u1"]
    histories = training_positions(task, index_of(task))
    assert histories.select("user", "position").rows() == [(0, 1), (1, 1), (2, 1), (3, 1)]
    found = source.label(histories, 3, PLAIN)
    # u1 and u2 train on {4, 1} and {4, 5}: item 4 twice, 1 and 5 once. u0 and u3 train on {0, 1} and {6, 7}.
    assert found.items_R_K.tolist() == [[4, 1, 5], [0, 1, 6], [0, 1, 6], [4, 1, 5]]
    e = np.e
    two_one_one = np.log([e / (e + 2), 1 / (e + 2), 1 / (e + 2)])
    assert found.log_probs_R_K[0] == pytest.approx(two_one_one, abs=1e-6)
    assert found.log_probs_R_K[1] == pytest.approx([-np.log(3)] * 3, abs=1e-6)
    # Targets 1, 1, 5, 7. Items 1 and 5 tie for u0; four items tie for u1; 5 and 7 are nobody's, and tie with the rest
    # of twelve but for the user's own item.
    assert found.ranks_R.tolist() == [3, 4, 11, 11]


def test_what_was_seen_is_not_named_where_history_is_masked(task, histories):
    found = knn(task).label(histories, N_ITEMS, PLAIN)
    sequences = list(sequences_by_user(task, index_of(task)).values())
    for row, (user, position) in enumerate(histories.select("user", "position").rows()):
        named = set(found.items_R_K[row].tolist()) - {-1}
        assert named == set(range(N_ITEMS)) - set(sequences[user][:position])
        assert np.isfinite(found.log_probs_R_K[row]).sum() == len(named)
        assert np.exp(found.log_probs_R_K[row]).sum() == pytest.approx(1, abs=1e-5)
        assert sequences[user][position] in found.items_R_K[row, : found.ranks_R[row]]  # ties count against it


def test_nobody_in_a_fold_and_nothing_later_is_in_an_answer(task, histories, events, tmp_path):
    """All that users of a fold chose is exchanged, but for the start of one: its answers stay, others' move."""
    source = knn(task)
    user = next(name for name, items in events.items() if len(items) > 6)
    number, fold = list(source.crossed.sequences).index(user), source.crossed.folds[user]
    changed = {
        name: [(7 * item + 3) % N_ITEMS for item in items] if source.crossed.folds[name] == fold else items
        for name, items in events.items()
    }
    changed[user] = [*events[user][:3], *(item for item in changed[user] if item not in events[user][:3])]
    changed[user] = changed[user][: len(events[user])]
    assert changed[user][3:] != events[user][3:]
    other = load_task(write_log(tmp_path / "changed", changed))
    both = [
        source_.label(rows, 5, PLAIN)
        for source_, rows in ((source, histories), (knn(other), training_positions(other, index_of(other))))
    ]
    rows = {(u, p): row for row, (u, p) in enumerate(histories.select("user", "position").rows())}
    again = {
        (u, p): row
        for row, (u, p) in enumerate(training_positions(other, index_of(other)).select("user", "position").rows())
    }
    early = [(number, position) for position in (1, 2, 3)]
    for pair in early:
        for name in ("items_R_K", "log_probs_R_K"):
            assert np.array_equal(getattr(both[0], name)[rows[pair]], getattr(both[1], name)[again[pair]])
    elsewhere = [pair for pair in rows if pair in again and source._fold_U[pair[0]] != fold]
    moved = [
        not np.array_equal(both[0].log_probs_R_K[rows[pair]], both[1].log_probs_R_K[again[pair]]) for pair in elsewhere
    ]
    assert np.mean(moved) > 0.5  # these were answered by users of the fold, among others


def test_the_order_is_fold_by_fold_and_changes_no_answer(task, histories):
    source = knn(task)
    ordered = source.in_order(histories)
    folds = source._fold_U[ordered["user"].to_numpy()]
    assert (np.diff(folds) >= 0).all()
    assert sorted(ordered["example_id"]) == sorted(histories["example_id"])
    found, expected = source.label(ordered, 4, PLAIN), knn(task).label(histories, 4, PLAIN)
    row_of = {example: row for row, example in enumerate(ordered["example_id"])}
    rows = [row_of[example] for example in histories["example_id"]]
    assert np.array_equal(found.items_R_K[rows], expected.items_R_K)
    assert np.array_equal(found.log_probs_R_K[rows], expected.log_probs_R_K)
    assert np.array_equal(found.ranks_R[rows], expected.ranks_R)


def test_a_short_catalog_leaves_room(task, histories):
    found = popular(task).label(histories, N_ITEMS + 5, PLAIN)
    assert found.items_R_K.shape == (len(histories), N_ITEMS + 5)
    assert (found.items_R_K[:, -6:] == -1).all()
    assert np.isneginf(found.log_probs_R_K[:, -6:]).all()


@pytest.mark.parametrize("source", ["ease", "popularity"])
def test_the_stage_caches_a_baseline(task, histories, tmp_path, source):
    args = CacheArguments(output_dir=str(tmp_path / "cache"), source=source, top_k=4, n_folds=3)
    cache_of_scores(task, args, None, None)
    found = TeacherCache.open(tmp_path / "cache", task)
    assert (len(found), found.card.source, found.card.top_k) == (len(histories), source, 4)
    files = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    cache_of_scores(task, args, None, None)
    assert {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()} == files
    for changes, message in (({"seed": 1}, "settings="), ({"source": "item_knn"}, "now 'item_knn'")):
        with pytest.raises(JobError, match=message):
            cache_of_scores(task, replace(args, **changes), None, None)


def test_saying_how_large_it_will_be_writes_no_shard(task, tmp_path, caplog):
    caplog.set_level("INFO")
    args = CacheArguments(output_dir=str(tmp_path / "cache"), source="popularity", top_k=4, n_folds=3, plan=True)
    cache_of_scores(task, args, None, None)
    assert "60 histories, 4 items each, of popularity: 0.0 MB (top_items 0.0, top_log_probs 0.0, rows" in caplog.text
    assert not list((tmp_path / "cache").glob("shard-*"))
    with pytest.raises(UsageError, match="source is evidence; name its run folder"):
        cache_of_scores(task, replace(args, source="evidence"), None, None)


def test_evidence_answers_by_rankers_out_of_fold(toy, tmp_path):
    task, folder = toy
    args = CacheArguments(output_dir=str(tmp_path / "cache"), source="evidence", top_k=10)
    cache_of_scores(task, args, str(folder), None)
    found = TeacherCache.open(tmp_path / "cache", task)
    evidence = Evidence.open(folder, task)
    table = found.table().collect()
    ids = table["example_id"].to_list()
    candidates_R_C, scores_R_C = evidence.candidates(ids), evidence.log_scores(ids).astype(np.float64)
    for row in range(0, len(ids), 7):
        order = sorted(range(30), key=lambda c, row=row: -scores_R_C[row, c])[:10]
        assert found.top_items_B_K[row].tolist() == candidates_R_C[row, order].tolist()
        expected = np.exp(scores_R_C[row, order])
        assert np.exp(found.top_log_probs_B_K[row]) == pytest.approx(expected / expected.sum(), abs=1e-5)
    assert found.rank_B.tolist() == evidence.target_ranks(ids).tolist()
    scores = folder / "seed-0" / "scores" / "fold-1.npy"
    before = Candidates(evidence).fingerprint()
    again = np.load(scores)
    np.save(scores, again + 1)
    assert Candidates(evidence).fingerprint() != before
    with pytest.raises(JobError, match=f"weights='{before}', now"):
        cache_of_scores(task, args, str(folder), None)
    Path(scores).unlink()
    with pytest.raises(UsageError, match="has no scores of training examples"):
        cache_of_scores(task, replace(args, output_dir=str(tmp_path / "new")), str(folder), None)
    np.save(scores, again)


def test_positions_of_given_examples_are_counted_from_the_end_of_the_sequence():
    """Published histories are cut, so the sequence of a user is shorter than the number of its rows tells."""
    rows = [
        ("a", ["i0"], "i1", "train"),
        ("a", ["i0", "i1"], "i2", "train"),
        ("a", ["i1", "i2"], "i3", "train"),  # cut to two items: the sequence is i1, i2, i3
        ("a", ["i2", "i3"], "i4", "validation"),
        ("b", [], "i5", "train"),  # nothing before it
        ("b", ["i5"], "i6", "train"),
        ("c", ["i9"], "i8", "train"),
        ("c", ["i1"], "i2", "train"),  # not what came before: the earlier row is not in this sequence
    ]
    given = pl.DataFrame(
        [(user, history, target, 0, split) for user, history, target, split in rows],
        schema={
            "user_id": pl.String,
            "history": pl.List(pl.String),
            "target_id": pl.String,
            "timestamp": pl.Int64,
            "split": pl.String,
        },
        orient="row",
    )
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(10)], "title": [f"thing {n}" for n in range(10)]})
    frame = given.select("user_id", pl.col("target_id").alias("item_id"), "timestamp")
    log = Interactions(frame, items, {}, "given", given)
    task = Task(log, make_examples(log, "given"), {}, DataArguments(dataset="x", split="given"), None)
    found = training_positions(task, index_of(task))
    users = list(sequences_by_user(task, index_of(task)))
    told = [(users[user], position, example) for example, _, user, position in found.rows()]
    assert sorted(told) == [("a", 1, "a:1"), ("a", 2, "a:2"), ("b", 1, "b:1"), ("c", 1, "c:1")]
    assert task.examples["example_id"].gather(found["place"]).to_list() == found["example_id"].to_list()
