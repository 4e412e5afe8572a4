"""Runs that are told to stop, or lose a process, or run out of disk: no hang, nothing lost, the same end."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from anyo_rl.training.loop.checkpoints import latest_checkpoint

SMOKE = Path(__file__).parent / "configs"
LONGEST_S = 60  # from a fault to the end of all processes
N_MOMENTS = int(os.environ.get("ANYO_RL_KILLS", "0"))
LEAST = ("--baselines", "false", "--max_test", "4")

pytestmark = pytest.mark.slow


class Faults:
    """A run of one training stage that things are done to.

    Args:
        launcher: starts it.
        recipe: its recipe.
        stage_dir: where its checkpoints go.
        flags: its flags.
        **launch: how it is launched.
    """

    def __init__(self, launcher, recipe: str, stage_dir: Path, *flags: object, **launch) -> None:
        self.launcher, self.recipe, self.stage_dir, self.launch = launcher, recipe, stage_dir, launch
        self.flags = (*flags, "--output_dir", stage_dir.parent)
        self.metrics = stage_dir.parent / "metrics.jsonl"

    def move_to(self, run_dir: Path) -> None:
        self.stage_dir, self.metrics = run_dir / self.stage_dir.name, run_dir / self.metrics.name
        self.flags = (*self.flags[:-1], run_dir)

    def finish(self) -> None:
        self.launcher.finish(self.recipe, *self.flags, **self.launch)

    def steps(self) -> list[int]:
        """Steps of this stage that were logged; the last line may be half of one."""
        text = self.metrics.read_text() if self.metrics.exists() else ""
        rows = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return [row["step"] for row in rows if row["stage"] == self.stage_dir.name and "loss" in row]

    def fault(self, step: int, number: int, victim: int | None = None, wait_s: float = 0.0):
        """Starts the run, and sends a signal to a rank, or to the launcher, once a step was logged.

        Returns the launch, and the seconds until none of its processes was left.
        """
        before = self.metrics.stat().st_ino if self.metrics.exists() else None
        launched = self.launcher.start(self.recipe, *self.flags, **({"config": "cpu.yaml"} | self.launch))
        ranks: dict[int, int] = {}
        # A resumed training writes the file anew.
        while not (
            self.metrics.exists() and self.metrics.stat().st_ino != before and max(self.steps(), default=0) >= step
        ):
            assert launched.process.poll() is None, launched.output[-3000:]
            ranks = ranks_of(launched.process.pid)
            time.sleep(0.01)
        time.sleep(wait_s)
        began = time.monotonic()
        os.kill(launched.process.pid if victim is None else ranks[victim], number)
        while launched.process.poll() is None or any(map(is_alive, ranks.values())):
            if time.monotonic() - began > LONGEST_S:
                for pid in ranks.values():
                    os.kill(pid, signal.SIGKILL)
                pytest.fail(f"processes were left after {LONGEST_S} s:\n{launched.output[-3000:]}")
            time.sleep(0.01)
        return launched, time.monotonic() - began


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank to process id of what a launcher started; torch's starts each in a session of its own."""
    ranks = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        (rank,) = [int(pair[5:]) for pair in environment if pair.startswith(b"RANK=")] or [0]
        ranks[rank] = int(pid)
    return ranks


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def saved_step(stage_dir: Path) -> int:
    newest = latest_checkpoint(stage_dir)
    return int(newest.name.removeprefix("checkpoint-")) if newest else 0


def check_same(stage_dir: Path, unbroken: Path, logged) -> None:
    """The same lines in the same order, and the same teacher bit by bit.

    A line of clocks alone closes a training; one that was stopped in its last step is over and has none.
    """
    rows, expected = (
        [row for row in logged(f.parent) if row["stage"] == f.name and row.keys() - {"stage", "step", "epoch"}]
        for f in (stage_dir, unbroken)
    )
    assert rows == expected
    again, once = (load_file(folder / "teacher" / "model.safetensors") for folder in (stage_dir, unbroken))
    for name in once:
        np.testing.assert_array_equal(again[name], once[name], err_msg=name)


@pytest.fixture
def slow_reward(finished_run, tmp_path) -> Path:
    """The smoke run's own reward, which takes a while."""
    text = (finished_run.folder.parent / "my_reward.py").read_text()
    file = tmp_path / "my_reward.py"
    file.write_text(
        text.replace("import Sequence\n", "import Sequence\nfrom time import sleep\n").replace(
            "    return", "    sleep(0.2)\n    return"
        )
    )
    assert "sleep(0.2)" in file.read_text()
    return file


