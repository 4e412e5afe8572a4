import json
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

from anyo_rl.evaluation.evaluator import MADE_WITH
from anyo_rl.evaluation.summarise import seed_frames, summarise_seeds
from anyo_rl.repeat import main, split_command

# A stand-in for a recipe: with each seed `grpo` answers one more of four examples of two users well.
# `--fail S` fails for that seed while there is no mended file.
FAKE = """
import argparse, json, pathlib, sys
import polars as pl
parser = argparse.ArgumentParser()
parser.add_argument("--api_key"); parser.add_argument("--start")
parser.add_argument("--seed", type=int); parser.add_argument("--output_dir"); parser.add_argument("--fail", type=int)
args, _ = parser.parse_known_args()
out = pathlib.Path(args.output_dir); out.mkdir(parents=True, exist_ok=True)
print("hello from seed", args.seed, args.start)
with open(out / "runs.txt", "a") as stream: stream.write("x")
if args.seed == args.fail and not (out.parent / "mended").exists():
    print("it broke here"); sys.exit(3)
(out / "answers").mkdir()
ranks = {"sft": [3, 3, 3, 3], "grpo": [1] * (args.seed + 1) + [3] * (3 - args.seed)}
for stage, found in ranks.items():
    top = [["a"], ["b"], ["b"], ["a"]]
    columns = {"example_id": list("wxyz"), "user_id": list("uuvv"), "rank": found, "top_ids": top}
    pl.DataFrame(columns).write_parquet(out / "answers" / f"{stage}.greedy.parquet")
json.dump({"dataset": "toy", "split": "test", "mask_history": False, "ranker": "likelihood", "n_users": 2, "seed": 1,
    "n_items": 4, "n_examples": 4, "stages": {}, "true_intent": {"sft": 0.4, "grpo": 0.5 + 0.1 * args.seed}},
    open(out / "evaluation.json", "w"))
"""


@pytest.fixture
def run(tmp_path):
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    folder = tmp_path / "runs" / "toy"

    def call(*seeds, extra=()):
        command = [sys.executable, str(script), "--output_dir", str(folder), *extra]
        return main(["--seeds", *map(str, seeds), "--", *command])

    call.folder = folder
    return call


def test_seeds_run_and_are_averaged(run, capsys):
    assert run(0, 1, 2) == 0
    summary = json.loads((run.folder / "repeat.json").read_text())
    assert (summary["seeds"], summary.get("seed")) == ([0, 1, 2], None)
    # Rank 3 has an NDCG of 1/2: .5 + .5/4, + 1/4, + 3/8.
    grpo = summary["stages"]["grpo"]["greedy"]["ndcg@10"]
    assert grpo["by_seed"] == pytest.approx([0.625, 0.75, 0.875])
    assert (grpo["mean"], grpo["n"]) == (pytest.approx(0.75), 12)
    # User u has 1, .5; 1, 1; 1, 1 and user v .5, .5; .5, .5; 1, .5: two draws of one of them are the interval's ends.
    assert (grpo["low"], grpo["high"]) == pytest.approx((7 / 12, 11 / 12))
    difference = summary["differences"]["grpo-sft"]["greedy"]["ndcg@10"]
    assert difference["by_seed"] == pytest.approx([0.125, 0.25, 0.375])
    assert (difference["mean"], difference["low"]) == pytest.approx((0.25, 1 / 12))
    assert summary["stages"]["grpo"]["greedy"]["coverage@10"]["by_seed"] == [0.5, 0.5, 0.5]
    assert summary["true_intent"]["grpo"] == {"mean": pytest.approx(0.6), "low": None, "high": None, "n": None,
                                              "by_seed": pytest.approx([0.5, 0.6, 0.7])}  # fmt: skip
    assert "hello from seed 1" in (run.folder / "seed-1" / "log.txt").read_text()
    text = (run.folder / "repeat.md").read_text()
    assert "seeds: 0 1 2" in text
    assert "| grpo-sft | greedy | ndcg@10 | +0.2500 [+0.0833, +0.4167] | +50.0% | +0.1250 +0.2500 +0.3750 |" in text
    assert text in capsys.readouterr().out


