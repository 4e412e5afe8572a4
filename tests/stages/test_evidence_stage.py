"""Evidence as a stage: finished, killed and gone on with, opened again."""

import dataclasses
import json
import shutil

import numpy as np
import polars as pl
import pytest
from trl import ModelConfig

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.sequences import held_out
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.evidence import tables
from anyo_rl.evidence.candidates import NONE
from anyo_rl.evidence.fusion import FusedRanker
from anyo_rl.evidence.opened import Evidence
from anyo_rl.evidence.ranker import table_ndcg
from anyo_rl.metrics.intervals import paired_interval
from anyo_rl.metrics.ranking import per_user_metrics, target_ranks
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.arguments import GrpoArguments, TeacherArguments
from anyo_rl.stages.baselines import BaselineArguments, evaluate_all
from anyo_rl.stages.evaluate import ask_teachers
from anyo_rl.stages.evidence import EvidenceArguments, rank_by_evidence
from anyo_rl.stages.fusion import check_evidence, with_headroom
from anyo_rl.stages.job import Job
from anyo_rl.stages.path_arguments import StarArguments
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens

TOY = DataArguments(toy_users=60, toy_categories=4, mask_history=True)
SMALL = {"n_candidates": 30, "n_folds": 3, "positions": [3], "most_rounds": 20, "leaves": 4}


@pytest.fixture(scope="module")
def task():
    return load_task(TOY)


@pytest.fixture(scope="module")
def finished(task, tmp_path_factory):
    """The folder of a finished run, and its summary."""
    folder = tmp_path_factory.mktemp("evidence")
    args = EvidenceArguments(output_dir=str(folder), seeds=[0, 1], training_scores=True, **SMALL)
    return folder, rank_by_evidence(task, args), args


def test_a_run_ends_with_a_table_and_what_evidence_is_worth(finished, task):
    folder, summary, _ = finished
    assert set(summary.stages) == {"evidence", "popularity", "item_knn", "oracle", "intent_oracle"}
    assert set(summary.differences) == {"evidence-popularity", "evidence-item_knn"}
    assert len(summary.value("evidence", "plain").by_seed) == 2
    report = (folder / "evidence.md").read_text()
    for text in ("| union |", "Recall on test:", "| item_knn_directed |", "The features of one request take"):
        assert text in report
    worths = json.loads((folder / "seed-1" / "worth.json").read_text())
    assert sum(one["gain"] for one in worths) == pytest.approx(1)
    assert all(0 <= one["drift"] <= 1 for one in worths if one["name"] != "seen")


def test_open_evidence_has_every_example(finished, task):
    folder, _, _ = finished
    evidence = Evidence.open(folder, task, seed=1)
    for split in ("train", "validation", "test"):
        examples = task.split(split)
        ids = examples["example_id"].to_list()
        candidates, log_scores = evidence.candidates(ids), evidence.log_scores(ids)
        asked = held_out(task, examples, evidence.maker.index)
        np.testing.assert_allclose(np.exp(log_scores).sum(axis=1), 1, rtol=1e-5)
        assert (np.isneginf(log_scores) == (candidates == NONE)).all()
        for row, items in enumerate(candidates):
            named = items[items != NONE].tolist()
            assert len(set(named)) == len(named)
            assert not set(named) & set(asked.excluded[row])
    # What is kept of held-out examples is what their histories give again.
    whole = evidence.scores(asked.histories, asked.excluded)
    kept = evidence.example_scores(ids, asked.histories)
    ranks = target_ranks(kept, asked.targets, asked.excluded)
    np.testing.assert_array_equal(target_ranks(whole, asked.targets, asked.excluded), ranks)
    answers = pl.read_parquet(folder / "seed-1" / "answers" / "evidence.plain.parquet")
    assert answers["rank"].to_list() == ranks.tolist()
    np.testing.assert_array_equal(evidence.scores(asked.histories), whole)  # masked, as the task is


