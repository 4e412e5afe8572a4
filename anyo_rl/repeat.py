"""Repeats a recipe over seeds, and says what holds on average.

    python -m anyo_rl.repeat --seeds 0 1 2 -- accelerate launch recipes/grpo_teacher.py --output_dir runs/toy

Each seed runs as the command with `--seed S --output_dir runs/toy/seed-S`, its output in `log.txt` there; `{seed}` in
an argument is S, for what goes on from other runs' seeds (`--model_name_or_path runs/star/seed-{seed}/star/teacher`).
A seed that is finished (it has `evaluation.json`) is not run again, so a killed repeat goes on where it was. Then
`runs/toy/repeat.json` and `repeat.md` have the mean over seeds of every number, with a 95% Student t interval. Secrets
in the command are not written down.
"""

import argparse
import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anyo_rl.evaluation.table import markdown_table, read_value, split_difference, stage_value
from anyo_rl.run.redact import redact_command

SAME = ("dataset", "split", "mask_history", "ranker")  # seeds that differ in these must not be averaged
TAIL_LINES = 15
SEED = "{seed}"


def t_interval(values: Sequence[float], level: float = 0.95) -> dict[str, Any]:
    """Mean of a few independent values with its two-sided Student t interval.

    Args:
        values: one value a seed.
        level: coverage of the interval, in (0, 1).

    Returns:
        mean, low, high, n, sd (with n - 1) and the values; low, high and sd are None for one value, and mean too for
        none.
    """
    n = len(values)
    found: dict[str, Any] = {"mean": None, "low": None, "high": None, "n": n, "sd": None, "values": list(values)}
    if n:
        found["mean"] = math.fsum(values) / n
    if n > 1:
        from scipy.stats import t

        found["sd"] = math.sqrt(math.fsum((value - found["mean"]) ** 2 for value in values) / (n - 1))
        half = float(t.ppf(0.5 + level / 2, n - 1)) * found["sd"] / math.sqrt(n)
        found["low"], found["high"] = found["mean"] - half, found["mean"] + half
    return found


