"""Two processes against one on the same total work: samples a second of the main recipe, from its own log.

OMP_NUM_THREADS=1 python benchmarks/two_processes.py --json two_processes.json

GRPO steps of one global batch, by one process and by two under DDP (gloo, one thread each, on the CPU), in turns, from
one warm start. `ours` is two processes, `peer` one, both `throughput/samples_per_second` (median over steps, the first
of a run left out); `ratio` has the least and the greatest of the turns. On two idle cores it is 2 where nothing is
lost. `agree` says whether both trained on the batch that was asked for, from samples a second and `step_time`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from report import report

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "tests" / "recipes" / "configs"
LAUNCHES = {1: ("cpu.yaml", ()), 2: ("cpu_2.yaml", ("--use_cpu",))}


def launch(recipe: str, config: Path, n_processes: int, folder: Path, flags: list[str]) -> list[dict]:
    """Runs a recipe; the rows of its log."""
    file, more = LAUNCHES[n_processes]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "accelerate_configs" / file), str(ROOT / "recipes" / f"{recipe}.py")]
    command += ["--config", str(config), "--output_dir", str(folder), "--max_test", "2", *flags, *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=12, help="of a run")
    parser.add_argument("--batch_size", type=int, default=128, help="paths of a step, in all processes together")
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--completion_length", type=int, default=32)
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()

    last = [word for name in ("max_steps", "eval_steps", "save_steps") for word in (f"--{name}", str(args.steps))]
    size = ["--tiny_hidden_size", str(args.hidden_size), "--tiny_layers", str(args.layers)]
    size += ["--max_reasoning_tokens", str(args.completion_length), "--max_validation", "2"]
    found: dict[int, list[list[dict]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        launch("sft_teacher", SMOKE / "sft.yaml", 1, folder / "start", [*last, *size])
        start = ["--model_name_or_path", str(folder / "start" / "sft" / "teacher"), "--sft_config", ""]
        least = ["--train_direct", "false", "--baselines", "false", "--eval_on_start", "false"]
        for turn in range(args.turns):
            for n_processes in (1, 2) if turn % 2 else (2, 1):
                batch = ["--per_device_train_batch_size", str(args.batch_size // n_processes)]
                batch += ["--gradient_accumulation_steps", "1"]
                flags = [*last, *size, *start, *least, *batch]
                log = launch("grpo_teacher", SMOKE / "grpo.yaml", n_processes, folder / f"{turn}-{n_processes}", flags)
                found[n_processes].append([row for row in log if "step_time" in row][1:])
    speeds = {
        n: np.array([[row["throughput/samples_per_second"] for row in steps] for steps in runs])
        for n, runs in found.items()
    }
    two, one = (np.median(speeds[n], axis=1) for n in (2, 1))
    sizes = {
        n: [round(row["throughput/samples_per_second"] * row["step_time"]) for steps in runs for row in steps]
        for n, runs in found.items()
    }
    near = all(abs(size / args.batch_size - 1) < 0.25 for of_kind in sizes.values() for size in of_kind)
    ratios = two / one
    row = {
        "name": "samples a second of a GRPO step",
        "ours": round(float(np.median(two)), 1),
        "peer": round(float(np.median(one)), 1),
        "ratio": f"{np.median(ratios):.2f} [{ratios.min():.2f}, {ratios.max():.2f}]",
        "agree": near,
    }
    notes = [f"{args.batch_size} paths a step in all, {args.turns} turns of {args.steps - 1} steps each"]
    for n, runs in found.items():
        rows = [row for steps in runs for row in steps]
        parts = [name for name in rows[0] if name.startswith("time_share/")]
        text = ", ".join(f"{name.split('/')[1]} {np.median([row[name] for row in rows]):.0%}" for name in parts)
        notes.append(f"time of a step, {n} process(es): {text}")
    report([row], args.json, notes)


if __name__ == "__main__":
    main()