def test_a_seed_may_stand_inside_an_argument(run):
    assert run(0, 2, extra=("--start", "runs/star/seed-{seed}/teacher")) == 0
    for seed in (0, 2):
        assert f"seed-{seed}/teacher" in (run.folder / f"seed-{seed}" / "log.txt").read_text()
        assert "{seed}" not in (run.folder / f"seed-{seed}" / "log.txt").read_text()


def test_finished_seeds_are_kept(run, capsys):
    assert run(0) == 0
    assert run(0, 1) == 0
    assert (run.folder / "seed-0" / "runs.txt").read_text() == "x"
    assert "seed 0: already finished" in capsys.readouterr().out
    assert json.loads((run.folder / "repeat.json").read_text())["seeds"] == [0, 1]


def test_one_seed_is_a_run(run):
    assert run(2) == 0
    value = json.loads((run.folder / "repeat.json").read_text())["stages"]["grpo"]["greedy"]["ndcg@10"]
    assert (value["mean"], value["by_seed"]) == (0.875, [0.875])
    assert "95% bootstrap intervals over users" in (run.folder / "repeat.md").read_text()


def test_a_failing_seed_is_named_and_the_others_kept(run, capsys):
    assert run(0, 1, 2, extra=["--fail", "1"]) == 1
    error = capsys.readouterr().err
    assert "seed 1: failed: exit status 3" in error
    assert "it broke here" in error
    assert str(run.folder / "seed-1" / "log.txt") in error
    summary = json.loads((run.folder / "repeat.json").read_text())
    assert summary["seeds"] == [0, 2]
    assert list(summary["failed"]) == ["1"]
    (run.folder / "mended").touch()
    assert run(0, 1, 2, extra=["--fail", "1"]) == 0
    assert (run.folder / "seed-0" / "runs.txt").read_text() == "x"
    assert json.loads((run.folder / "repeat.json").read_text())["seeds"] == [0, 1, 2]


def test_a_repeat_that_is_told_to_stop_tells_its_seed(tmp_path):
    """A launch has children of its own: all of them are told, and repeat waits until they have saved."""
    child = "import pathlib, signal, sys, time; here = pathlib.Path(sys.argv[1]); "
    child += "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), (here / 'saved').touch(), sys.exit(0))); "
    child += "(here / 'started').touch(); time.sleep(60)"
    script = tmp_path / "launch.py"
    script.write_text(
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}, {str(tmp_path)!r}])\n"
    )
    command = [sys.executable, "-m", "anyo_rl.repeat", "--seeds", "0", "1", "--", sys.executable, str(script)]
    process = subprocess.Popen([*command, "--output_dir", str(tmp_path / "runs")], stdout=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "started").exists())
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "runs" / "seed-1").exists()