@pytest.mark.slow
def test_a_teacher_and_evidence_rank_together(finished, task):
    folder, _, _ = finished
    evidence = Evidence.open(folder, task, seed=1)
    tokenizer = train_tokenizer(sample_texts(task), 400)
    tokens = Tokens.of(tokenizer)
    catalog = build_catalog(task.interactions.items, tokens)
    model = make_tiny_teacher(tokenizer, hidden_size=16, n_layers=1, n_heads=2).eval()
    for split, n in (("test", 20), ("train", 20)):
        rows = make_rows(task, task.split(split)[:n], catalog, tokens)
        ids, targets = [row.example_id for row in rows], [row.target_id for row in rows]
        contexts = [[*tokens.context_ids(row.prompt), tokens.marker_id] for row in rows]
        asked = {"example_ids_B": ids, "excluded_B": [row.excluded for row in rows], "top_k": 5}
        engine = LikelihoodRanker(catalog, model)
        alone = FusedRanker(engine, evidence, 0.0).rank_mixture([[c] for c in contexts], targets, **asked)
        assert alone.ranks_B.tolist() == evidence.target_ranks(ids).tolist()
        if split == "test":
            answers = pl.read_parquet(folder / "seed-1" / "answers" / "evidence.plain.parquet")[:n]
            assert alone.ranks_B.tolist() == answers["rank"].to_list()
            assert alone.top_ids_B_K == [row[:5] for row in answers["top_ids"].to_list()]
        assert alone.as_evidence_B_2.all()
        # Two paths of each: the whole distributions say what the mean is.
        pairs = [[context, [*context[:-1], 7, tokens.marker_id]] for context in contexts]
        table = DistributionRanker(catalog, model).log_probs([c for pair in pairs for c in pair]).numpy()
        fused = FusedRanker(engine, evidence, 0.7).rank_mixture(pairs, targets, **asked)
        candidates, log_scores = evidence.candidates(ids), evidence.log_scores(ids)
        own = np.exp(table[np.arange(2 * len(rows)), np.repeat(catalog.indices(targets), 2)]).reshape(-1, 2)
        np.testing.assert_allclose(fused.teacher_log_probs_B, np.log(own.mean(axis=1)), atol=1e-3)
        assert fused.evidence_ranks_B.tolist() == alone.ranks_B.tolist()
        moved = 0
        for row in range(len(rows)):
            items = candidates[row][candidates[row] != NONE]
            paths = table[2 * row : 2 * row + 2, items] * 0.7 + log_scores[row][candidates[row] != NONE]
            mean = (np.exp(paths) / np.exp(paths).sum(axis=1, keepdims=True)).mean(axis=0)
            best = items[np.argsort(-mean, kind="stable")][:5]
            assert fused.top_ids_B_K[row] == [catalog.item_ids[item] for item in best]
            assert fused.as_evidence_B_2[row, 0] == (fused.top_ids_B_K[row][0] == alone.top_ids_B_K[row][0])
            target = catalog.index[targets[row]]
            if target in items:
                place = items.tolist().index(target)
                assert fused.ranks_B[row] == 1 + (mean > mean[place]).sum()
                assert fused.log_probs_B[row] == pytest.approx(np.log(mean[place]), abs=1e-4)
                moved += fused.ranks_B[row] != alone.ranks_B[row]
            else:
                assert fused.ranks_B[row] == alone.ranks_B[row] > len(items)
        assert moved
    with pytest.raises(UsageError, match="of another catalog"):
        FusedRanker(LikelihoodRanker(build_catalog(task.interactions.items[1:], tokens), model), evidence, 1.0)