@pytest.fixture
def grpo(finished_run, slow_reward, launcher, tmp_path):
    """GRPO from the smoke run's warm start, as the smoke run did it."""

    def make(name: str, *flags: object, **launch) -> Faults:
        start = ("--sft_config", "", "--model_name_or_path", finished_run.teacher, "--train_direct", "false")
        rewards = ("--reward_funcs", "ndcg", f"{slow_reward}:my_reward", "--reward_weights", 1.0, 0.1)
        config = ("--config", SMOKE / "grpo.yaml")
        return Faults(
            launcher, "grpo_teacher", tmp_path / name / "grpo", *config, *start, *rewards, *LEAST, *flags, **launch
        )

    return make


def test_a_run_that_is_told_to_stop_saves_and_ends_as_one_that_was_not(grpo, finished_run, logged):
    """One process, whose launcher is told, and ends without a word to it."""
    run = grpo("run")
    launched, _ = run.fault(1, signal.SIGTERM)
    step = saved_step(run.stage_dir)
    assert f"stopped by SIGTERM, saved at step {step} in {run.stage_dir}" in launched.output
    assert run.steps()[-1] == step >= 2
    run.finish()
    check_same(run.stage_dir, finished_run.folder / "grpo", logged)


def test_a_process_that_is_killed_ends_the_other_and_nothing_saved_is_lost(grpo):
    flags = ("--max_steps", 12, "--use_cpu")
    run = grpo("run", *flags, config="cpu_2.yaml")
    launched, _ = run.fault(3, signal.SIGKILL, victim=1)
    assert launched.process.returncode != 0
    assert "rank      : 1" in launched.output.split("Root Cause")[1]
    assert "SIGKILL" in launched.output
    step = saved_step(run.stage_dir)
    assert step >= 2
    launched, _ = run.fault(step + 1, signal.SIGTERM)
    assert f"stopped by SIGTERM, saved at step {saved_step(run.stage_dir)} in" in launched.output
    assert saved_step(run.stage_dir) > step


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]).returncode:
        pytest.skip("needs the right to mount a disk of its own")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.on_request
def test_a_disk_that_fills_up_loses_nothing_that_was_saved(grpo, small_disk, finished_run, launcher, logged):
    run = grpo("run")
    run.move_to(small_disk / "run")
    launched = launcher.start(run.recipe, *run.flags)
    while not (run.stage_dir / "checkpoint-2" / "trainer_state.json").exists():
        assert launched.process.poll() is None, launched.output[-3000:]
        time.sleep(0.01)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1000))
    launched.wait()
    assert launched.process.returncode != 0
    (said,) = [line for line in launched.output.splitlines() if line.startswith("error: ")]
    assert "make room, and the same command goes on" in said
    assert 'grpo_teacher.py", line' not in launched.output  # no traceback but the launcher's
    assert saved_step(run.stage_dir) == 2
    filler.unlink()
    run.finish()
    check_same(run.stage_dir, finished_run.folder / "grpo", logged)


@pytest.fixture(scope="module")
def unbroken() -> dict[str, Path]:
    """Recipe to the stage of a run that nothing was done to."""
    return {}


@pytest.mark.skipif(not N_MOMENTS, reason="set ANYO_RL_KILLS to the number of random moments of each fault")
@pytest.mark.parametrize(("number", "victim"), [(signal.SIGTERM, None), (signal.SIGKILL, 0), (signal.SIGKILL, 1)])
@pytest.mark.parametrize("recipe", ["grpo", "sft"])
def test_faults_at_random_moments_cost_nothing_but_time(
    recipe, number, victim, grpo, unbroken, launcher, tmp_path, logged, capsys
):
    n_steps = 24

    def make(name: str) -> Faults:
        flags = ("--max_steps", n_steps, "--eval_steps", 4, "--save_steps", 4, "--use_cpu")
        if recipe == "grpo":
            return grpo(name, *flags, config="cpu_2.yaml")
        sft = ("--config", SMOKE / "sft.yaml", *LEAST, *flags)
        return Faults(launcher, "sft_teacher", tmp_path / name / "sft", *sft, config="cpu_2.yaml")

    if recipe not in unbroken:
        make("unbroken").finish()
        unbroken[recipe] = tmp_path / "unbroken" / recipe
    seed = 0 if victim is None else 1 + victim
    draws = random.Random(seed)
    moments = sorted((draws.randrange(1, n_steps - 1), draws.uniform(0, 0.4)) for _ in range(N_MOMENTS))
    run, saved = make("run"), 0
    for step, wait_s in moments:
        if saved >= n_steps:  # the last one was saved while the signal was on its way
            break
        launched, seconds = run.fault(step, number, victim, wait_s)
        assert saved_step(run.stage_dir) >= saved, launched.output[-3000:]
        saved = saved_step(run.stage_dir)
        if victim is not None:
            assert f"rank      : {victim}" in launched.output.split("Root Cause")[1]
        with capsys.disabled():
            where = f"step {step} + {wait_s:.2f} s (seed {seed})"
            print(
                f"{recipe}, signal {number:d} to {victim} at {where}: {seconds:.1f} s, saved step {saved}", flush=True
            )
    run.finish()
    check_same(run.stage_dir, unbroken[recipe], logged)
