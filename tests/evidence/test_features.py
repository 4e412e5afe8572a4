"""The worked example of docs/evidence.md, by hand: five users, six items."""

from dataclasses import replace

import numpy as np
import pytest

from anyo_rl.data.sequences import HeldOut
from anyo_rl.encoders.tfidf import tfidf_vectors
from anyo_rl.evidence.candidates import NONE, recall
from anyo_rl.evidence.features import Gatherer, features_of, gather
from anyo_rl.evidence.folds import CrossFit
from anyo_rl.evidence.retrievers import RetrieverSettings, fit_retrievers
from anyo_rl.students.item_knn import KnnSettings

TITLES = ["steel kettle", "glass teapot", "glass mug", "oak lamp", "oak shade", "steel mug"]
KETTLE, TEAPOT, GLASS_MUG, LAMP, SHADE, STEEL_MUG = range(6)
SEQUENCES = {
    "ann": [KETTLE, TEAPOT, GLASS_MUG],
    "ben": [KETTLE, TEAPOT, STEEL_MUG],
    "cat": [LAMP, SHADE],
    "dan": [KETTLE, GLASS_MUG, LAMP],
    "eve": [LAMP, SHADE],
}
FOLDS = {"ann": 0, "cat": 0, "ben": 1, "dan": 1, "eve": 1}
SETTINGS = RetrieverSettings(
    ("item_knn", "item_knn_last", "popularity", "text"),
    # Of those who had i, the share who had j later; the item before the last counts half.
    KnnSettings(history_decay=0.5, gap_decay=1.0, backward=0.0, source_power=1.0),
)
HOW = Gatherer(3, ("item_knn", "popularity", "text"), tfidf_vectors(TITLES))


def evidence_of(user, seen=True):
    """Of a user's last event, by retrievers of the other fold, without what was seen."""
    *history, target = SEQUENCES[user]
    fitted = fit_retrievers(CrossFit(SEQUENCES, FOLDS).without(FOLDS[user]), 6, SETTINGS, HOW.vectors_N_D)
    return gather(HeldOut([history], [target], [history if seen else []]), fitted, HOW)


def test_the_evidence_of_ann_by_hand():
    block = evidence_of("ann")
    assert block.candidates_R_K.tolist() == [[STEEL_MUG, LAMP, GLASS_MUG]]
    names = [feature.name for feature in features_of(SETTINGS.names, with_text=True)]
    found = dict(zip(names, block.features_R_K_X[0].T.tolist(), strict=True))
    glass = 3.4125 / (2.9133 * 2.6125)  # idf² of a word that two titles have, over the lengths of teapot and mug
    by_hand = {
        "item_knn": [1.0, 0.2, 0.2],  # 1.25, .25 and .25 over 1.25
        "item_knn_last": [1.0, 0.0, 0.0],
        "first_place": [1, 2, 3],
        "log_popularity": [np.log(2 / 4), np.log(3 / 4), np.log(2 / 4)],
        "text_last": [0, 0, glass],
        "text_max": [glass, 0, glass],
        "text_mean": [glass / 2, 0, glass / 2],
        "history_length": [2, 2, 2],
        "last_log_popularity": [np.log(2 / 4)] * 3,
        "seen": [0, 0, 0],
    }
    assert list(found) == list(by_hand)
    for name, values in by_hand.items():
        assert found[name] == pytest.approx(values, abs=1e-3), name  # popularity breaks ties below that


def test_a_target_that_no_retriever_names_is_never_put_in():
    block = evidence_of("ben")  # nobody in ann's and cat's fold has the steel mug
    assert block.candidates_R_K.tolist() == [[GLASS_MUG, LAMP, SHADE]]
    candidates = np.concatenate([evidence_of(user).candidates_R_K for user in ("ann", "ben")])
    assert recall(candidates, np.array([GLASS_MUG, STEEL_MUG]), 3) == 0.5
    assert recall(candidates, np.array([GLASS_MUG, STEEL_MUG]), 2) == 0


def test_the_target_is_not_looked_at():
    *history, target = SEQUENCES["ann"]
    fitted = fit_retrievers(CrossFit(SEQUENCES, FOLDS).without(0), 6, SETTINGS, HOW.vectors_N_D)
    blocks = [gather(HeldOut([history], [one], [history]), fitted, HOW) for one in (target, SHADE)]
    assert blocks[0].features_R_K_X.tobytes() == blocks[1].features_R_K_X.tobytes()
    assert blocks[0].candidates_R_K.tobytes() == blocks[1].candidates_R_K.tobytes()


def test_rows_of_many_histories_are_those_of_each():
    fitted = fit_retrievers(list(SEQUENCES.values()), 6, SETTINGS, HOW.vectors_N_D)
    histories = [[KETTLE], [], [LAMP, TEAPOT, LAMP, KETTLE], [GLASS_MUG, SHADE]]
    left_out = [[], [], [LAMP], [0, 1, 2, 3, 5]]
    together = gather(HeldOut(histories, [0] * 4, left_out), fitted, HOW)
    for row, (history, out) in enumerate(zip(histories, left_out, strict=True)):
        alone = gather(HeldOut([history], [0], [out]), fitted, HOW)
        np.testing.assert_array_equal(alone.candidates_R_K[0], together.candidates_R_K[row])
        np.testing.assert_allclose(alone.features_R_K_X[0], together.features_R_K_X[row], rtol=1e-6)
        assert not set(out) & set(alone.candidates_R_K[0].tolist())
    assert together.candidates_R_K[3].tolist() == [SHADE, NONE, NONE]
    column = [feature.name for feature in features_of(SETTINGS.names, with_text=True)].index
    assert np.isnan(together.features_R_K_X[1][:, [column("text_last"), column("last_log_popularity")]]).all()
    assert np.isnan(together.features_R_K_X[3][1:]).all()
    seen = together.features_R_K_X[2][:, column("seen")]
    assert seen.tolist() == [float(item in histories[2]) for item in together.candidates_R_K[2]]


def test_every_feature_says_what_it_is_and_costs():
    for feature in features_of(SETTINGS.names, with_text=True):
        assert feature.meaning
        assert feature.cost
    assert "text_last" not in [feature.name for feature in features_of(SETTINGS.names, with_text=False)]


def test_a_view_that_is_item_knn_itself_is_scored_once():
    """Item-kNN that counts nothing backward is its own directed view, to the last bit."""
    sequences = list(SEQUENCES.values())
    assert SETTINGS.item_knn.backward == 0
    settings = replace(SETTINGS, names=(*SETTINGS.names, "item_knn_directed"))
    fitted = fit_retrievers(sequences, 6, settings, HOW.vectors_N_D)
    assert fitted.scorers["item_knn_directed"] is fitted.scorers["item_knn"]
    apart = replace(fitted, scorers={**fitted.scorers, "item_knn_directed": replace(fitted.scorers["item_knn"])})
    asked = HeldOut([[0, 1], [3], []], [2, 4, 0], [[0, 1], [], [5]])
    once, twice = gather(asked, fitted, HOW), gather(asked, apart, HOW)
    np.testing.assert_array_equal(once.candidates_R_K, twice.candidates_R_K)
    np.testing.assert_array_equal(once.features_R_K_X, twice.features_R_K_X)
