"""A recommender: the answers are those of an evaluation, and whatever is asked badly is told so."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
import yaml

from anyo_rl.data.names import UnknownItemError
from anyo_rl.data.sequences import held_out
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evidence.fusion import AlphaChoice, FusedRanker
from anyo_rl.evidence.opened import Evidence
from anyo_rl.metrics.ranking import target_ranks, top_items
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.run.folder import RunFolderError, resolve
from anyo_rl.run.settings import UsageError
from anyo_rl.search.answers import answer
from anyo_rl.search.how import SEARCHES
from anyo_rl.serve.recommender import Recommender, Request
from anyo_rl.stages.evaluate import evaluation_of
from anyo_rl.stages.evidence import EvidenceArguments, rank_by_evidence
from anyo_rl.stages.fusion import alpha_file, keep_choice


@pytest.fixture
def some(teacher):
    return teacher.examples(1)[0]


def test_importing_the_package_is_cheap():
    code = "import sys, anyo_rl; assert not {'torch', 'transformers', 'polars'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ImportError):
        from anyo_rl import Nothing  # noqa: F401


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("mode", ["greedy", "mixture"])
def test_teachers_answer_as_they_are_evaluated(run_folder, masked_folder, open_folder, mode, masked):
    """The rows of an evaluation, made by the stages' own code, beside requests of raw histories."""
    recommender = open_folder(masked_folder if masked else run_folder)
    job, teacher = recommender.answerer.job, recommender.answerer.teacher
    rows = job.rows_of(evaluation_of(job, teacher.catalog.item_ids).test, teacher)
    ranker, sampler = LikelihoodRanker(teacher.catalog, teacher.model), job.sampler(teacher.model, teacher.tokens)
    expected = answer(rows, ranker, sampler, teacher.tokens, job.how(mode, seed=job.seed))
    asked = recommender.examples(job.task.args.max_test)
    found = recommender.answer(asked, k=20, search=mode)
    assert [[item.item_id for item in one.items] for one in found] == expected.top_ids_U_K
    assert [one.target_rank for one in found] == expected.ranks_U.tolist()
    if masked:
        assert any(len(request.history) > 5 for request in asked)
        assert not any(
            {item.item_id for item in one.items} & set(request.history)
            for one, request in zip(found, asked, strict=True)
        )
    if mode == "greedy":  # nothing is drawn, so that a name is of no account
        raw = recommender.recommend([request.history for request in asked], k=20)
        assert [[item.item_id for item in one.items] for one in raw] == expected.top_ids_U_K


@pytest.mark.parametrize("masked", [False, True])
def test_students_answer_as_they_are_evaluated(run_folder, masked_folder, open_folder, masked):
    recommender = open_folder((masked_folder if masked else run_folder) / "student")
    task, index = recommender.task, {item: place for place, item in enumerate(recommender.titles)}
    rows = task.split("test", 8)
    asked = held_out(task, rows, index)
    scores = np.asarray(recommender.answerer.score(asked.histories, asked.excluded))
    found = recommender.answer(recommender.examples(8), k=5)
    items = list(index)
    expected = [[items[i] for i in row] for row in top_items(scores, 5, asked.excluded)[0]]
    assert [[item.item_id for item in one.items] for one in found] == expected
    assert [one.target_rank for one in found] == target_ranks(scores, asked.targets, asked.excluded).tolist()
    assert all(one.reasons == () and one.tree is None for one in found)
    with pytest.raises(UsageError, match="student answers at once"):
        recommender.recommend(list(recommender.titles)[:1], search="greedy")


@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_answers_alone_as_in_a_batch(teacher, search):
    histories = [request.history for request in teacher.examples(3)]
    batch = teacher.recommend([*histories, histories[0]], k=4, search=search, n=3)
    alone = [teacher.recommend(history, k=4, search=search, n=3) for history in histories]
    for one, other in zip(batch, [*alone, alone[0]], strict=True):
        assert [item.item_id for item in one.items] == [item.item_id for item in other.items]
        assert (one.reasons, one.n_tokens) == (other.reasons, other.n_tokens)
        assert [item.rank for item in one.items] == [1, 2, 3, 4]
        assert (one.tree is None) == (search == "plain")


def test_titles_and_ids_say_the_same(teacher, some):
    titles = [teacher.titles[item].upper() for item in some.history]
    assert teacher.recommend(titles, k=3).items == teacher.recommend(some.history, k=3).items
    first = teacher.recommend(titles, k=1).items[0]
    assert (first.rank, first.title, first.score <= 0) == (1, teacher.titles[first.item_id], True)