def check_written_rows(run, evidence):
    """Of what was written: distances reweighed by evidence, and beside evidence, are other ranks than either alone."""
    rows = {name: pl.read_parquet(run / "answers" / f"sft_written{name}.greedy.parquet") for name in ("", "_fused")}
    choice = json.loads((run / "fusion" / "sft_written.greedy.json").read_text())
    alone = json.loads((run / "fusion" / "sft.greedy.json").read_text())["trials"][0]
    assert choice["trials"][0] == alone  # at alpha 0 it is the evidence's own
    assert json.loads((run / "written" / "sft_written_evidence.greedy.json").read_text())["gamma"] >= 0
    ids = rows["_fused"]["example_id"].to_list()
    if choice["alpha"] == 0:
        assert rows["_fused"]["rank"].to_list() == evidence.target_ranks(ids).tolist()
    assert rows["_fused"]["rank"].to_list() != rows[""]["rank"].to_list()
    assert {"same_top1", "same_top10"} <= set(rows["_fused"].columns)
    assert "same_top1" not in rows[""].columns


@pytest.mark.slow
def test_a_run_evaluates_its_teacher_with_evidence_too(finished, task, tmp_path):
    folder, _, _ = finished
    settings = TeacherArguments(
        evidence=str(folder),
        max_reasoning_tokens=6,
        n_paths=2,
        tiny_hidden_size=16,
        written="catalog",
        reweigh_by="evidence",
    )
    job = Job(tmp_path, task, ModelConfig(dtype="float32"), settings, seed=1)
    with job.opened(None) as teacher:
        save_teacher(teacher.model, teacher.tokens.tokenizer, tmp_path / "sft" / "teacher")
    ask_teachers(job, {"sft": tmp_path / "sft" / "teacher"})
    answers = {file.stem for file in (tmp_path / "answers").iterdir()}
    written = {f"sft_written{row}.greedy" for row in ("", "_evidence", "_fused")}
    assert answers == {"sft.greedy", "sft.mixture", "sft_fused.greedy", "sft_fused.mixture"} | written
    evidence = Evidence.open(folder, task, seed=1)
    for mode in ("greedy", "mixture"):
        choice = json.loads((tmp_path / "fusion" / f"sft.{mode}.json").read_text())
        likeliest = min(choice["trials"], key=lambda trial: trial[2])[0]
        tried = [(alpha, value) for alpha, value, _ in choice["trials"] if alpha <= likeliest]
        best = max(value for _, value in tried)
        assert choice["alpha"] == min(alpha for alpha, value in tried if value == best)
        alone = table_ndcg(
            np.array(evidence.log_scores(evidence.maker.held_out("validation").example_ids)),
            evidence.maker.held_out("validation"),
        ).mean()
        assert choice["trials"][0][:2] == [0.0, pytest.approx(alone)]
        paths = pl.read_parquet(tmp_path / "paths" / f"sft.{mode}.parquet")
        with job.opened(tmp_path / "sft" / "teacher") as teacher:
            rows = job.rows_of(task.split("test"), teacher)
            contexts = [
                [
                    teacher.tokens.marked_context(teacher.tokens.context_ids(row.prompt), ids)
                    for ids in paths.filter(pl.col("example_id") == row.example_id)["token_ids"].to_list()
                ]
                for row in rows
            ]
            fused = FusedRanker(LikelihoodRanker(teacher.catalog, teacher.model), evidence, choice["alpha"])
            expected = fused.rank_mixture(
                contexts,
                [row.target_id for row in rows],
                example_ids_B=[row.example_id for row in rows],
                excluded_B=[row.excluded for row in rows],
            )
        kept = pl.read_parquet(tmp_path / "answers" / f"sft_fused.{mode}.parquet")
        assert kept["rank"].to_list() == expected.ranks_B.tolist()
        assert kept.select("same_top1", "same_top10").to_numpy().tolist() == expected.as_evidence_B_2.tolist()
    check_written_rows(tmp_path, evidence)
    before = (tmp_path / "answers" / "sft_fused.greedy.parquet").stat().st_mtime_ns
    ask_teachers(job, {"sft": tmp_path / "sft" / "teacher"})
    assert (tmp_path / "answers" / "sft_fused.greedy.parquet").stat().st_mtime_ns == before


