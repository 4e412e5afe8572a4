import numpy as np
import pytest

from anyo_rl.evidence import ranker as ranker_module
from anyo_rl.evidence.candidates import NONE
from anyo_rl.evidence.ranker import (
    EvidenceRanker,
    Groups,
    RankerSettings,
    choose_ranker,
    table_ndcg,
    train_ranker,
)
from anyo_rl.evidence.softening import choose_softening
from anyo_rl.evidence.tables import Table
from anyo_rl.evidence.worth import distance, permuted_losses, values_of
from anyo_rl.metrics.gains import ndcg
from anyo_rl.run.settings import UsageError

NAMES = ("good", "noise")


def table_of(n_rows, seed=0, k=6):
    """Targets are mostly those of the largest first feature; some rows are short, and some lack their target."""
    generator = np.random.default_rng(seed)
    candidates = np.argsort(generator.random((n_rows, 20)), axis=1)[:, :k].astype(np.int32)
    features = generator.random((n_rows, k, 2)).astype(np.float32)
    best = (features[..., 0] + 0.2 * generator.random((n_rows, k))).argmax(axis=1)
    targets = candidates[np.arange(n_rows), best].astype(np.int64)
    candidates[::5, -1], features[::5, -1] = NONE, np.nan
    targets[1::7] = 99
    return Table([f"e{row}" for row in range(n_rows)], targets, candidates, features, NAMES)


def test_ndcg_of_a_table_is_that_of_each_row():
    table = table_of(40)
    scores = np.round(np.random.default_rng(1).random(table.candidates_R_K.shape) * 3)
    scores[table.candidates_R_K == NONE] = -np.inf
    slow = []
    for items, values, target in zip(table.candidates_R_K, scores, table.targets_R, strict=True):
        order = [item for item in items[np.argsort(-values, kind="stable")] if item != NONE]
        slow.append(ndcg(order.index(target) + 1, 3) if target in order else 0.0)
    assert table_ndcg(scores, table, 3).tolist() == slow


def test_groups_without_their_target_drop_out():
    table = table_of(30)
    groups = Groups.of([(table, np.arange(30) < 20)])
    kept = [row for row in range(20) if table.targets_R[row] in table.candidates_R_K[row]]
    assert len(groups) == len(kept) < 20
    assert groups.labels_P.sum() == len(kept)
    assert groups.sizes_R.tolist() == [(table.candidates_R_K[row] != NONE).sum() for row in kept]
    assert not np.isnan(groups.features_P_X).any()


def test_of_too_many_groups_some_are_drawn(monkeypatch):
    monkeypatch.setattr(ranker_module, "MOST_ROWS", 300)
    groups = Groups.of([(table_of(200), np.ones(200, dtype=bool))], seed=3)
    assert 20 < len(groups) < 90


def lists_of(table):
    return table.candidates_R_K, table.targets_R


def test_a_ranker_learns_what_counts_and_reads_back_the_same(tmp_path):
    train, validation = table_of(300, seed=1), table_of(100, seed=2)
    learned = [(train, np.arange(300) % 4)]
    ranker, trials = choose_ranker(learned, validation, (1, 4), RankerSettings(leaves=4, patience=10))
    scores = ranker.scores(validation.candidates_R_K, validation.features_R_K_X)
    value = table_ndcg(scores, validation).mean()
    assert (ranker.positions, value) == max(((n, v) for n, _, v in trials), key=lambda trial: trial[1])
    assert value > 0.9 * validation.hit_R.mean()
    assert ranker.gains()["good"] > 0.7
    losses = permuted_losses(ranker, validation)
    assert losses["good"] > 0.2 > losses["noise"]
    ranker.save(tmp_path)
    again = EvidenceRanker.load(tmp_path)
    assert (again.names, again.settings, again.rounds) == (ranker.names, ranker.settings, ranker.rounds)
    # Its log-scores are the softmax under which validation's targets are the likeliest.
    assert again.softening == ranker.softening == choose_softening(scores, *lists_of(validation))
    log_scores = again.log_scores(validation.candidates_R_K, validation.features_R_K_X)
    np.testing.assert_array_equal(log_scores, ranker.softening.log_probs(scores))
    np.testing.assert_array_equal(again.scores(validation.candidates_R_K, validation.features_R_K_X), scores)
    assert np.isneginf(scores[validation.candidates_R_K == NONE]).all()


def test_nothing_to_learn_from_is_said():
    table = table_of(5)
    groups = Groups.of([(table, np.zeros(5, dtype=bool))])
    with pytest.raises(UsageError, match="take more candidates"):
        train_ranker(groups, NAMES)


def test_a_missing_or_damaged_ranker_is_said(tmp_path):
    with pytest.raises(UsageError, match="found no ranker"):
        EvidenceRanker.load(tmp_path)
    (tmp_path / "ranker.json").write_text("{}")
    with pytest.raises(UsageError, match="is damaged"):
        EvidenceRanker.load(tmp_path)


def test_distances_of_features():
    assert distance(np.array([0.0, 0.0]), np.array([1.0])) == 1
    assert np.isnan(distance(np.array([np.nan]), np.array([1.0])))
    same = values_of([table_of(10)])
    assert [distance(same[:, x], same[:, x]) for x in range(2)] == [0, 0]
