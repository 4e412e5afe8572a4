"""Teachers that write items: how they are evaluated, what they are rewarded with, and what is refused."""

import json

import numpy as np
import polars as pl
import pytest
import torch
from trl import ModelConfig

from anyo_rl.data.completion import parse
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.encoders.hidden_states import teacher_encoder
from anyo_rl.evaluation.evaluator import Evaluation
from anyo_rl.evaluation.summarise import summarise
from anyo_rl.evaluation.table import markdown_table
from anyo_rl.evidence.reweighing import ReweighedRanker
from anyo_rl.metrics.ranking import per_user_metrics
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.arguments import GrpoArguments, TeacherArguments
from anyo_rl.stages.evaluate import ask_teachers
from anyo_rl.stages.fusion import check_evidence
from anyo_rl.stages.job import Job
from anyo_rl.stages.written import Writer, by_distance, check_written, open_weights, training_ranker, writing_of
from anyo_rl.teacher.save import save_teacher


@pytest.fixture(scope="module")
def task():
    return load_task(DataArguments(toy_users=60, toy_categories=4, mask_history=True))


@pytest.fixture
def make(task, tmp_path):
    def job(**settings):
        settings = {"max_reasoning_tokens": 5, "n_paths": 2, "tiny_hidden_size": 16, **settings}
        made = Job(tmp_path, task, ModelConfig(dtype="float32"), TeacherArguments(**settings), seed=1)
        if not (tmp_path / "sft" / "teacher").exists():
            with made.opened(None) as teacher:
                save_teacher(teacher.model, teacher.tokens.tokenizer, tmp_path / "sft" / "teacher")
        return made

    return job


def greedy_item(catalog, model, context):
    """The item at the end of the likeliest child at each node."""
    (log_p_N,) = DistributionRanker(catalog, model).log_probs([context])
    items, depth = list(range(len(catalog))), 0
    while len(items) > 1:
        mass: dict[int, float] = {}
        for item in items:
            token = catalog.paths[item][depth]
            mass[token] = mass.get(token, 0.0) + float(log_p_N[item].exp())
        best = max(mass, key=mass.__getitem__)
        items = [item for item in items if catalog.paths[item][depth] == best]
        depth += 1
    return items[0]


@pytest.mark.slow
def test_a_row_of_what_is_written_stands_beside_the_likelihood(make, task, tmp_path):
    job = make(written="catalog", reweigh_by="popularity")
    ask_teachers(job, {"sft": tmp_path / "sft" / "teacher"})
    names = {file.stem for file in (tmp_path / "answers").iterdir()}
    assert names == {"sft.greedy", "sft.mixture", "sft_written.greedy", "sft_written_popularity.greedy"}
    choice = json.loads((tmp_path / "written" / "sft_written_popularity.greedy.json").read_text())
    best = max(value for _, value in choice["trials"])
    assert choice["gamma"] == next(gamma for gamma, value in choice["trials"] if value == best)

    test, weights = task.split("test"), open_weights(job)
    paths = pl.read_parquet(tmp_path / "paths" / "sft.greedy.parquet")
    plain = pl.read_parquet(tmp_path / "answers" / "sft_written.greedy.parquet")
    weighed = pl.read_parquet(tmp_path / "answers" / "sft_written_popularity.greedy.parquet")
    assert plain["example_id"].to_list() == test["example_id"].to_list()
    with job.opened(tmp_path / "sft" / "teacher") as teacher:
        catalog, tokens = teacher.catalog, teacher.tokens
        vectors = teacher_encoder(teacher.model, tokens.tokenizer)(list(catalog.titles)).double()
        for place, row in enumerate(job.rows_of(test, teacher)[:10]):
            (ids,) = paths.filter(pl.col("example_id") == row.example_id)["token_ids"].to_list()
            context = tokens.marked_context(tokens.context_ids(row.prompt), ids)
            item, target = greedy_item(catalog, teacher.model, context), catalog.index[row.target_id]
            out = catalog.known(row.excluded)
            distances = (vectors - vectors[item]).norm(dim=1)
            share = (distances - distances.min()) / (distances.max() - distances.min())
            w = torch.tensor(weights.of([row.example_id])[0]).double()
            w = (w - w.min()) / (w.max() - w.min())
            for frame, scores in ((plain, distances), (weighed, share * (1 + w) ** -choice["gamma"])):
                kept = [i for i in range(len(catalog)) if i not in out or i == target]
                rank = sum(bool(scores[i] <= scores[target] + 1e-12) for i in kept)
                assert frame["rank"][place] == rank
                first = [i for i in range(len(catalog)) if i not in out]
                assert frame["top_ids"][place][0] == catalog.item_ids[min(first, key=lambda i: float(scores[i]))]
    before = (tmp_path / "answers" / "sft_written.greedy.parquet").stat().st_mtime_ns
    ask_teachers(job, {"sft": tmp_path / "sft" / "teacher"})
    assert (tmp_path / "answers" / "sft_written.greedy.parquet").stat().st_mtime_ns == before

    summary = summarise(Evaluation(tmp_path, task, catalog.item_ids, test, 1), "likelihood", 2)
    found = summary.differences["sft_written-sft"]["greedy"]["ndcg@10"].mean
    read_off = pl.read_parquet(tmp_path / "answers" / "sft.greedy.parquet")
    ours, theirs = (per_user_metrics(frame["rank"])["ndcg@10"].mean() for frame in (plain, read_off))
    assert found == pytest.approx(ours - theirs)
    assert "of what is written: embedding" in markdown_table(summary)