def test_prompts_are_drawn_where_evidence_is_neither_right_nor_hopeless(finished, task):
    folder, _, _ = finished
    evidence = Evidence.open(folder, task, seed=1)
    places = task.places("train")
    ids = task.examples["example_id"].gather(places).to_list()
    by_id = dict(zip(ids, evidence.target_ranks(ids).tolist(), strict=True))
    # The ranks of training examples, by their fold's own ranker, one by one.
    n_items = evidence.n_items
    for example in ids[:50]:
        items, scores = evidence.candidates([example])[0], evidence.log_scores([example])[0]
        row = task.split("train").filter(pl.col("example_id") == example)
        target = evidence.maker.index[row["target_id"][0]]
        if target in items:
            place = items.tolist().index(target)
            expected = 1 + sum((scores[k], -k) > (scores[place], -place) for k in range(len(items)))
        else:
            expected = n_items - len(set(task.excluded(example)))
        assert by_id[example] == expected
    kept = with_headroom(task, places, evidence, [2, 10])
    expected = [place for place, rank in zip(places.tolist(), by_id.values(), strict=True) if 2 <= rank <= 10]
    assert 0 < len(kept) < len(places)
    assert kept.tolist() == expected
    assert with_headroom(task, places, evidence, None) is places
    with pytest.raises(UsageError, match="between 100000 and 100001: widen headroom"):
        with_headroom(task, places, evidence, [100_000, 100_001])


def test_what_cannot_be_trained_with_is_refused(finished, task, tmp_path):
    folder, _, _ = finished

    def refused(match, evidence=str(folder), **settings):
        with pytest.raises(UsageError, match=match):
            check_evidence(GrpoArguments(**settings), TeacherArguments(evidence=evidence), task, seed=1)

    refused("fusion_alpha, headroom without evidence", None, fusion_alpha=0.5, headroom=[2, 9])
    refused("fusion_alpha without evidence", "", fusion_alpha=0.5)
    refused("ranker is embedding and evidence is given", ranker="embedding")
    refused(r"headroom is \[9, 2\]: expected two ranks", headroom=[9, 2])
    with pytest.raises(UsageError, match="min_beyond_evidence without evidence"):
        check_evidence(StarArguments(min_beyond_evidence=0.1), TeacherArguments(), task, seed=1)
    check_evidence(GrpoArguments(headroom=[2, 9]), TeacherArguments(evidence=str(folder)), task, seed=1)
    copied = tmp_path / "evidence"
    shutil.copytree(folder, copied)
    (copied / "seed-1" / "scores" / "fold-2.npy").unlink()
    refused("no scores of training examples .*fold-2.* with --training_scores true", str(copied))
    check_evidence(GrpoArguments(), TeacherArguments(evidence=str(copied)), task, seed=0)


def test_evidence_is_of_its_data(finished, task, tmp_path):
    folder, _, _ = finished
    with pytest.raises(UsageError, match="made of other events, targets"):
        Evidence.open(folder, load_task(dataclasses.replace(TOY, split_seed=5)))
    with pytest.raises(UsageError, match=r"seeds \[0, 1\], and not of 7"):
        Evidence.open(folder, task, seed=7)
    with pytest.raises(UsageError, match="found no evidence in"):
        Evidence.open(tmp_path, task)
    with pytest.raises(UsageError, match="no evidence of 'nobody:3'"):
        Evidence.open(folder, task).candidates(["nobody:3"])


