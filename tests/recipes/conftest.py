"""Recipes are started as a user starts them, by `accelerate launch`, and one finished smoke run is shared.

Where a recipe runs in one process, only its first start of all test processes is by the launcher; others are forked
from a process that has imported the libraries, with the environment that the launcher would give them.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from forked import Forked, fork
from transformers import PreTrainedModel
from trl import ModelConfig

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.teacher.load import load_teacher
from anyo_rl.teacher.tokens import Tokens

ROOT = Path(__file__).resolve().parents[2]
SMOKE = Path(__file__).parent / "configs"
SECRET = "sentinel-of-a-secret"
WIDE = {"COLUMNS": "200"}  # so that no table is wrapped
MY_REWARD = '''"""A reward of one's own: short reasonings are better."""

from collections.abc import Sequence


def my_reward(completions: Sequence[str], rank: Sequence[int | None], **kwargs) -> list[float]:
    """1 for an empty completion, down to 0 at 200 characters and for one without a rank."""
    return [0.0 if r is None else max(0.0, 1 - len(c) / 200) for c, r in zip(completions, rank, strict=True)]
'''


@dataclass
class Launched:
    """A recipe that was started: its process and where its output goes."""

    process: subprocess.Popen | Forked
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self) -> "Launched":
        try:
            self.process.wait(timeout=900)
        except BaseException:
            self.kill()
            raise
        return self

    def kill(self) -> None:
        """Kills the launcher and all it started, as a power cut would."""
        with contextlib.suppress(ProcessLookupError):  # it may just have ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_when(self, ready: Callable[[], bool]) -> None:
        end = time.monotonic() + 900
        while not ready():
            assert self.process.poll() is None, f"ended before it could be killed:\n{self.output[-3000:]}"
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(self.output[-3000:])
            time.sleep(0.01)
        self.kill()


class Launcher:
    """Starts recipes with the smoke configs."""

    marks: ClassVar[Path]  # a file for each recipe that `accelerate launch` has started, of all test processes

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.started: list[Launched] = []

    def command(self, recipe: str, *flags: object, config: str = "cpu.yaml", launch_flags: tuple = ()) -> list[str]:
        accelerate = [sys.executable, "-m", "accelerate.commands.launch"]
        where = ["--config_file", str(ROOT / "accelerate_configs" / config), *launch_flags]
        return [*accelerate, *where, str(ROOT / "recipes" / f"{recipe}.py"), *map(str, flags)]

    def start(self, recipe: str, *flags: object, env: dict[str, str] | None = None, **launch) -> Launched:
        """Starts a recipe, forked where neither environment nor launch is special.

        Args:
            recipe: its name.
            *flags: its flags.
            env: more environment variables.
            **launch: for `command`; empty where how it is launched doesn't matter.
        """
        command = self.command(recipe, *flags, **launch)
        if self._is_first(recipe) or env or launch:
            return self.run_command(command, env)
        log = self._log()
        log.touch()
        process = fork(command[command.index("--config_file") :], log, self.logs, WIDE)
        self.started.append(Launched(process, log))
        return self.started[-1]

    def _is_first(self, recipe: str) -> bool:
        try:
            (self.marks / recipe).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _log(self) -> Path:
        return self.logs / f"launch-{len(self.started)}.log"

    def run_command(self, command: list[str], env: dict[str, str] | None = None) -> Launched:
        log = self._log()
        with log.open("w") as stream:
            process = subprocess.Popen(
                command,
                cwd=self.logs,  # recipes must not depend on the folder they are started in
                env={**os.environ, **WIDE, **(env or {})},
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.started.append(Launched(process, log))
        return self.started[-1]

    def finish(self, recipe: str, *flags: object, **kwargs) -> str:
        """Runs a recipe to its end, which has to be a good one; returns its output."""
        done = self.start(recipe, *flags, **kwargs).wait()
        assert done.process.returncode == 0, done.output[-6000:]
        return done.output

    def close(self) -> None:
        for launched in self.started:
            if launched.process.poll() is None:
                launched.kill()


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all test processes have in common."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session", autouse=True)
def launches(common: Path) -> None:
    """Where test processes tell one another which recipes the launcher has started."""
    Launcher.marks = common / "launches"
    Launcher.marks.mkdir(exist_ok=True)


@pytest.fixture
def launcher(tmp_path: Path):
    """A `Launcher` that leaves nothing running."""
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.close()


@dataclass
class Run:
    """A finished run of grpo_teacher and the flags that made it, but for the output folder."""

    folder: Path
    flags: tuple[object, ...]
    output: str

    @property
    def teacher(self) -> Path:
        return self.folder / "sft" / "teacher"

    def short_flags(self, *flags: object) -> tuple[object, ...]:
        """Flags of a run that starts from this run's teacher and does as little as it can."""
        least = "--max_steps 1 --eval_steps 1 --save_steps 1 --eval_on_start false --baselines false --max_test 8"
        start = ("--sft_config", "", "--model_name_or_path", self.teacher)
        return ("--config", SMOKE / "grpo.yaml", *start, *least.split(), *flags)


def logged_lines(folder: Path) -> list[dict]:
    """What was logged, but for clocks and for what TRL and transformers count from the start of the process."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    varying = ("runtime", "per_second", "step_time", "rank/seconds", "total_flos", "train_loss")
    varying += ("time_share/", "memory/", "flops")  # of what was logged last before a kill
    return [{k: v for k, v in row.items() if not any(word in k for word in varying)} for row in rows]


@pytest.fixture(scope="session")
def logged() -> Callable[[Path], list[dict]]:
    """Reads the lines that two runs of the same arguments have in common."""
    return logged_lines


@dataclass
class Asked:
    """What it takes to sample a run's teacher: the run's data, and the warm start."""

    task: Task
    model: PreTrainedModel
    tokens: Tokens
    catalog: Catalog


@pytest.fixture
def asked(finished_run: Run) -> Asked:
    """The smoke run's task and its warm start."""
    arguments = yaml.safe_load((finished_run.folder / "config.yaml").read_text())["DataArguments"]
    task = load_task(DataArguments(**arguments))
    model, tokenizer = load_teacher(ModelConfig(str(finished_run.teacher), dtype="float32"))
    tokens = Tokens.of(tokenizer)
    return Asked(task, model, tokens, build_catalog(task.interactions.items, tokens))


@pytest.fixture(scope="session")
def finished_run(common: Path) -> Run:
    """The smoke run, with a reward from a file and secrets in the environment; made once for all test processes."""
    base = common / "smoke"
    base.mkdir(exist_ok=True)
    reward = base / "my_reward.py"
    rewards = ("--reward_funcs", "ndcg", f"{reward}:my_reward", "--reward_weights", 1.0, 0.1)
    run = Run(base / "run", ("--config", SMOKE / "grpo.yaml", *rewards, "--log_completions", "true"), "")
    with (base / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "output.log").exists():
            reward.write_text(MY_REWARD)
            secrets = {"HF_TOKEN": SECRET, "OPENAI_API_KEY": SECRET, "WANDB_API_KEY": SECRET}
            launcher = Launcher(base)
            try:
                output = launcher.finish("grpo_teacher", *run.flags, "--output_dir", run.folder, env=secrets)
            finally:
                launcher.close()
            (base / "output.log").write_text(output)
        run.output = (base / "output.log").read_text()
    return run
