"""Runs recipes in processes forked from one that has imported their libraries, which takes longer than most recipes.

A recipe finds what `accelerate launch` would give it: a session of its own, arguments and environment variables.
"""

import atexit
import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_simple_launcher_cmd_env

PRELOADED = ["trl.trainer.sft_trainer", "trl.trainer.grpo_trainer", "peft", "datasets", "anyo_rl.stages.reinforce"]


class Forked:
    """A running recipe, as `subprocess.Popen` would have it."""

    def __init__(self, process: multiprocessing.process.BaseProcess) -> None:
        process.start()
        assert process.pid is not None
        self._process, self.pid = process, process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self._process.exitcode


@functools.cache
def server() -> ForkServerContext:
    """What forks: one for each test process, which ends with it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def fork(accelerate_flags: list[str], log: Path, cwd: Path, variables: Mapping[str, str]) -> Forked:
    """Starts a recipe.

    Args:
        accelerate_flags: what `accelerate launch` would be given, recipe and its flags included: one process.
        log: where its output goes.
        cwd: the folder that it runs in.
        variables: of its environment, besides the launcher's.
    """
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(accelerate_flags))
    (_, *recipe), environment = prepare_simple_launcher_cmd_env(arguments)
    return Forked(
        server().Process(target=run, args=(recipe, {**environment, **variables}, log, cwd), name=Path(recipe[0]).stem)
    )


def run(recipe: list[str], environment: dict[str, str], log: Path, cwd: Path) -> None:
    """The recipe's process."""
    os.setsid()
    for number, file in ((0, os.devnull), (1, log), (2, log)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.path[0] = recipe, str(Path(recipe[0]).parent)
    try:
        runpy.run_path(recipe[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves them out
