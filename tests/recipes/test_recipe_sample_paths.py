"""The sampling job as a user starts it: cut otherwise, killed or shared, it comes to the same table."""

import random
import sys
import time

import pytest

from anyo_rl.sampling.paths import KEY
from anyo_rl.sampling.shards import read_paths
from anyo_rl.task import DataArguments, load_task
from anyo_rl.teacher import make_tiny_teacher, save_teacher, train_tokenizer

pytestmark = pytest.mark.slow

SMALL = ("--toy_users", 300, "--toy_categories", 5)
ASKED = (*SMALL, "--n_samples", 4, "--max_reasoning_tokens", 24, "--max_examples", 600)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A tiny teacher that was never trained."""
    task = load_task(DataArguments(toy_users=300, toy_categories=5))
    tokenizer = train_tokenizer(task.texts(), 400)
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    save_teacher(make_tiny_teacher(tokenizer, hidden_size=32, n_layers=2, n_heads=2), tokenizer, folder)
    return folder


@pytest.fixture
def start(launcher, teacher, repo_root):
    """Starts the job as a plain process, as its page says."""

    def run(folder, n_shards, *flags):
        command = [sys.executable, str(repo_root / "recipes" / "sample_paths.py")]
        given = ("--model_name_or_path", teacher, "--output_dir", folder, "--n_shards", n_shards, *ASKED, *flags)
        return launcher.run_command([*command, *map(str, given)])

    return run


def finish(*started) -> str:
    for launched in started:
        assert launched.wait().process.returncode == 0, launched.output[-3000:]
    return started[-1].output


def test_shards_kills_and_processes_change_nothing(start, launcher, teacher, tmp_path):
    output = finish(start(tmp_path / "calm", 1))
    expected = read_paths(tmp_path / "calm")
    assert "2400 paths of 600 examples" in output
    assert "in the first ten after" in output
    assert expected["rank"].null_count() == 0
    assert set(expected["policy"]) == {str(teacher)}

    folder, rng = tmp_path / "killed", random.Random(0)
    for n_done in (1, 4):

        def is_time(n_done=n_done):
            ready = len(list(folder.glob("*.parquet"))) >= n_done
            if ready:
                time.sleep(rng.uniform(0, 0.3))
            return ready

        start(folder, 13).kill_when(is_time)
    done = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.parquet")}
    assert 4 <= len(done) < 13
    together = [start(folder, 13), start(folder, 13)]  # two plain processes, started at once
    finish(*together)
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == done
    assert sorted(file.name for file in folder.iterdir() if file.suffix != ".parquet") == ["job.json"]
    found = read_paths(folder)
    exact = [*KEY, "seed", "prompt", "target_id", "split", "model"]
    assert found.select(exact).equals(expected.select(exact))
    # Batches of another make-up can turn a draw that stood on an edge of float noise: here none does.
    assert found["completion"].equals(expected["completion"])
    assert found["rank"].equals(expected["rank"])

    shared = tmp_path / "launched"
    given = ("--model_name_or_path", teacher, "--output_dir", shared, "--n_shards", 5, *ASKED)
    environment = {"ACCELERATE_USE_CPU": "true"}
    launched = launcher.start("sample_paths", *given, config="cpu_2.yaml", env=environment).wait()
    assert launched.process.returncode == 0, launched.output[-3000:]
    assert launched.output.count("2400 paths of 600 examples") == 1
    assert read_paths(shared).equals(expected)

    other = start(folder, 13, "--temperature", 0.5).wait()
    assert other.process.returncode == 1
    assert "is of a job with temperature=1.0, now 0.5" in other.output
    assert "Traceback" not in other.output