def test_reasons_are_left_out_and_nothing_else_changes(teacher, some):
    full, bare = (teacher.recommend(some.history, search="mixture", reasons=told) for told in (True, False))
    assert (full.items, full.n_tokens) == (bare.items, bare.n_tokens)
    assert (bare.reasons, bare.tree, bare.ending) == ((), None, None)


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_exclude_and_only(kind, some, request):
    recommender = request.getfixturevalue(kind)
    whole = recommender.recommend(some.history, k=10**9).items
    assert sorted(item.item_id for item in whole) == sorted(recommender.titles)
    order = [item.item_id for item in whole]
    less = recommender.recommend(some.history, k=3, exclude=[whole[0].title]).items
    assert [item.item_id for item in less] == order[1:4]
    only = [order[7], order[2], order[30]]
    assert [item.item_id for item in recommender.recommend(some.history, only=only).items] == [
        only[1],
        only[0],
        only[2],
    ]
    both = recommender.recommend(some.history, only=only, exclude=[only[1]]).items
    assert [item.item_id for item in both] == [only[0], only[2]]
    ranked = recommender.answer([Request(some.history, only=tuple(only), target=only[2])])
    assert ranked[0].target_rank == 3
    for wrong in ({"only": []}, {"only": only, "exclude": only}):
        with pytest.raises(UsageError, match="nothing is left to recommend"):
            recommender.recommend(some.history, **wrong)
    if kind == "teacher":
        probabilities = [math.exp(item.score) for item in whole]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"history": "i0"}, "expected a list of titles or item ids"),
        ({"history": ["nothing at all"]}, "no item is called 'nothing at all'; the nearest are"),
        ({"history": []}, "the history is empty, and grpo never met one: its shortest had"),
        ({"history": [[], ["i0"]]}, "the history is empty"),
        ({"history": ["i0"], "k": 0}, "k is 0: expected a whole number, 1 or more"),
        ({"history": ["i0"], "k": 2.5}, "k is 2.5"),
        ({"history": ["i0"], "n": 0}, "n is 0: expected a whole number from 1 to"),
        ({"history": ["i0"], "search": "best"}, "search is 'best': expected one of plain, greedy"),
        ({"history": ["i0"], "exclude": "i1"}, "exclude is 'i1': expected a list"),
        ({"history": ["i0", 3]}, "an item is 3"),
    ],
)
def test_bad_questions_are_told_what_is_wrong(teacher, some, asked, told):
    known = dict(zip(["i0", "i1"], some.history, strict=False))
    asked = json.loads(json.dumps(asked).replace('"i0"', json.dumps(known["i0"])))
    with pytest.raises((UsageError, UnknownItemError), match=told.replace("'i0'", f"'{known['i0']}'")):
        teacher.recommend(**asked)


@pytest.mark.parametrize("part", ["", "student"])
def test_an_empty_history_is_answered_where_it_was_met(masked_folder, open_folder, part):
    recommender = open_folder(masked_folder / part)
    found = recommender.recommend([], k=3)
    assert len(found.items) == 3
    assert [one.items for one in recommender.recommend([[], []], k=3)] == [found.items] * 2


def test_steps_are_told_as_they_are_written(teacher, some):
    told = []
    for search in ("mixture", "step_beam"):
        (found,) = teacher.answer([some], search=search, watch=lambda key, steps: told.append((key, steps)))
        assert {key for key, _ in told} == {some.name}
        assert set(found.reasons) <= {step for _, steps in told for step in steps}


