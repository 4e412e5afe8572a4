"""Repeats a recipe over seeds, and says what holds on average.

    python -m anyo_rl.repeat --seeds 0 1 2 -- accelerate launch recipes/grpo_teacher.py --output_dir runs/toy

Each seed runs as the command with `--seed S --output_dir runs/toy/seed-S`, its output in `log.txt` there; `{seed}` in
an argument is S, for what goes on from other runs' seeds (`--model_name_or_path runs/star/seed-{seed}/star/teacher`).
A seed that is finished (it has `evaluation.json`) is not run again, so a killed repeat goes on where it was. Then
`runs/toy/repeat.json` and `repeat.md` have the mean over seeds of every number, with a 95% bootstrap interval over
users (each drawn with all of its examples and seeds), and the number of each seed. Secrets in the command are not
written down.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from anyo_rl.evaluation.summarise import summarise_seeds
from anyo_rl.evaluation.summary import Summary, read_summary
from anyo_rl.evaluation.table import format_percent, markdown_table
from anyo_rl.metrics.intervals import Interval
from anyo_rl.run.files import write_whole
from anyo_rl.run.redact import redact_command

TAIL_LINES = 15
SEED = "{seed}"


def markdown(summary: Summary) -> str:
    """The table over seeds, and below it every number that was averaged, with that of each seed."""
    lines = [markdown_table(summary), "All numbers:", "", "| | Mode | Metric | Mean | Lift | Seeds |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: |")
    for part, signed in ((summary.stages, False), (summary.differences, True)):
        for name, modes in part.items():
            for mode, metrics in sorted(modes.items()):
                for metric, value in metrics.items():
                    lift = format_percent(summary.lift_percent(name, mode, metric) if signed else None, signed=True)
                    cells = [name, mode, metric, value.text(signed), lift, _of_seeds(value, signed)]
                    lines.append("| " + " | ".join(cells) + " |")
    for stage, value in (summary.true_intent or {}).items():
        lines.append(f"| {stage} | – | true intents | {value.text()} | – | {_of_seeds(value)} |")
    return "\n".join(lines) + "\n"


def _of_seeds(value: Interval, signed: bool = False) -> str:
    return " ".join(format(one, "+.4f" if signed else ".4f") for one in value.by_seed)


def split_command(command: Sequence[str]) -> tuple[list[str], Path]:
    """The command without its `--output_dir`, and that folder.

    Raises:
        ValueError: no command, no `--output_dir`, or a `--seed` that would contradict the seeds.
    """
    rest: list[str] = []
    folder: str | None = None
    parts = iter(command)
    for part in parts:
        if part == "--output_dir":
            folder = next(parts, None)
        elif part.startswith("--output_dir="):
            folder = part.partition("=")[2]
        elif part == "--seed" or part.startswith("--seed="):
            raise ValueError(
                f"found {part} in the command, expected none: give the seeds before the `--`, as --seeds 0 1 2"
            )
        else:
            rest.append(part)
    if not rest:
        raise ValueError(
            "found no command, expected one after `--`, as -- accelerate launch recipes/X.py --output_dir D"
        )
    if not folder:
        raise ValueError("found no --output_dir in the command: give one, the seeds go into <output_dir>/seed-S")
    return rest, Path(folder)


def run_seed(command: Sequence[str], folder: Path, seed: int) -> str | None:
    """Runs one seed, unless it is finished. Returns what went wrong, or None.

    Raises:
        ValueError: the folder has the results of another command.
    """
    folder.mkdir(parents=True, exist_ok=True)
    line, record = shlex.join(redact_command(command)), folder / "command.txt"
    if record.exists() and (found := record.read_text().strip()) != line:
        raise ValueError(
            f"{folder} was made by another command:\n  found    {found}\n  expected {line}\n"
            "choose another --output_dir, or remove the folder to run the seed again"
        )
    if read_summary(folder) is not None:
        print(f"seed {seed}: already finished, kept")
        return None
    write_whole(record, line + "\n")
    log, start = folder / "log.txt", time.monotonic()
    print(f"seed {seed}: running, output in {log}", flush=True)
    arguments = [
        *(part.replace(SEED, str(seed)) for part in command),
        "--seed",
        str(seed),
        "--output_dir",
        str(folder),
    ]
    with log.open("ab") as stream:  # appended: a seed that was killed goes on, and so does its log
        try:
            process = subprocess.Popen(
                arguments,
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a launch and all that it starts get signals together
            )
        except OSError as error:
            return f"could not start {arguments[0]!r}: {error}"
        try:
            code = process.wait()
        except BaseException:  # an interrupted repeat must not leave its seed running
            _end(process)
            raise
    if code != 0:
        return f"exit status {code}"
    if read_summary(folder) is None:
        return f"the command ended well but wrote no readable {folder / 'evaluation.json'}"
    print(f"seed {seed}: done in {time.monotonic() - start:.0f} s", flush=True)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    """Tells a seed and all that it started to stop, and waits until they have saved."""
    with suppress(ProcessLookupError):  # none of them is left
        os.killpg(process.pid, signal.SIGTERM)
        while True:
            process.poll()
            os.killpg(process.pid, 0)
            time.sleep(0.1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the seeds, then prints and writes the summary; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m anyo_rl.repeat",
        usage="%(prog)s --seeds S [S ...] -- COMMAND --output_dir DIR [ARGUMENT ...]",
        description="Repeat a recipe over seeds; print and write means over the seeds with 95%% intervals over users.",
    )
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="the seeds, as 0 1 2")
    seeds = list(dict.fromkeys(parser.parse_args(given[:cut]).seeds))
    failed: dict[int, str] = {}
    try:
        command, folder = split_command(given[cut + 1 :])
        for seed in seeds:
            error = run_seed(command, folder / f"seed-{seed}", seed)
            if error is not None:
                failed[seed] = error
                _tell_failure(seed, error, folder / f"seed-{seed}" / "log.txt")
        finished = {seed: folder / f"seed-{seed}" for seed in seeds if seed not in failed}
        if finished:
            summary = summarise_seeds(finished)
            text = markdown(summary)
            record = {"command": redact_command(command), **summary.as_json(), "failed": failed}
            write_whole(folder / "repeat.json", json.dumps(record, indent=1) + "\n")
            write_whole(folder / "repeat.md", text)
            print(f"\n{text}\nwritten: {folder / 'repeat.json'}, {folder / 'repeat.md'}")
    except ValueError as error:
        print(f"repeat: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("repeat: interrupted; the same command goes on with the seed that was running", file=sys.stderr)
        return 130
    if failed:
        names = ", ".join(f"{seed} ({folder / f'seed-{seed}' / 'log.txt'})" for seed in failed)
        print(f"repeat: {len(failed)} of {len(seeds)} seeds failed: {names}", file=sys.stderr)
        print("repeat: the others are kept; the same command runs only the failed ones again", file=sys.stderr)
    return 1 if failed else 0


def _tell_failure(seed: int, error: str, log: Path) -> None:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:] if log.exists() else []
    print(
        f"seed {seed}: failed: {error}; the end of {log}:", *(f"  {line}" for line in lines), sep="\n", file=sys.stderr
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # told to stop, as by Ctrl-C
    sys.exit(main())