def kept_bytes(folder):
    """What a run keeps, less what says how long it took."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name not in ("recall.json", "evidence.md")]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_bytes(finished, task, tmp_path, monkeypatch):
    folder, _, args = finished
    again = dataclasses.replace(args, output_dir=str(tmp_path / "again"))
    calls, gather = [], tables.gather
    for kill_at in (2, 4, 11):

        def killed(*given, at=kill_at):
            calls.append(given)
            if len(calls) >= at:
                raise KeyboardInterrupt
            return gather(*given)

        monkeypatch.setattr(tables, "gather", killed)
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            rank_by_evidence(task, again)
    monkeypatch.setattr(tables, "gather", gather)
    rank_by_evidence(task, again)
    expected, found = kept_bytes(folder), kept_bytes(tmp_path / "again")
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"retrievers": ["item_knn", "magic"]}, "retrievers has magic"),
        ({"retrievers": ["item_knn", "item_knn"]}, "each once"),
        ({"lists": ["ease"]}, "lists has ease"),
        ({"text": "none"}, "leave one of the two out"),
        ({"training_scores": True, "n_folds": 2}, "expected 3 folds or more"),
        ({"seeds": []}, "is empty"),
        ({"retrievers": ["item_knn_last"]}, "name one in lists"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, expected):
    with pytest.raises(UsageError, match=expected):
        EvidenceArguments(**settings)


def log_of(folder, sequences):
    """A plain log of users' items, and its item table."""
    lines = [f"u{user},i{item},{60 * place}" for user, row in enumerate(sequences) for place, item in enumerate(row)]
    folder.mkdir()
    (folder / "log.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    (folder / "items.csv").write_text("item_id,title\n" + "\n".join(f"i{i},thing {i}" for i in range(40)) + "\n")
    return load_task(DataArguments(dataset=str(folder / "log.csv"), split="leave_one_out"))


def beyond_popularity(folder, sequences):
    """The gain in NDCG@10 over popularity, with its interval over users."""
    task = log_of(folder, sequences)
    retrievers = ["item_knn", "item_knn_last", "item_knn_directed", "popularity"]
    settings = {"n_candidates": 20, "text": "none", "positions": [5], "retrievers": retrievers}
    args = EvidenceArguments(output_dir=str(folder / "run"), seeds=[0], **settings)
    rank_by_evidence(task, args)
    ranks = [
        pl.read_parquet(folder / "run" / "seed-0" / "answers" / f"{name}.plain.parquet")["rank"]
        for name in ("evidence", "popularity")
    ]
    return paired_interval(*(per_user_metrics(one)["ndcg@10"] for one in ranks))


@pytest.mark.slow
def test_with_targets_shuffled_what_is_learned_falls_to_popularity(tmp_path):
    """Users go on to the next item half of the time; shuffled, the same events tell no more than popularity."""
    generator = np.random.default_rng(0)
    popularity = 1 / np.arange(1, 41)
    sequences = generator.choice(40, (900, 8), p=popularity / popularity.sum())
    for place in range(1, 8):
        follows = generator.random(900) < 0.5
        sequences[follows, place] = (sequences[follows, place - 1] + 1) % 40
    gain = beyond_popularity(tmp_path / "chains", sequences)
    assert gain.low > 0.1
    shuffled = generator.permutation(sequences.ravel()).reshape(sequences.shape)
    fallen = beyond_popularity(tmp_path / "shuffled", shuffled)
    assert fallen.low <= 0 <= fallen.high


@pytest.mark.slow
def test_settings_and_answers_of_baselines_are_taken_over(task, tmp_path):
    names = ["popularity", "item_knn", "ease"]
    evaluate_all(task, BaselineArguments(output_dir=str(tmp_path / "baselines"), names=names))
    retrievers = ["item_knn", "ease", "popularity"]
    args = EvidenceArguments(
        output_dir=str(tmp_path / "run"),
        seeds=[0],
        retrievers=retrievers,
        text="none",
        baselines_from=str(tmp_path / "baselines"),
        **SMALL,
    )
    summary = rank_by_evidence(task, args)
    assert {"evidence-item_knn", "evidence-ease"} <= set(summary.differences)
    chosen = json.loads((tmp_path / "run" / "retrievers.json").read_text())
    for name in ("item_knn", "ease"):
        told = json.loads((tmp_path / "baselines" / "chosen" / f"{name}.json").read_text())
        assert chosen[name] == told["settings"]
