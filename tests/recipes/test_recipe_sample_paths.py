"""The sampling job as a user starts it: cut otherwise, killed or shared, it comes to the same table."""

import random
import sys
import time

import pytest
from trl import ModelConfig

from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.rows import sample_texts
from anyo_rl.sampling.shards import read_paths
from anyo_rl.stages.arguments import TeacherArguments
from anyo_rl.stages.job import Job
from anyo_rl.stages.sample import SampleArguments, sample_job
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.save import save_teacher

pytestmark = pytest.mark.slow

SMALL = ("--toy_users", 300, "--toy_categories", 5)
ASKED = (*SMALL, "--n_samples", 4, "--max_reasoning_tokens", 24, "--max_examples", 400)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A tiny teacher that was never trained."""
    task = load_task(DataArguments(toy_users=300, toy_categories=5))
    tokenizer = train_tokenizer(sample_texts(task), 400)
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
    task = load_task(DataArguments(toy_users=300, toy_categories=5))
    asked = {"n_samples": 4, "max_examples": 400, "n_shards": 1}
    calm = SampleArguments(output_dir=str(tmp_path / "calm"), **asked)
    model_args = ModelConfig(model_name_or_path=str(teacher))
    sample_job(Job(tmp_path / "calm", task, model_args, TeacherArguments(max_reasoning_tokens=24)), calm)
    expected = read_paths(tmp_path / "calm")
    assert len(expected) == 1600

    folder, rng = tmp_path / "killed", random.Random(0)

    def is_time():
        ready = len(list(folder.glob("*.parquet"))) >= 2
        if ready:
            time.sleep(rng.uniform(0, 0.3))
        return ready

    start(folder, 13).kill_when(is_time)
    done = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.parquet")}
    assert 2 <= len(done) < 13
    together = [start(folder, 13), start(folder, 13)]  # two plain processes, started at once
    output = finish(*together)
    assert "1600 paths of 400 examples" in output
    assert "in the first ten after" in output
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == done
    assert sorted(file.name for file in folder.iterdir() if file.suffix != ".parquet") == ["catalog", "job.json"]
    # Batches of another make-up can turn a draw that stood on an edge of float noise: here none does.
    assert read_paths(folder).equals(expected)

    shared = tmp_path / "launched"
    given = ("--model_name_or_path", teacher, "--output_dir", shared, "--n_shards", 5, *ASKED)
    environment = {"ACCELERATE_USE_CPU": "true"}
    launched = launcher.start("sample_paths", *given, config="cpu_2.yaml", env=environment).wait()
    assert launched.process.returncode == 0, launched.output[-3000:]
    assert launched.output.count("1600 paths of 400 examples") == 1
    assert read_paths(shared).equals(expected)
