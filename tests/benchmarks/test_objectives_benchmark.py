import json
import subprocess
import sys

import pytest
import yaml


def write_run(folder, ndcg, stage="grpo", length=10.0):
    folder.mkdir(parents=True)
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    (folder / "config.yaml").write_text(yaml.safe_dump({"GRPOConfig": settings}))
    (folder / "versions.json").write_text(json.dumps({"num_processes": 2}))
    rows = [{"step": 0, "eval_ndcg@10": ndcg[0]}]
    for place, value in enumerate(ndcg[1:], 1):
        rows.append({"step": 5 * place, "completions/mean_length": length})
        rows.append({"step": 5 * place, "eval_ndcg@10": value})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    value = {"mean": 0.5, "low": 0.4, "high": 0.6}
    stages = {stage: {mode: {"ndcg@10": value} for mode in ("greedy", "mixture")}}
    (folder / "evaluation.json").write_text(json.dumps({"stages": stages}))


@pytest.fixture
def runs(tmp_path):
    write_run(tmp_path / "outcome" / "seed-0", [0.1, 0.2, 0.3, 0.4])
    write_run(tmp_path / "outcome" / "seed-1", [0.1, 0.2, 0.4, 0.4])
    write_run(tmp_path / "better" / "seed-0", [0.1, 0.4, 0.5, 0.5], stage="ppo")
    write_run(tmp_path / "better" / "seed-1", [0.1, 0.2, 0.3, 0.3], stage="ppo")
    return tmp_path


def run(repo_root, *flags):
    command = [sys.executable, "benchmarks/objectives.py", *map(str, flags)]
    return subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=200)


@pytest.mark.on_request
@pytest.mark.slow
def test_arms_are_held_against_the_outcome_by_their_tokens(repo_root, runs):
    done = run(repo_root, runs, "--svg", runs / "plot.svg")
    assert done.returncode == 0, done.stderr
    base, better = [line.split(" | ") for line in done.stdout.strip().splitlines()[2:]]
    # 16 completions of 10 tokens a step, 15 steps: 2,400 tokens, a third of them after the first evaluation.
    assert base[0] == "| outcome"
    assert base[2:6] == ["0.400, 0.400", "0.400", "0.400", "100%"]
    assert base[6] == "100%, 67%"
    assert better[2:7] == ["0.500, 0.300", "0.400", "0.400", "67%", "33%, never"]
    assert "<svg" in (runs / "plot.svg").read_text()
    assert "outcome" in run(repo_root, runs / "better").stderr