def wait_until(true, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_secrets_of_the_command_are_not_written_down(run):
    assert run(0, extra=["--api_key", "sentinel"]) == 0
    for file in run.folder.rglob("*"):
        assert not file.is_file() or b"sentinel" not in file.read_bytes(), file
    assert "--api_key '<redacted>'" in (run.folder / "seed-0" / "command.txt").read_text()
    assert run(0, extra=["--api_key", "another"]) == 0  # a new key makes no other command


@pytest.mark.parametrize(
    "extra",
    [
        ["-H", "Authorization: Bearer sentinel"],
        ["--judge", '{"url": "http://localhost:1/v1", "api_key": "sentinel"}'],
        ["--vllm_server_base_url", "http://user:sentinel@host:8000"],
        ["--url=https://host/v1?api_key=sentinel"],
    ],
)
def test_secrets_that_their_form_tells_are_not_written_down(run, extra):
    assert run(0, extra=extra) == 0
    for file in run.folder.rglob("*"):
        assert not file.is_file() or b"sentinel" not in file.read_bytes(), file
    assert "<redacted>" in (run.folder / "seed-0" / "command.txt").read_text()


def test_all_failing_writes_no_summary(run):
    assert run(1, extra=["--fail", "1"]) == 1
    assert not (run.folder / "repeat.json").exists()


def test_a_command_that_cannot_start_or_writes_nothing(tmp_path, capsys):
    assert main(["--seeds", "0", "--", str(tmp_path / "nothing"), "--output_dir", str(tmp_path / "a")]) == 1
    assert "could not start" in capsys.readouterr().err
    assert main(["--seeds", "0", "--", sys.executable, "-c", "pass", "--output_dir", str(tmp_path / "b")]) == 1
    assert "wrote no readable" in capsys.readouterr().err


def test_results_of_another_command_are_not_mixed_in(run, capsys):
    assert run(0) == 0
    assert run(0, 1, extra=["--fail", "9"]) == 2
    assert "made by another command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([], "found no command"),
        (["--output_dir", "x"], "found no command"),
        (["a"], "no --output_dir"),
        (["a", "--output_dir"], "no --output_dir"),
        (["a", "--output_dir", "x", "--seed", "1"], "found --seed"),
        (["a", "--output_dir", "x", "--seed=1"], "found --seed=1"),
    ],
)
def test_bad_commands(command, message, capsys):
    assert main(["--seeds", "0", "--", *command]) == 2
    assert message in capsys.readouterr().err


def test_output_dir_is_taken_out_of_the_command():
    command, folder = split_command(["a", "--output_dir=x/y", "--lr", "1"])
    assert (command, folder.as_posix()) == (["a", "--lr", "1"], "x/y")
    assert split_command(["a", "--output_dir", "x", "--lr", "1"])[0] == ["a", "--lr", "1"]


@pytest.fixture
def seeds(run):
    assert run(0, 1) == 0
    return {seed: run.folder / f"seed-{seed}" for seed in (0, 1)}


def test_seeds_that_were_evaluated_in_another_way_are_not_averaged(seeds):
    file = seeds[1] / "evaluation.json"
    file.write_text(file.read_text().replace('"mask_history": false', '"mask_history": true'))
    with pytest.raises(ValueError, match="differ in 'mask_history': found False, True"):
        summarise_seeds(seeds)
    with pytest.raises(ValueError, match="no seed"):
        summarise_seeds({})


def test_a_stage_that_one_seed_lacks_is_averaged_over_the_others(seeds):
    (seeds[0] / "answers" / "grpo.greedy.parquet").unlink()
    found = summarise_seeds(seeds).stages
    assert (found["grpo"]["greedy"]["ndcg@10"].by_seed, found["grpo"]["greedy"]["ndcg@10"].n) == ((0.75,), 4)
    assert found["sft"]["greedy"]["ndcg@10"].n == 8


def test_users_of_data_drawn_anew_are_others(seeds):
    assert set(seed_frames(seeds)["grpo"]["greedy"]["user_id"]) == {"u", "v"}
    for seed, folder in seeds.items():
        for file in (folder / "answers").glob("*.parquet"):
            metadata = {MADE_WITH: json.dumps({"users": "x", "split_seed": seed})}
            pl.read_parquet(file).write_parquet(file, metadata=metadata)
    assert set(seed_frames(seeds)["grpo"]["greedy"]["user_id"]) == {"0 u", "0 v", "1 u", "1 v"}


def test_answers_without_users_or_none_at_all_are_told(seeds):
    file = seeds[1] / "answers" / "sft.greedy.parquet"
    pl.read_parquet(file).drop("user_id").write_parquet(file)
    with pytest.raises(ValueError, match="does not name its users"):
        summarise_seeds(seeds)
    for file in (seeds[1] / "answers").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="found no answers in"):
        summarise_seeds(seeds)
