"""STaR as it is started: what its rounds leave, and that kills cost nothing but time."""

import json
import os
import random
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from anyo_rl.data.completion import MARKER
from anyo_rl.evaluation.convergence import read_trainings
from anyo_rl.run.folder import read_metrics
from anyo_rl.sampling.shards import read_paths
from anyo_rl.training.star import REASONS

SMOKE = Path(__file__).parent / "configs"
FLAGS = ("--config", SMOKE / "star.yaml", "--baselines", "false", "--train_direct", "false")
N_EXAMPLES, N_SAMPLES, N_HINTED = 24, 2, 2

pytestmark = pytest.mark.slow


def start_of(run: Path) -> tuple[object, ...]:
    """Flags of a run that starts from a run's warm start."""
    return (*FLAGS, "--sft_config", "", "--model_name_or_path", run / "sft" / "teacher")


def check_tables(run: Path) -> None:
    """Every example was sampled once a round, and trained on without what had been a hint."""
    rows = json.loads((run / "star" / "rounds.json").read_text())
    assert [row["round"] for row in rows] == list(range(len(rows)))
    for row in rows[1:]:
        folder = run / "star" / f"round-{row['round']}"
        paths, hinted = read_paths(folder / "paths"), read_paths(folder / "hinted")
        for table, n in ((paths, N_SAMPLES), (hinted, N_HINTED)):
            assert table.select("example_id", "sample_index").is_unique().all()
            assert table["example_id"].value_counts()["count"].to_list() == [n] * table["example_id"].n_unique()
            assert not table["prompt"].str.contains("Chosen:").any()
        assert paths["example_id"].n_unique() == N_EXAMPLES == row["sampled"]["examples"]
        kept = pl.read_parquet(folder / "kept.parquet")
        assert len(kept) == row["sampled"]["kept"] + row["hinted"]["kept"] > 0
        for counts in (row["sampled"], row["hinted"]):
            assert counts["sampled"] == sum(counts[name] for name in ("kept", *REASONS))
        # An example is asked again with a hint where no path was good enough, and there alone.
        good = paths.filter(pl.col("completion").str.contains(MARKER, literal=True) & (pl.col("rank") <= 100))
        assert set(kept["example_id"]) <= set(good["example_id"]) | set(hinted["example_id"])
        assert kept["split"].unique().to_list() == ["train"]


def check_run(run: Path, start: Path, output: str) -> None:
    """The best round's teacher is the run's, and it is evaluated and reported beside its start."""
    check_tables(run)
    rows = json.loads((run / "star" / "rounds.json").read_text())
    assert len(rows) == 3
    best = max(rows, key=lambda row: row["ndcg@10"])["round"]
    chosen = run / "star" / f"round-{best}" / "teacher" if best else start
    kept, of_round = (load_file(folder / "model.safetensors") for folder in (run / "star" / "teacher", chosen))
    for name in of_round:
        np.testing.assert_array_equal(kept[name], of_round[name])
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert {"sft", "star"} <= set(evaluation["stages"])
    assert "star-sft" in evaluation["differences"]
    assert "Rounds of STaR" in (run / "report.html").read_text()
    assert f"report: {run / 'report.html'}" in output
    # Sampling has its FLOPs beside those of training, once for each job.
    logged = [row["stage"] for row in read_metrics(run / "metrics.jsonl")[0] if row["stage"].count("/") == 2]
    assert sorted(logged) == [f"star/round-{n}/{job}" for n in (1, 2) for job in ("hinted", "paths")]
    assert all(read_trainings(run / "metrics.jsonl")[stage].flops > 0 for stage in logged)


def test_rounds_leave_what_they_should_and_kills_cost_nothing_but_time(finished_run, launcher, tmp_path):
    """Between CI's few kills lies what each leaves; ANYO_RL_KILLS=10 kills at random moments instead."""
    flags = start_of(finished_run.folder)
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    begin = time.monotonic()
    output = launcher.finish("star_teacher", *flags, "--output_dir", unbroken)
    took_s = time.monotonic() - begin
    check_run(unbroken, finished_run.teacher, output)
    first = run / "star" / "round-1"
    moments = [
        lambda: len(list((first / "paths").glob("*.parquet"))) == 2,
        lambda: len(list((run / "star" / "round-2" / "hinted").glob("*.parquet"))) == 1,
    ]
    draws = random.Random(7)
    for _ in range(n_random := int(os.environ.get("ANYO_RL_KILLS", "0"))):
        end = draws.uniform(0.2, 0.9) * took_s
        moments.append(lambda begin_s=end: time.monotonic() > started_at + begin_s)
    written: dict[Path, int] = {}
    for moment in moments[2 if n_random else 0 :]:
        started_at = time.monotonic()
        launched = launcher.start("star_teacher", *flags, "--output_dir", run)
        launched.kill_when(lambda moment=moment, launched=launched: moment() or launched.process.poll() == 0)
        written |= {file: file.stat().st_mtime_ns for file in run.glob("star/*/*/shard-*.parquet")}
    launcher.finish("star_teacher", *flags, "--output_dir", run)
    check_tables(run)
    assert written, "no kill came after a shard was done"
    assert {file: file.stat().st_mtime_ns for file in written} == written, "a shard was made twice"
    for file in sorted(unbroken.glob("star/round-*/kept.parquet")):
        assert pl.read_parquet(run / file.relative_to(unbroken)).equals(pl.read_parquet(file))
    for file in ("star/rounds.json", "evaluation.json"):
        assert (run / file).read_text() == (unbroken / file).read_text()
    again, once = (load_file(folder / "star" / "teacher" / "model.safetensors") for folder in (run, unbroken))
    for name in once:
        np.testing.assert_array_equal(again[name], once[name], err_msg=name)


@pytest.mark.on_request
def test_two_processes_share_the_sampling_of_a_round(finished_run, launcher, tmp_path):
    run = tmp_path / "run"
    least = "--rounds 1 --max_steps 2 --max_test 8 --use_cpu"
    launcher.finish(
        "star_teacher", *start_of(finished_run.folder), *least.split(), "--output_dir", run, config="cpu_2.yaml"
    )
    check_tables(run)
    assert len(json.loads((run / "star" / "rounds.json").read_text())) == 2
    assert set(json.loads((run / "evaluation.json").read_text())["stages"]) == {"sft", "star"}


@pytest.mark.on_request
def test_rejection_sampling_is_one_round_of_the_best(finished_run, launcher, tmp_path):
    run = tmp_path / "run"
    best = "--rounds 1 --n_samples 4 --most_per_example 1 --rationalise false --mix_rationales false"
    least = "--max_steps 2 --max_test 8"
    launcher.finish("star_teacher", *start_of(finished_run.folder), *best.split(), *least.split(), "--output_dir", run)
    folder = run / "star" / "round-1"
    assert not (folder / "hinted").exists()
    kept, paths = pl.read_parquet(folder / "kept.parquet"), read_paths(folder / "paths")
    assert kept["example_id"].is_unique().all()
    ranks = paths.filter(pl.col("completion").str.contains(MARKER, literal=True) & (pl.col("steps").list.len() > 0))
    ranks = ranks.group_by("example_id").agg(best=pl.col("rank").min())
    together = kept.join(ranks, on="example_id")
    assert len(together) == len(kept) > 0
    assert (together["rank"] == together["best"]).all()