def summarise(evaluations: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds of every stage, mode and metric, and of the paired differences.

    Args:
        evaluations: seed → contents of its `evaluation.json`.

    Returns:
        What `evaluation.json` has, with the values of `t_interval` in place of the bootstrap's; `seeds`; and in the
        differences `lift_percent`, the relative lift of the means over the seeds (None where it is not known). A
        number that a seed does not have is averaged over those that do, and its `n` says so.

    Raises:
        ValueError: no evaluation, or the seeds were not evaluated in the same way.
    """
    if not evaluations:
        raise ValueError("no seed has an evaluation to average: run at least one")
    seeds = sorted(evaluations)
    parts = [evaluations[seed] for seed in seeds]
    for key in SAME:
        found = {json.dumps(part.get(key)) for part in parts}
        if len(found) > 1:
            raise ValueError(
                f"seeds differ in {key!r}: found {', '.join(sorted(found))}, expected one value; "
                "run the seeds that differ again, into a new --output_dir"
            )
    summary: dict[str, Any] = {"seeds": seeds}
    for key in (*SAME, "n_users", "n_items", "n_paths"):
        values = [part[key] for part in parts if key in part]
        if values and all(value == values[0] for value in values):
            summary[key] = values[0]
    for section in ("stages", "differences"):
        summary[section] = {}
        for name, mode, metric in _names(parts, section):
            values = [_value(part, section, name, mode, metric) for part in parts]
            known = t_interval([value for value in values if value is not None])
            if known["n"]:
                summary[section].setdefault(name, {}).setdefault(mode, {})[metric] = known
    for name, modes in summary["differences"].items():
        for mode, metrics in modes.items():
            for metric, value in metrics.items():
                value["lift_percent"] = _lift_percent(parts, name, mode, metric)
    true: dict[str, list[float]] = {}
    for part in parts:
        for policy, raw in (part.get("true_intent") or {}).items():
            if (share := read_value(raw)) is not None:
                true.setdefault(policy, []).append(share.mean)
    if true:
        summary["true_intent"] = {policy: t_interval(values) for policy, values in true.items()}
    return summary


def markdown(summary: dict[str, Any]) -> str:
    """The table over seeds, and below it every number that was averaged."""
    lines = [markdown_table(summary), "All numbers:", "", "| | Mode | Metric | Mean | 95% interval | Lift | Seeds |"]
    lines.append("| --- | --- | --- | ---: | ---: | ---: | ---: |")
    for section, spec in (("stages", ".4f"), ("differences", "+.4f")):
        for name, modes in summary[section].items():
            for mode, metrics in sorted(modes.items()):
                for metric, value in metrics.items():
                    interval = "–" if value["low"] is None else f"[{value['low']:{spec}}, {value['high']:{spec}}]"
                    lift = value.get("lift_percent")
                    lift_text = "–" if lift is None else f"{lift:+.1f}%"
                    cells = [name, mode, metric, format(value["mean"], spec), interval, lift_text, str(value["n"])]
                    lines.append("| " + " | ".join(cells) + " |")
    for policy, value in summary.get("true_intent", {}).items():
        interval = "–" if value["low"] is None else f"[{value['low']:.4f}, {value['high']:.4f}]"
        lines.append(f"| {policy} | – | true intents | {value['mean']:.4f} | {interval} | – | {value['n']} |")
    return "\n".join(lines) + "\n"


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
    if read_evaluation(folder) is not None:
        print(f"seed {seed}: already finished, kept")
        return None
    _write(record, line + "\n")
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
            process = subprocess.Popen(arguments, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        except OSError as error:
            return f"could not start {arguments[0]!r}: {error}"
        try:
            code = process.wait()
        except BaseException:  # an interrupted repeat must not leave its seed running
            process.terminate()
            process.wait()
            raise
    if code != 0:
        return f"exit status {code}"
    if read_evaluation(folder) is None:
        return f"the command ended well but wrote no readable {folder / 'evaluation.json'}"
    print(f"seed {seed}: done in {time.monotonic() - start:.0f} s", flush=True)
    return None


def read_evaluation(folder: Path) -> dict[str, Any] | None:
    """The `evaluation.json` of a finished seed, else None."""
    try:
        evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return evaluation if isinstance(evaluation, dict) and "stages" in evaluation else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the seeds, then prints and writes the summary; returns the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m anyo_rl.repeat",
        usage="%(prog)s --seeds S [S ...] -- COMMAND --output_dir DIR [ARGUMENT ...]",
        description="Repeat a recipe over seeds; print and write means with 95%% t intervals over the seeds.",
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
        finished = {seed: read_evaluation(folder / f"seed-{seed}") for seed in seeds if seed not in failed}
        evaluations = {seed: found for seed, found in finished.items() if found is not None}
        if evaluations:
            summary = {"command": redact_command(command), **summarise(evaluations), "failed": failed}
            text = markdown(summary)
            _write(folder / "repeat.json", json.dumps(summary, indent=1) + "\n")
            _write(folder / "repeat.md", text)
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


def _names(parts: list[dict[str, Any]], section: str) -> Iterator[tuple[str, str, str]]:
    """Every (name, mode, metric) that any seed has, each once, in the order of their first coming."""
    seen: dict[tuple[str, str, str], None] = {}
    for part in parts:
        for name, modes in (part.get(section) or {}).items():
            for mode, metrics in modes.items():
                seen |= dict.fromkeys((name, mode, metric) for metric in metrics)
    yield from seen


def _value(part: dict[str, Any], section: str, name: str, mode: str, metric: str) -> float | None:
    value = read_value((part.get(section) or {}).get(name, {}).get(mode, {}).get(metric))
    return None if value is None else value.mean


def _lift_percent(parts: list[dict[str, Any]], name: str, mode: str, metric: str) -> float | None:
    """Relative lift of the means of the stages of `a-b`, both over the seeds that have both."""
    after, before = [], []
    for part in parts:
        pair = split_difference(name, part.get("stages", {}))
        values = [stage_value(part, stage, mode, metric) for stage in pair or ()]
        if pair and values[0] is not None and values[1] is not None:
            after.append(values[0].mean)
            before.append(values[1].mean)
    return 100.0 * (math.fsum(after) / math.fsum(before) - 1.0) if before and math.fsum(before) else None


def _write(file: Path, text: str) -> None:
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


if __name__ == "__main__":
    sys.exit(main())
