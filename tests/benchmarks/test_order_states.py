"""Counts of true heads and right chains, by paths of which it is known what is true of them."""

import subprocess
import sys

import pytest

from anyo_rl.data.toy.orders import make_order_world, order_config
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.paths import SampledPath
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.shards import ShardedJob, run_shards

N = 5  # paths of a user


@pytest.mark.slow
def test_what_is_true_of_paths_is_counted(repo_root, tmp_path):
    world = make_order_world(order_config(1, n_users=20))
    rows = []
    for user, events in list(world._events.items())[:4]:
        target = world.interactions.items["item_id"][0]
        rows.append(Row(f"{user}:{len(events) - 1}", user, [], target, prompt=user))

    def paths_of(rows):
        """Of each user the true reasoning twice, one without its operations, one with a false head, and nothing."""
        made = []
        for row in rows:
            true = world.true_rationale(row.user_id, int(row.example_id.split(":")[1]))
            false = next(name for name in ("tea", "lamp") if f"head: {name}" != true[-1])
            of_user = [true, true, (true[0], true[-1]), (*true[:-1], f"head: {false}"), ()]
            for index, (steps, rank) in enumerate(zip(of_user, (1, 1, 2, 7, 3), strict=True)):
                path = SampledPath(row.example_id, index, user_id=row.user_id, steps=list(steps), rank=rank, seed=1)
                made.append(path)
        return made

    run_shards(rows, ShardedJob(tmp_path / "paths", Sampling(n=N), policy="sft"), paths_of)
    command = [sys.executable, "benchmarks/order_states.py", str(tmp_path / "paths"), "--users", "20"]
    done = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, timeout=200, check=True)
    mean = (1 + 1 + 1 / 1.584962500721156 + 1 / 3 + 1 / 2) / 5  # of ranks 1, 1, 2, 7 and 3
    assert done.stdout.splitlines() == [
        f"all: 20 paths, 60.0% true heads, 40.0% right chains, NDCG@10 {mean:.4f}",
        # A user's true reasoning is counted once here, and nothing is a reasoning too.
        "different ones of rank 6 or better: 12 paths, 66.7% true heads, 33.3% right chains, NDCG@10 0.7103",
        "of these, on which 2 or more agree: 4 paths, 100.0% true heads, 100.0% right chains, NDCG@10 1.0000",
    ]