def test_free_text_is_grounded_whatever_it_is(make, task, tmp_path):
    job = make(written="free")
    with job.opened(tmp_path / "sft" / "teacher") as teacher:
        rows = job.rows_of(task.split("test", 12), teacher)
        how = job.how("greedy", seed=0)
        writer = Writer(job, teacher, how, "free", lambda: by_distance(job, "sft", teacher, "free"), rows)
        texts = [parse(text).item for text in writer.test]
        assert any(text is not None and teacher.catalog.find(text) is None for text in texts)
        answers = writer.answers(None, tmp_path)
        held = Writer(job, teacher, how, "catalog", writer.open_ranker, rows)
        assert all(teacher.catalog.find(parse(text).item) for text in held.test)
        encoder = teacher_encoder(teacher.model, teacher.tokens.tokenizer)
        vectors = encoder(list(teacher.catalog.titles)).double()
        for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
            target, out = teacher.catalog.index[row.target_id], teacher.catalog.known(row.excluded)
            rivals = [i for i in range(len(vectors)) if i not in out or i == target]
            if text is None:
                assert answers.ranks_U[place] == len(rivals)
                continue
            distances = (vectors - encoder([text]).double()).norm(dim=1)
            near = [sum(bool(distances[i] <= distances[target] + slack) for i in rivals) for slack in (-1e-5, 1e-5)]
            assert near[0] <= answers.ranks_U[place] <= near[1]


def test_gamma_of_the_reward_is_chosen_once_and_kept(make, task, tmp_path, monkeypatch):
    job = make(reweigh_by="item_knn")
    start = tmp_path / "sft" / "teacher"
    with job.opened(start) as teacher:
        ranker = by_distance(job, "grpo", teacher, "catalog")
    reward = training_ranker(job, "grpo", start, ranker)
    assert isinstance(reward, ReweighedRanker)
    choice = json.loads((tmp_path / "grpo" / "gamma.json").read_text())
    assert reward.ranker.gamma == choice["gamma"]
    assert choice["trials"][0][0] == 0
    assert json.loads((tmp_path / "written" / "item_knn.json").read_text())["names"] == ["item_knn"]
    (tmp_path / "grpo" / "gamma.json").write_text(json.dumps({"gamma": 7.0}))
    monkeypatch.setattr(Writer, "gamma", None)
    assert training_ranker(job, "grpo", start, ranker).ranker.gamma == 7.0
    # A training example is ranked with scores of its fold's own retriever.
    example = task.split("train")["example_id"][-1]
    user = task.split("train")["user_id"][-1]
    out_of_fold = reward.weights.scorer(reward.weights.crossed.folds[user])
    assert out_of_fold is not reward.weights.scorer(None)
    history = [reward.weights.index[item] for item in task.past.before(example)]
    np.testing.assert_array_equal(reward.weights.of([example])[0], out_of_fold.scores([history])[0])
    assert training_ranker(make(), "grpo", start, ranker) is ranker


def test_how_items_are_written_is_what_was_told_or_learned():
    assert writing_of(TeacherArguments(), "likelihood") == "none"
    assert writing_of(TeacherArguments(sft_item_loss="tokens"), "likelihood") == "catalog"
    assert writing_of(TeacherArguments(), "match") == "catalog"
    assert writing_of(TeacherArguments(written="none"), "match") == "none"
    assert writing_of(TeacherArguments(written="free"), "likelihood") == "free"


def test_what_would_be_passed_over_is_refused(task):
    def refused(expected, ranker="likelihood", **settings):
        with pytest.raises(UsageError, match=expected):
            check_written(TeacherArguments(**settings), ranker)

    refused("reweigh_by is ease, and no item is written", reweigh_by="ease")
    refused("reweigh_by is ease, and no item is written", "match", reweigh_by="ease", written="none")
    refused(r"reweigh_by is evidence: name the folder of recipes/rank_evidence.py", "embedding", reweigh_by="evidence")
    refused("free text is grounded by its title", written="free", item_tokens="item")
    check_written(TeacherArguments(reweigh_by="ease", written="none"), "embedding")
    check_written(TeacherArguments(reweigh_by="ease", sft_item_loss="tokens"))
    check_written(TeacherArguments(reweigh_by="evidence", evidence="runs/evidence"), "embedding")
    evidence = TeacherArguments(evidence="runs/evidence", reweigh_by="evidence")
    with pytest.raises(UsageError, match="fusion_alpha is set, and ranker is embedding"):
        check_evidence(GrpoArguments(ranker="embedding", fusion_alpha=0.5), evidence, task, 0)
    with pytest.raises(UsageError, match="ranker is match and evidence is given"):
        check_evidence(GrpoArguments(ranker="match"), evidence, task, 0)
