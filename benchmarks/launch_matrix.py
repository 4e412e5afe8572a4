"""Every recipe under every launch, two steps each: what the losses are, and whether they are the same.

make matrix
OMP_NUM_THREADS=1 python benchmarks/launch_matrix.py --json matrix.json
python benchmarks/launch_matrix.py --recipes dpo --launches "1 process" "2, ZeRO-3"

All cells start from one teacher, with one global batch. SFT, STaR and DPO see the same data whatever the launch: their
losses are held against those of one process (a STaR path's draws belong to its example). GRPO and PPO draw by process,
so two processes sample other paths than one: their losses are held against those of two processes under DDP.

Without a GPU only (`--use_cpu`, gloo). Two nodes need what `nodes.py` says; their columns are skipped elsewhere.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nodes import Node, NoNodesError, two_nodes
from report import machine

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "tests" / "recipes" / "configs"
TIMEOUT_S = 900
ON_CPU, ON_GLOO, FULL = ("--use_cpu",), ("--ddp_backend", "gloo"), ("--mixed_precision", "no")


@dataclass(frozen=True)
class Launch:
    """A way to launch: its config, more flags for the launcher and the recipe, and what accelerate must run."""

    config: str
    flags: tuple[str, ...] = ()
    recipe_flags: tuple[str, ...] = ()
    n_processes: int = 2
    distributed_type: str = "DEEPSPEED"
    nodes: bool = False


FREE_PORT = (*FULL, "--main_process_port", "0")
LAUNCHES = {
    "1 process": Launch("cpu.yaml", n_processes=1, distributed_type="NO"),
    "2, DDP": Launch("cpu_2.yaml", (), ON_CPU, distributed_type="MULTI_CPU"),
    "2, ZeRO-2": Launch("zero2.yaml", FREE_PORT, ON_GLOO),
    "2, ZeRO-3": Launch("zero3.yaml", FREE_PORT, ON_GLOO),
    "2 nodes, DDP": Launch("cpu_2.yaml", (), ON_CPU, distributed_type="MULTI_CPU", nodes=True),
    "2 nodes, ZeRO-3": Launch("zero3_nodes.yaml", FULL, ON_GLOO, nodes=True),
}
# A recipe's stage, and the launch whose losses it must have.
RECIPES = {"sft": "1 process", "grpo": "2, DDP", "ppo": "2, DDP", "dpo": "1 process", "star": "1 process"}
GLOBAL_BATCH = 16
LEAST = "--max_steps 2 --eval_steps 2 --save_steps 2 --max_validation 4 --max_test 4 --gradient_accumulation_steps 1"


@dataclass
class Cell:
    """What became of one recipe under one launch.

    Attributes:
        recipe: sft, grpo, ppo, dpo or star.
        launch: a key of LAUNCHES.
        problem: why it counts as failed, or was skipped; empty where all is well.
        losses: of steps 1 and 2.
        took_s: from the launch to the end of the evaluation.
    """

    recipe: str
    launch: str
    problem: str = ""
    losses: list[float] = field(default_factory=list)
    took_s: float = 0.0


def recipe_flags(recipe: str, folder: Path, n_processes: int) -> list[str]:
    """Flags of one cell, but for its output folder. `folder` has the start and the paths (`prepare`)."""
    flags = ["--config", SMOKE / f"{recipe}.yaml", *LEAST.split()]
    flags += ["--per_device_train_batch_size", GLOBAL_BATCH // n_processes]
    flags += ["--model_name_or_path", folder / "start" / "sft" / "teacher"]
    if recipe in ("grpo", "ppo", "star"):
        flags += ["--sft_config", "", "--train_direct", "false", "--baselines", "false"]
    if recipe == "star":
        flags += ["--rounds", 1]
    if recipe == "dpo":
        flags += ["--paths", folder / "paths" / "star" / "round-1" / "paths"]
    return list(map(str, flags))


def run(command: Sequence[str], log: Path, nodes: Sequence[Node] = ()) -> str:
    """Runs a command, or one on each node; returns the line of the log that says why it failed, or nothing."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    commands = [(list(command), {})]
    if nodes:
        head, tail = command[: command.index("NODE")], command[command.index("NODE") + 1 :]
        commands = [(node.command([*head, *node.launch_flags, *tail]), node.env) for node in nodes]
    started = []
    try:
        for number, (words, more) in enumerate(commands):
            with log.with_suffix(f".{number}.log").open("w") as stream:
                settings = {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": subprocess.STDOUT}
                env = {**os.environ, "PYTHONPATH": path, **more}
                started.append(subprocess.Popen(words, env=env, start_new_session=True, **settings))
        end = time.monotonic() + TIMEOUT_S
        codes = [process.wait(max(1.0, end - time.monotonic())) for process in started]
    except subprocess.TimeoutExpired:
        return f"not done after {TIMEOUT_S} s"
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # the launcher alone would leave its workers behind
                process.wait()
    for number, code in enumerate(codes):
        if code:
            return last_error(log.with_suffix(f".{number}.log").read_text(errors="replace")) or f"exit {code}"
    return ""


def last_error(log: str) -> str:
    """The line of a log that most likely says what went wrong: the first error that is not the launcher's."""
    lines = [line.strip() for line in log.splitlines()]
    errors = [line for line in lines if "Error" in line.split(":")[0] or "error: " in line]
    errors = [line for line in errors if "ChildFailedError" not in line and "CalledProcessError" not in line]
    return errors[0][:300] if errors else ""


def launch_command(launch: Launch, recipe: str, flags: Sequence[str]) -> list[str]:
    """The command; where nodes are used, the word NODE stands for a node's own flags."""
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    start += [str(ROOT / "accelerate_configs" / launch.config), *launch.flags, *(["NODE"] if launch.nodes else [])]
    return [*start, str(ROOT / "recipes" / f"{recipe}_teacher.py"), *flags, *launch.recipe_flags]


def read_cell(cell: Cell, launch: Launch, run_dir: Path) -> None:
    """Fills in the losses, and says where the run is not the one that was asked for."""
    versions = json.loads((run_dir / "versions.json").read_text())
    found = versions["num_processes"], versions["distributed_type"]
    expected = launch.n_processes, launch.distributed_type
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    cell.losses = [row["loss"] for row in rows if "loss" in row]
    if found != expected:
        cell.problem = f"{found} ran, expected {expected}"
    elif len(cell.losses) != 2:
        cell.problem = f"{len(cell.losses)} steps, expected 2"
    elif not (run_dir / "evaluation.json").exists():
        cell.problem = "no evaluation"


def prepare(folder: Path) -> None:
    """The teacher that all cells start from, and the paths that DPO learns from."""
    sft = ["--config", str(SMOKE / "sft.yaml"), "--max_test", "4", "--max_steps", "40", "--eval_steps", "40"]
    sft += ["--save_steps", "40", "--output_dir", str(folder / "start")]
    star = [*recipe_flags("star", folder, 1), "--n_samples", "8", "--max_examples", "64"]
    star += ["--output_dir", str(folder / "paths")]
    for recipe, flags in (("sft", sft), ("star", star)):
        log = folder / f"prepare-{recipe}"
        if problem := run(launch_command(LAUNCHES["1 process"], recipe, flags), log):
            raise SystemExit(f"{recipe}, from which the cells start, failed: {problem}; see {log}.0.log")


def difference(cell: Cell, cells: Sequence[Cell]) -> float | None:
    """Largest relative difference of the losses to those the recipe must have; None where there are none."""
    base = next((c for c in cells if (c.recipe, c.launch) == (cell.recipe, RECIPES[cell.recipe])), None)
    if base is None or base is cell or base.problem or cell.problem:
        return None
    if cell.launch == "1 process":
        return None  # of what draws by process
    return max(abs(a - b) / max(abs(b), 1e-12) for a, b in zip(cell.losses, base.losses, strict=True))


def markdown(cells: Sequence[Cell]) -> str:
    """The table: a row a recipe, a column a launch."""
    launches = list(dict.fromkeys(cell.launch for cell in cells))
    lines = ["| recipe | " + " | ".join(launches) + " |", "|---|" + "---|" * len(launches)]
    for recipe in dict.fromkeys(cell.recipe for cell in cells):
        texts = []
        for launch in launches:
            cell = next(c for c in cells if (c.recipe, c.launch) == (recipe, launch))
            off = difference(cell, cells)
            text = cell.problem or ", ".join(f"{loss:.4f}" for loss in cell.losses)
            texts.append(text if off is None else f"{text} ({off:.0e})")
        lines.append(f"| {recipe} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--launches", nargs="+", choices=LAUNCHES, default=list(LAUNCHES))
    parser.add_argument("--tolerance", type=float, default=1e-3, help="relative, of losses that must be the same")
    parser.add_argument("--folder", type=Path, help="a new folder for runs and logs; by default one that goes away")
    parser.add_argument("--json", type=Path, help="also write the cells to this file")
    args = parser.parse_args()
    cells: list[Cell] = []
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder := folder.resolve()).mkdir(parents=True, exist_ok=args.folder is None)
        nodes, no_nodes = (), ""
        if any(LAUNCHES[name].nodes for name in args.launches):
            try:
                nodes = stack.enter_context(two_nodes())
            except NoNodesError as error:
                no_nodes = f"skipped: {error}"
        prepare(folder)
        for recipe in args.recipes:
            for name in args.launches:
                launch, start = LAUNCHES[name], time.monotonic()
                run_dir = folder / f"{recipe}-{list(LAUNCHES).index(name)}"
                cell = Cell(recipe, name, no_nodes if launch.nodes else "")
                if not cell.problem:
                    flags = [*recipe_flags(recipe, folder, launch.n_processes), "--output_dir", str(run_dir)]
                    command = launch_command(launch, recipe, flags)
                    cell.problem = run(command, run_dir, nodes if launch.nodes else ())
                    if not cell.problem:
                        read_cell(cell, launch, run_dir)
                cell.took_s = round(time.monotonic() - start, 1)
                cells.append(cell)
                print(
                    f"{recipe}, {name}: {cell.problem or cell.losses} ({cell.took_s} s)", file=sys.stderr, flush=True
                )
    off = {(c.recipe, c.launch): difference(c, cells) for c in cells}
    bad = [f"{r}, {name}: off by {d:.1e}" for (r, name), d in off.items() if d is not None and d > args.tolerance]
    bad += [f"{c.recipe}, {c.launch}: {c.problem}" for c in cells if c.problem and not c.problem.startswith("skipped")]
    print(f"machine: {machine()}; {sum(c.took_s for c in cells):.0f} s\n\n{markdown(cells)}")
    if args.json:
        args.json.write_text(json.dumps([asdict(cell) for cell in cells], indent=2), encoding="utf-8")
    if bad:
        sys.exit("failed:\n" + "\n".join(bad))


if __name__ == "__main__":
    main()
