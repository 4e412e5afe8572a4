"""What a training example meets never saw its user."""

from collections import Counter

import numpy as np
import pytest

from anyo_rl.data.task import load_task
from anyo_rl.evidence import make
from anyo_rl.evidence.features import Gatherer
from anyo_rl.evidence.folds import CrossFit, folds_of
from anyo_rl.evidence.make import Maker
from anyo_rl.evidence.ranker import Groups, RankerSettings, train_ranker
from anyo_rl.evidence.retrievers import Fitted, RetrieverSettings
from anyo_rl.run.settings import UsageError
from anyo_rl.students.popularity import fit_popularity
from tests.evidence.conftest import write_log

NAMES = ("item_knn", "item_knn_last", "popularity")


def maker_of(task, folder, n_folds=4):
    return Maker(folder, task, RetrieverSettings(NAMES), Gatherer(5, ("item_knn", "popularity")), "none", n_folds)


def test_folds_are_even_and_hang_on_the_names_alone():
    users = [f"u{i}" for i in range(23)]
    folds = folds_of(users, 5, seed=1)
    assert sorted(Counter(folds.values()).values()) == [4, 4, 5, 5, 5]
    assert folds == folds_of(reversed(users), 5, seed=1) != folds_of(users, 5, seed=2)
    with pytest.raises(UsageError, match=r"n_folds is 3: expected 2 to 2"):
        folds_of(["a", "b"], 3, seed=0)


def test_retrievers_without_folds_see_nobody_of_them():
    crossed = CrossFit({"a": [0], "b": [1], "c": [2], "d": [3]}, {"a": 0, "b": 1, "c": 2, "d": 0})
    assert crossed.n_folds == 3
    assert crossed.without() == [[0], [1], [2], [3]]
    assert crossed.without(0) == [[1], [2]]
    assert crossed.without(0, 2) == [[1]]


class Spy:
    """Knows whom it was fitted on, by the first item, which is everybody's own; scores as popularity does."""

    def __init__(self, sequences, n_items, seen):
        self.fitted_on = {sequence[0] for sequence in sequences}
        self.popularity, self.seen = fit_popularity(sequences, n_items), seen
        self.n_items = n_items

    def scores(self, histories):
        self.seen.append((frozenset(self.fitted_on), [history[0] for history in histories]))
        return self.popularity.scores(histories)


def test_a_retriever_never_sees_the_fold_of_its_example(tmp_path, monkeypatch):
    events = {f"u{user}": [user, *(20 + (user + step) % 10 for step in range(5))] for user in range(20)}
    task = load_task(write_log(tmp_path / "data", events))
    seen = []

    def spies(sequences, n_items, *_):
        spy = Spy(sequences, n_items, seen)
        return Fitted({"item_knn": spy, "popularity": spy.popularity}, spy.popularity, len(sequences))

    monkeypatch.setattr(make, "fit_retrievers", spies)
    maker = maker_of(task, tmp_path / "run")
    own = {maker.index[f"i{user}"]: maker.crossed(0).folds[f"u{user}"] for user in range(20)}
    maker.training(0)
    assert {item for _, asked in seen for item in asked} == set(own)
    for fitted_on, asked in seen:
        assert fitted_on == {item for item in own if own[item] not in {own[one] for one in asked}}
    seen.clear()
    for fold in range(4):
        learned = maker.without_fold(0, fold, positions=2)
        assert {own[maker.index[f"i{e.split(':')[0][1:]}"]] for table, _ in learned for e in table.example_ids} == (
            set(range(4)) - {fold}
        )
    # Each pair of folds is fitted once, without both, and asked for each of the two.
    assert Counter(len({own[item] for item in fitted_on}) for fitted_on, _ in seen) == {2: 12}
    for fitted_on, asked in seen:
        assert not {own[item] for item in asked} & {own[item] for item in fitted_on}


def changed_from(chains, user, place):
    """The same log, but for what a user chose from a place on."""
    items = chains[user]
    others = [item for item in range(12) if item not in items]
    return chains | {user: items[:place] + others[: len(items) - place]}


@pytest.mark.parametrize("place", [2, 3])
def test_evidence_and_scores_hang_neither_on_the_target_nor_on_the_future(chains, tmp_path, place):
    """The user's example at `place` has another target in the second log, and all that comes after differs too."""
    user, found = "u7", []
    for number, events in enumerate([chains, changed_from(chains, "u7", place)]):
        maker = maker_of(load_task(write_log(tmp_path / f"data{number}", events)), tmp_path / f"run{number}")
        fold = maker.crossed(0).folds[user]
        table = maker.training(0)[fold]
        rows = [table.rows[f"{user}:{position}"] for position in range(1, place + 1)]
        groups = Groups.of([(one, later < 3) for one, later in maker.without_fold(0, fold, 3)])
        ranker = train_ranker(groups, table.names, RankerSettings(leaves=4), rounds=5)
        scores = ranker.log_scores(table.candidates_R_K[rows], table.features_R_K_X[rows])
        targets = table.targets_R[rows]
        found.append((table.candidates_R_K[rows].tobytes(), table.features_R_K_X[rows].tobytes(), scores.tobytes()))
        assert np.isfinite(scores).any()
        found[-1] += (targets,)
    assert found[0][:3] == found[1][:3]
    assert found[0][3].tolist() != found[1][3].tolist()
