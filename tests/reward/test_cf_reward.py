import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.rows import sample_texts
from anyo_rl.students import FitSettings, SASRec, fit_student
from anyo_rl.students.files import load_student, save_student
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.tokens import Tokens
from reward.cf import CfReward
from reward.load import load_reward

INDEX = {f"i{i}": i for i in range(5)}


class Fixed:
    """A student with the same scores for each history, which counts what it is asked."""

    def __init__(self, scores):
        self.row, self.asked = np.array(scores, dtype=np.float32), []

    def scores(self, histories):
        self.asked += histories
        return np.tile(self.row, (len(histories), 1))


def fixed(scores=(5.0, 4.0, 3.0, 2.0, 1.0), **kwargs):
    reward = CfReward(**kwargs)
    reward.use(Fixed(scores), INDEX)
    return reward


def test_percentiles_by_hand():
    reward = fixed()
    items = ["i0", "i1", "i2", "i4", None]
    assert reward(item_id=items, history=[["i3"]] * 5, rank=[1] * 5) == [1.0, 0.75, 0.5, 0.0, 0.0]
    assert reward._scorer.asked == [[3]]  # completions of a prompt share a history
    assert fixed(floor=-1.0)(item_id=[None, None], history=[[], []]) == [-1.0, -1.0]
    assert reward(item_id=[], history=[]) == []


def test_the_log_of_the_rank():
    # 1 − ln(2)/ln(5), and 1 − ln(5)/ln(5).
    assert fixed(scale="log")(item_id=["i0", "i1", "i4"], history=[[]] * 3) == pytest.approx([1.0, 0.569323, 0.0])


def test_ties_count_against_the_item_and_unknown_history_is_passed_over():
    reward = fixed(scores=(1.0, 1.0, 1.0, 0.0, 2.0))
    assert reward(item_id=["i0", "i3"], history=[["gone"], ["i1", "gone"]]) == [0.25, 0.0]
    assert reward._scorer.asked == [[], [1]]


def test_masked_history_is_not_in_the_ranking():
    """What is left out may be older than the history that was shown."""
    asked = {"item_id": ["i2", "i2"], "history": [["i0"], []]}
    assert fixed()(**asked, excluded=[["i0", "i1", "gone"], []]) == [1.0, 0.5]
    assert fixed()(**asked) == [0.5, 0.5]


@given(st.lists(st.integers(0, 9), min_size=5, max_size=5), st.sampled_from(["percentile", "log"]))
def test_it_is_bounded_and_a_better_score_never_gets_less(scores, scale):
    values = fixed(scores, scale=scale)(item_id=list(INDEX), history=[[]] * 5)
    assert all(0 <= value <= 1 for value in values)
    for a in range(5):
        for b in range(5):
            assert scores[a] <= scores[b] or values[a] >= values[b]


@pytest.fixture(scope="module")
def toy():
    task = load_task(DataArguments(toy_users=40, toy_categories=4))
    tokens = Tokens.of(train_tokenizer(sample_texts(task), 400))
    return task, build_catalog(task.interactions.items, tokens)


def test_a_student_is_fitted_on_the_training_split(toy):
    task, catalog = toy
    reward = load_reward({"name": "cf", "kwargs": {"student": "item_knn"}})
    reward.fit(task, catalog, seed=0)
    rows = task.split("train")[:20]
    histories, targets = rows["history"].to_list(), rows["target_id"].to_list()
    chosen = np.mean(reward(item_id=targets, history=histories))
    others = np.mean([reward(item_id=[item] * 20, history=histories) for item in catalog.item_ids[::10]])
    assert chosen > 0.8 > others  # it has seen what these users chose


def test_a_saved_student_comes_back(toy, tmp_path):
    task, catalog = toy
    student = fit_student(
        SASRec, [[0, 1, 2], [3, 4]], len(catalog), FitSettings(max_epochs=1), dim=8, n_heads=2, n_layers=1
    )
    save_student(student, catalog.item_ids, tmp_path / "s")
    reward = CfReward(str(tmp_path / "s"))
    reward.fit(task, catalog)
    torch.testing.assert_close(reward._scorer.scores([[0, 1]]), student.scores([[0, 1]]))
    with pytest.raises(ValueError, match=r"they are not the 2 of the catalog in their order"):
        load_student(tmp_path / "s", ["a", "b"])
    with pytest.raises(FileNotFoundError, match=r"expected student.json"):
        load_student(tmp_path, ["a"])
    with pytest.raises(ValueError, match="found 1 item ids for a student of"):
        save_student(student, ["a"], tmp_path / "t")


def test_name_pickle_and_clear_errors():
    assert pickle.loads(pickle.dumps(fixed())).__name__ == "cf"
    with pytest.raises(ValueError, match="unknown scale 'rank': choose one of percentile, log"):
        CfReward(scale="rank")
    with pytest.raises(ValueError, match="no student 'sasrek': expected item_knn, sasrec, or the folder"):
        CfReward("sasrek")
    with pytest.raises(ValueError, match=r"not fitted: recipes call fit\(task, catalog, seed\)"):
        CfReward()(item_id=["i0"], history=[[]])