class TestFolders:
    def test_of_evidence(self, tmp_path):
        pytest.importorskip("lightgbm", reason="needs the `evidence` extra")
        task = load_task(DataArguments(toy_users=60, toy_categories=4, mask_history=True, max_test=8))
        args = EvidenceArguments(output_dir=str(tmp_path), seeds=[0], most_rounds=5, n_folds=2, positions=[3])
        args = dataclasses.replace(args, retrievers=["item_knn", "popularity"], text="none", n_candidates=30)
        rank_by_evidence(task, args)
        section = {name: dict(one.settings) for name, one in resolve(task.args).items()}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(section))
        answers = pl.read_parquet(tmp_path / "seed-0" / "answers" / "evidence.plain.parquet")
        recommender = Recommender.from_pretrained(tmp_path)
        found = recommender.answer(recommender.examples(task.args.max_test), k=20)
        assert [[item.item_id for item in one.items] for one in found] == answers["top_ids"].to_list()
        assert [one.target_rank for one in found] == answers["rank"].to_list()

    @pytest.mark.parametrize("mode", ["greedy", "mixture"])
    def test_a_teacher_beside_evidence_answers_as_it_is_evaluated(self, masked_folder, tmp_path, mode):
        task = Recommender.from_pretrained(masked_folder / "student").task
        args = EvidenceArguments(output_dir=str(tmp_path), seeds=[0], most_rounds=5, n_folds=2, positions=[3])
        rank_by_evidence(task, dataclasses.replace(args, retrievers=["item_knn", "popularity"], text="none"))
        with pytest.raises(UsageError, match=r"how much grpo counts .* run recipes/evaluate.py --run_dir"):
            Recommender.from_pretrained(masked_folder, evidence=tmp_path)
        with pytest.raises(UsageError, match="named beside student: expected a teacher"):
            Recommender.from_pretrained(masked_folder / "student", evidence=tmp_path)
        run = tmp_path / "run"
        shutil.copytree(masked_folder, run)
        for other, alpha in {"greedy": 0.5, "mixture": 0.75}.items():
            keep_choice(alpha_file(run, "grpo", other), AlphaChoice(alpha, []))
        recommender = Recommender.from_pretrained(run, evidence=tmp_path)
        job, teacher = recommender.answerer.job, recommender.answerer.teacher
        rows = job.rows_of(evaluation_of(job, teacher.catalog.item_ids).test, teacher)
        fused = FusedRanker(
            *(LikelihoodRanker(teacher.catalog, teacher.model), Evidence.open(tmp_path, task)),
            {"greedy": 0.5, "mixture": 0.75}[mode],
        )
        sampler = job.sampler(teacher.model, teacher.tokens)
        expected = answer(rows, fused, sampler, teacher.tokens, job.how(mode, seed=job.seed))
        found = recommender.answer(recommender.examples(task.args.max_test), k=20, search=mode)
        assert [[item.item_id for item in one.items] for one in found] == expected.top_ids_U_K
        assert [one.target_rank for one in found] == expected.ranks_U.tolist()
        alone = Recommender.from_pretrained(run).recommend(list(recommender.titles)[:2], k=5)
        beside = recommender.recommend(list(recommender.titles)[:2], k=5)
        assert [item.score for item in alone.items] != [item.score for item in beside.items]
        assert len(beside.items) == 5

    def test_of_a_teacher_a_student_a_stage_and_a_run(self, run_folder, open_folder, some):
        named = Recommender.from_pretrained(str(run_folder), stage="grpo")
        direct = Recommender.from_pretrained(run_folder / "grpo" / "teacher")
        expected = open_folder(run_folder).recommend(some.history, k=2).items
        assert named.recommend(some.history, k=2).items == direct.recommend(some.history, k=2).items == expected
        with Recommender.from_pretrained(run_folder / "student" / "seed-0" / "student") as student:
            assert (
                student.recommend(some.history, k=2).items
                == open_folder(run_folder / "student").recommend(some.history, k=2).items
            )

    def test_the_stage_that_is_asked_first(self, tmp_path):
        for name in ("sft", "direct", "star", "sft_more"):
            (tmp_path / name / "teacher").mkdir(parents=True)
        from anyo_rl.serve.opening import find

        assert find(tmp_path).name == "star"
        with pytest.raises(UsageError, match="has no finished stage 'grpo'; it has sft, star, sft_more, direct"):
            find(tmp_path, "grpo")

    def test_what_is_no_such_folder(self, tmp_path):
        with pytest.raises(UsageError, match="found no folder"):
            Recommender.from_pretrained(tmp_path / "none")
        with pytest.raises(UsageError, match="holds nothing that can be asked: expected the run folder of a teacher"):
            Recommender.from_pretrained(tmp_path)
        (tmp_path / "served.json").touch()
        with pytest.raises(UsageError, match="exported student, which knows no titles"):
            Recommender.from_pretrained(tmp_path)
        (tmp_path / "alone").mkdir()
        (tmp_path / "alone" / "student.json").touch()
        with pytest.raises(UsageError, match="lies in no run folder"):
            Recommender.from_pretrained(tmp_path / "alone")
        (tmp_path / "grpo" / "teacher").mkdir(parents=True)
        (tmp_path / "served.json").unlink()
        with pytest.raises(RunFolderError, match="found no"):
            Recommender.from_pretrained(tmp_path)

    def test_data_that_are_gone_or_others(self, run_folder, tmp_path):
        copy = tmp_path / "run"
        copy.mkdir()
        (copy / "grpo").symlink_to(run_folder / "grpo")
        (copy / "fingerprint.json").write_text((run_folder / "fingerprint.json").read_text())
        settings = yaml.safe_load((run_folder / "config.yaml").read_text())
        for change, told in (
            (
                {"dataset": str(tmp_path / "gone.csv")},
                "which cannot be read; the folder keeps no copy of items and titles",
            ),
            ({"split_seed": 5}, "was made from other data"),
        ):
            changed = settings | {"DataArguments": settings["DataArguments"] | change}
            (copy / "config.yaml").write_text(yaml.safe_dump(changed))
            with pytest.raises(UsageError, match=told) as caught:
                Recommender.from_pretrained(copy)
            assert "\n" not in str(caught.value)


def test_requests_of_the_same_history_are_one_question():
    assert Request(("a", "b")).key == Request(("a", "b"), exclude=("c",)).key != Request(("ab",)).key
    assert dataclasses.replace(Request(("a",)), name="u:3").key == "u:3"
