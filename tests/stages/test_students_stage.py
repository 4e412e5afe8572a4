"""Students as a stage: chosen, trained with several seeds, killed and gone on with, beside other runs."""

import dataclasses
import json

import numpy as np
import pytest

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.run.settings import UsageError
from anyo_rl.stages import students
from anyo_rl.stages.cache import CacheArguments, cache_of_scores
from anyo_rl.stages.student_arguments import DistillArguments, StudentArguments
from anyo_rl.stages.students import read_choice, read_lessons, train_student
from anyo_rl.students.distillation import Lessons
from anyo_rl.students.files import load_student

QUICK = {"max_epochs": 2, "dim": 8, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def task():
    return load_task(DataArguments(toy_users=60, toy_categories=4))


@pytest.fixture(scope="module")
def items(task):
    return task.interactions.items["item_id"].to_list()


@pytest.fixture(scope="module")
def plain(task, tmp_path_factory):
    """The folder of a finished run without a teacher, its summary and its arguments."""
    folder = tmp_path_factory.mktemp("plain")
    args = StudentArguments(output_dir=str(folder), seeds=[0, 1], **QUICK)
    return folder, train_student(task, args), args


@pytest.fixture
def lessons():
    """A teacher that says item 0 and item 1 at the second place of everybody."""
    n = 30
    top = np.tile(np.array([0, 1], np.int32), (n, 1))
    return Lessons(np.arange(n), np.ones(n, np.int64), top, np.log(np.full((n, 2), 0.5, np.float32)))


def test_a_run_ends_with_a_student_for_each_seed_and_a_table(plain, task, items):
    folder, summary, _ = plain
    assert set(summary.stages) == {"student", "popularity", "item_knn", "oracle", "intent_oracle"}
    assert set(summary.differences) == {"student-popularity", "student-item_knn"}
    assert len(summary.value("student", "plain").by_seed) == 2
    assert list(summary.slices) == []
    assert (
        "| student | learning_rate 0.01, dropout 0.3, dim 8, batch_size 32 |" in (folder / "evaluation.md").read_text()
    )
    scores = [load_student(folder / f"seed-{seed}" / "student", items).scores([[1, 2]]) for seed in (0, 1)]
    assert not np.allclose(*scores)


def test_what_is_finished_is_not_trained_again(plain, task, monkeypatch):
    _, summary, args = plain
    monkeypatch.setattr(students.Fitting, "neural", lambda *_: pytest.fail("it is there"))
    assert train_student(task, args) == summary


def test_one_that_thinks_answers_with_fewer_thoughts_too(task, tmp_path, items):
    quick = QUICK | {"max_epochs": 1}
    args = StudentArguments(output_dir=str(tmp_path), seeds=[0], n_thoughts=2, fewer_thoughts=[0], **quick)
    summary = train_student(task, args)
    assert {"student", "student_thoughts_0"} < set(summary.stages)
    assert "student_thoughts_0-student" in summary.differences
    assert load_student(tmp_path / "seed-0" / "student", items).thinking == 2


def test_it_stands_beside_other_runs(plain, task, lessons, tmp_path):
    """A distilled student in the table of the plain one, with what is set against what."""
    folder, before, _ = plain
    args = StudentArguments(
        output_dir=str(tmp_path), name="student_taught", beside=[str(folder)], seeds=[0, 1], **QUICK
    )
    summary = train_student(task, args, DistillArguments(labels=[0.3, 1.0]), lessons)
    assert set(summary.stages) == {*before.stages, "student_taught"}
    assert summary.stages["student"] == before.stages["student"]
    assert {"student_taught-student", "student_taught-item_knn"} <= set(summary.differences)
    chosen = read_choice(tmp_path)
    assert chosen.settings["labels"] in (0.3, 1.0)
    assert len(list((tmp_path / "trials" / "seed-0").iterdir())) == 2  # and one for the other seed
    assert len(list((tmp_path / "trials" / "seed-1").iterdir())) == 1
    tried = [json.loads(file.read_text()) for file in tmp_path.glob("trials/seed-0/*/fit.json")]
    assert chosen.validation_ndcg == pytest.approx(max(max(one["validation_ndcg"]) for one in tried))


def test_it_learns_from_a_cache_of_its_own_data_alone(task, tmp_path):
    cache_of_scores(task, CacheArguments(output_dir=str(tmp_path / "cache"), top_k=5), None, None)
    told = DistillArguments(teacher_cache=str(tmp_path / "cache"), labels=[0.5])
    lessons, card = read_lessons(task, told)
    assert (card["source"], card["top_k"]) == ("item_knn", 5)
    args = StudentArguments(output_dir=str(tmp_path / "run"), name="student_item_knn", seeds=[0], **QUICK)
    assert "student_item_knn" in train_student(task, args, told, lessons).stages
    with pytest.raises(UsageError, match="was made of other"):
        read_lessons(load_task(DataArguments(toy_users=61, toy_categories=4)), told)


def test_vectors_of_items(task, items, tmp_path):
    vectors = np.random.default_rng(0).normal(size=(len(items), 8)).astype(np.float32)
    np.save(tmp_path / "mine.npy", vectors)
    np.save(tmp_path / "short.npy", vectors[1:])
    one = StudentArguments(seeds=[0], item_vectors=str(tmp_path / "mine.npy"), **(QUICK | {"max_epochs": 1}))
    losses = []
    for name, changed in (("init", {}), ("fuse", {"fuse": True}), ("tfidf", {"item_vectors": "tfidf"})):
        train_student(task, dataclasses.replace(one, output_dir=str(tmp_path / name), **changed))
        (file,) = (tmp_path / name).glob("trials/*/*/fit.json")
        losses.append(json.loads(file.read_text())["losses"])
    assert losses[0] != losses[1] != losses[2]
    for wrong in ("short.npy", "none.npy", "bert"):
        with pytest.raises(UsageError, match=rf"expected none, tfidf, minilm, or a .npy of \({len(items)}, D\)"):
            train_student(
                task, dataclasses.replace(one, output_dir=str(tmp_path / "w"), item_vectors=str(tmp_path / wrong))
            )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "sasrec"}, "name is 'sasrec'; expected student"),
        ({"seeds": []}, "seeds is empty"),
        ({"dim": 9}, "dim is 9; expected an even number"),
        ({"fuse": True}, "fuse is true and item_vectors is none"),
        ({"n_thoughts": 2, "student": "gru4rec"}, "n_thoughts is 2 and student is gru4rec"),
        (
            {"n_thoughts": 2, "fewer_thoughts": [0, 2]},
            r"fewer_thoughts is \[0, 2\]; expected numbers below n_thoughts",
        ),
    ],
)
def test_wrong_settings_say_what_was_expected(changed, message):
    with pytest.raises(UsageError, match=message):
        StudentArguments(**changed)


@pytest.mark.parametrize("gammas", [[0.3], [0.0, 0.0, 1.0]])
def test_wrong_weights_say_what_was_expected(gammas):
    with pytest.raises(UsageError, match="expected three weights, of position, confidence and consistency"):
        DistillArguments(gammas=gammas)
    with pytest.raises(UsageError, match="labels or temperature is empty"):
        DistillArguments(labels=[])
