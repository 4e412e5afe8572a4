"""What ranking takes of a GRPO step: the recipe itself is run, and its own log is read.

python benchmarks/grpo_step.py --json grpo_step.json            the toy world, after its warm start
python benchmarks/grpo_step.py --teacher runs/toy/sft/teacher   from a teacher that is there
python benchmarks/grpo_step.py --config recipes/configs/office/grpo_teacher.yaml

`ours` is the time spent on ranking, `peer` that of the whole step (sampling, ranking, rewards and the update). The
first step is left out. `agree` says whether every search came to its end within the node budget.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from report import report

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="recipes/configs/toy/grpo_teacher.yaml")
    parser.add_argument("--teacher", help="where GRPO starts; the config's own warm start if unset")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", help="also write the numbers to this file")
    args, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "accelerate.commands.launch", "recipes/grpo_teacher.py"]
        command += ["--config", args.config, "--output_dir", folder, "--max_steps", str(args.steps)]
        command += ["--eval_steps", str(args.steps), "--save_steps", str(args.steps), "--logging_steps", "1"]
        command += ["--eval_on_start", "false", "--max_validation", "8", "--max_test", "2"]
        command += ["--train_direct", "false", "--baselines", "false", *flags]
        if args.teacher:
            command += ["--sft_config", "", "--model_name_or_path", str(Path(args.teacher).resolve())]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        log = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in log if row["stage"] == "grpo" and "step_time" in row][1:]
    ours, peer = (float(np.mean([row[name] for row in steps])) for name in ("rank/seconds", "step_time"))
    complete = all(row["rank/complete_share"] == 1 for row in steps)
    name = f"ranking of a step, s, mean of {len(steps)}"
    row = {
        "name": name,
        "ours": round(ours, 3),
        "peer": round(peer, 3),
        "ratio": round(peer / ours, 1),
        "agree": complete,
    }
    nodes = np.mean([row["rank/nodes"] for row in steps])
    note = f"{args.config}: {ours / peer:.1%} of a step is ranking; {nodes:.0f} tree nodes for each completion"
    report([row], args.json, [note])


if __name__ == "__main__":
    main()
