import json
import math
import sys

import pytest

from anyo_rl.repeat import main, split_command, summarise, t_interval

# A stand-in for a recipe: NDCG@10 depends on the seed, `--fail S` fails for that seed while there is no mended file.
FAKE = """
import argparse, json, pathlib, sys
parser = argparse.ArgumentParser()
parser.add_argument("--api_key"); parser.add_argument("--start")
parser.add_argument("--seed", type=int); parser.add_argument("--output_dir"); parser.add_argument("--fail", type=int)
args = parser.parse_args()
out = pathlib.Path(args.output_dir); out.mkdir(parents=True, exist_ok=True)
print("hello from seed", args.seed, args.start)
with open(out / "runs.txt", "a") as stream: stream.write("x")
if args.seed == args.fail and not (out.parent / "mended").exists():
    print("it broke here"); sys.exit(3)
sft, grpo = 0.1 + 0.01 * args.seed, 0.2 + 0.03 * args.seed
json.dump({"dataset": "toy", "split": "test", "mask_history": False, "ranker": "likelihood", "n_users": 5, "seed": 1,
    "stages": {"sft": {"greedy": {"ndcg@10": {"mean": sft}}}, "grpo": {"greedy": {"ndcg@10": {"mean": grpo}}}},
    "differences": {"grpo-sft": {"greedy": {"ndcg@10": {"mean": grpo - sft, "low": 0, "high": 1, "n": 5}}}},
    "true_intent": {"sft": 0.4, "grpo": 0.5 + 0.1 * args.seed}}, open(out / "evaluation.json", "w"))
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


def test_t_interval_by_hand():
    # mean 2, sd 1, standard error 1/sqrt(3), t(0.975, 2) = 4.302653: half width 2.484138.
    found = t_interval([1.0, 2.0, 3.0])
    assert (found["mean"], found["sd"], found["n"]) == (2.0, 1.0, 3)
    assert found["low"] == pytest.approx(2 - 2.484138, abs=1e-5)
    assert found["high"] == pytest.approx(2 + 2.484138, abs=1e-5)
    # Two values 0 and 2: sd sqrt(2), standard error 1, t(0.975, 1) = 12.706205.
    assert t_interval([0.0, 2.0])["high"] == pytest.approx(13.706205, abs=1e-5)


def test_t_interval_of_one_none_and_equal_values():
    one = t_interval([0.5])
    assert (one["mean"], one["low"], one["high"], one["sd"], one["n"]) == (0.5, None, None, None, 1)
    assert t_interval([])["mean"] is None
    equal = t_interval([0.25, 0.25, 0.25])
    assert (equal["low"], equal["mean"], equal["high"]) == (0.25, 0.25, 0.25)


def test_seeds_run_and_are_averaged(run, capsys):
    assert run(0, 1, 2) == 0
    summary = json.loads((run.folder / "repeat.json").read_text())
    grpo = summary["stages"]["grpo"]["greedy"]["ndcg@10"]
    assert grpo["values"] == pytest.approx([0.2, 0.23, 0.26])
    assert grpo["mean"] == pytest.approx(0.23)
    assert grpo["high"] - grpo["mean"] == pytest.approx(4.302653 * 0.03 / math.sqrt(3), abs=1e-6)
    difference = summary["differences"]["grpo-sft"]["greedy"]["ndcg@10"]
    assert difference["mean"] == pytest.approx(0.12)
    assert difference["high"] - difference["mean"] == pytest.approx(4.302653 * 0.02 / math.sqrt(3), abs=1e-6)
    assert difference["lift_percent"] == pytest.approx(100 * (0.23 / 0.11 - 1))
    assert summary["true_intent"]["grpo"]["mean"] == pytest.approx(0.6)
    assert "hello from seed 1" in (run.folder / "seed-1" / "log.txt").read_text()
    text = (run.folder / "repeat.md").read_text()
    assert "seeds: 0 1 2" in text
    assert "| grpo-sft | greedy | ndcg@10 | +0.1200 | [+0.0703, +0.1697] | +109.1% | 3 |" in text
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


def test_one_seed_has_no_interval(run):
    assert run(4) == 0
    value = json.loads((run.folder / "repeat.json").read_text())["stages"]["sft"]["greedy"]["ndcg@10"]
    assert (value["low"], value["high"], value["n"]) == (None, None, 1)
    assert "One seed: no interval" in (run.folder / "repeat.md").read_text()


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


def test_secrets_of_the_command_are_not_written_down(run):
    assert run(0, extra=["--api_key", "sentinel"]) == 0
    for file in run.folder.rglob("*"):
        assert not file.is_file() or "sentinel" not in file.read_text(), file
    assert "--api_key '<redacted>'" in (run.folder / "seed-0" / "command.txt").read_text()
    assert run(0, extra=["--api_key", "another"]) == 0  # a new key makes no other command


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


def test_seeds_that_were_evaluated_in_another_way_are_not_averaged():
    with pytest.raises(ValueError, match="differ in 'mask_history'"):
        summarise({0: {"mask_history": True, "stages": {}}, 1: {"mask_history": False, "stages": {}}})
    with pytest.raises(ValueError, match="no seed"):
        summarise({})


def test_a_number_that_one_seed_lacks_is_averaged_over_the_others():
    stages = [{"sft": {"greedy": {"ndcg@10": 0.1}}}, {"sft": {"greedy": {"ndcg@10": 0.3, "mrr": 0.5}}}]
    stages.append({"sft": {"greedy": {"ndcg@10": float("nan")}}})
    greedy = summarise({seed: {"stages": found} for seed, found in enumerate(stages)})["stages"]["sft"]["greedy"]
    assert (greedy["ndcg@10"]["mean"], greedy["ndcg@10"]["n"]) == (pytest.approx(0.2), 2)
    assert (greedy["mrr"]["mean"], greedy["mrr"]["n"], greedy["mrr"]["low"]) == (0.5, 1, None)
