"""Candidates as they come in: out of fold for training examples, and ranks that hold for the whole catalog."""

import numpy as np

from anyo_rl.data.schema import EXAMPLE_ID
from anyo_rl.data.sequences import held_out
from anyo_rl.evidence.candidates import NONE
from anyo_rl.evidence.lists import RetrieverLists
from anyo_rl.evidence.retrievers import RetrieverSettings
from anyo_rl.evidence.reweighing import RetrieverWeights


def lists_of(task, name="item_knn"):
    return RetrieverLists(RetrieverWeights(task, RetrieverSettings((name,)), seed=0, n_folds=3))


def test_the_rank_of_a_candidate_is_its_place_and_others_are_behind(task):
    lists = lists_of(task, "popularity")  # with ties
    for split in ("train", "test"):
        ids = task.split(split)[EXAMPLE_ID].to_list()
        n = len(lists.weights.index)
        whole, ranks = lists.incoming(ids, n), lists.target_ranks(ids)
        asked = held_out(task, task.split(split), lists.weights.index)
        for row, target in enumerate(asked.targets):
            order = whole.items_R_K[row][whole.items_R_K[row] != NONE].tolist()
            assert order[ranks[row] - 1] == target
            assert not set(order) & set(asked.excluded[row])
            assert len(order) == n - len(set(asked.excluded[row]))
        first = lists.incoming(ids, 4)
        np.testing.assert_array_equal(first.items_R_K, whole.items_R_K[:, :4])
        assert (np.diff(first.scores_R_K, axis=1) <= 0).all()


def test_training_examples_meet_users_of_other_folds_alone(task):
    lists = lists_of(task, "popularity")
    folds = lists.weights.crossed.folds
    for example, user in task.split("train").select(EXAMPLE_ID, "user_id").iter_rows():
        scores = lists.weights.scorer(folds[user]).scores([[0]])[0]
        found = lists.incoming([example], 5)
        np.testing.assert_array_equal(found.scores_R_K[0], scores[found.items_R_K[0]])


def test_a_list_may_be_longer_than_the_catalog_and_nobody_may_ask(task):
    lists = lists_of(task)
    ids = task.split("test")[EXAMPLE_ID].to_list()[:2]
    found = lists.incoming(ids, 50)
    assert found.items_R_K.shape == found.scores_R_K.shape == (2, 50)
    assert (found.scores_R_K[found.items_R_K == NONE] == -np.inf).all()
    assert lists.incoming([], 3).items_R_K.shape == (0, 3)
    assert lists.target_ranks([]).tolist() == []
