"""What the toolkit adds to a step of TRL's GRPO: the same model, prompts, seeds and a trivial reward, in one run.

OMP_NUM_THREADS=1 python benchmarks/overhead.py --json overhead.json
OMP_NUM_THREADS=1 python benchmarks/overhead.py --hidden_size 256 --layers 6

Plain `trl.GRPOTrainer` and `ReasonerTrainer` (item loss `none`) train a tiny teacher on the toy world, in turns of a
few steps. `agree` says whether all their losses are the same: both sample the same paths then, and each step is
compared with the other trainer's very same step. `ratio` is the median of ours / peer over these pairs, less 1 the
overhead, with a bootstrap interval over turns. Ranking is what the toolkit adds on purpose: it is taken out first, and
then in. Seconds of the clock, and of the processor, which other jobs on the machine disturb less. The first steps of a
turn are left out. Without a GPU.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from contextlib import contextmanager
from functools import partial

import numpy as np
from datasets import Dataset
from report import report
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.search.answers import How
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.loop.throughput import Clock, Throughput
from anyo_rl.training.loop.validation import Validation
from anyo_rl.training.objective import Objective
from anyo_rl.training.reasoner import ReasonerTrainer

WARM_UP = 2


def length(completion_ids, **kwargs) -> list[float]:
    """A reward that costs nothing."""
    return [float(len(ids)) for ids in completion_ids]


class BothClocks(Clock):
    """The trainer's clock, which also adds up processor seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_seconds = defaultdict(float)

    @contextmanager
    def __call__(self, part):
        began = time.process_time()
        with super().__call__(part):
            yield
        self.cpu_seconds[part] += time.process_time() - began


class StepSeconds(TrainerCallback):
    """Seconds of each step, logging included, and those of its ranking: (wall clock, processor)."""

    def __init__(self, clock: BothClocks) -> None:
        self.clock, self.seconds, self.ranking = clock, [], []

    def on_step_begin(self, args, state, control, **kwargs):
        self.clock.cpu_seconds.clear()
        self.began = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        # Since the last log, which is one a step.
        self.ranking.append((self.clock.seconds["ranking"], self.clock.cpu_seconds["ranking"]))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.seconds.append((time.perf_counter() - self.began[0], time.process_time() - self.began[1]))


def interval(turns: np.ndarray, rng: np.random.Generator) -> str:
    """Bootstrap interval of the median ratio, over turns."""
    drawn = rng.integers(len(turns), size=(2000, len(turns)))
    low, high = np.quantile([np.median(turns[rows]) for rows in drawn], [0.025, 0.975])
    return f"[{low:.3f}, {high:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=12, help="of each trainer")
    parser.add_argument("--steps", type=int, default=8, help="measured in a turn")
    parser.add_argument("--hidden_size", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--completion_length", type=int, default=32)
    parser.add_argument("--batch_size", type=int, default=32, help="paths of a step, 8 of each prompt")
    parser.add_argument("--json", help="also write the numbers to this file")
    args = parser.parse_args()

    task = load_task(DataArguments(toy_users=200))
    tokens = Tokens.of(train_tokenizer(sample_texts(task), 600))
    catalog = build_catalog(task.interactions.items, tokens)
    rows = make_rows(task, task.split("train"), catalog, tokens)
    dataset = Dataset.from_list([row.columns() for row in rows])
    ours_only = {
        "catalog": catalog,
        "tokens": tokens,
        "validation": Validation(rows[:1], catalog, tokens, How("greedy", top_k=1)),
        "objective": Objective(item_loss="none"),
    }

    def turn(ours: bool, folder: str, seed: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
        model = make_tiny_teacher(tokens.tokenizer, hidden_size=args.hidden_size, n_layers=args.layers)
        stop_at_marker(model, tokens)
        settings = {"per_device_train_batch_size": args.batch_size, "num_generations": 8, "learning_rate": 1e-4}
        settings |= {"max_steps": WARM_UP + args.steps, "max_completion_length": args.completion_length, "seed": seed}
        quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "bf16": False}
        trainer = (partial(ReasonerTrainer, **ours_only) if ours else GRPOTrainer)(
            model=model,
            args=GRPOConfig(output_dir=folder, logging_steps=1, gradient_checkpointing=False, **settings, **quiet),
            train_dataset=dataset,
            processing_class=tokens.tokenizer,
            reward_funcs=[length],
        )
        trainer.clock = BothClocks()
        watch = StepSeconds(trainer.clock)
        for callback in (watch, *([Throughput(trainer)] if ours else [])):
            trainer.add_callback(callback)
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return np.array(watch.seconds[WARM_UP:]), np.array(watch.ranking[WARM_UP:]), losses

    ours, peer, ranking, agree = [], [], [], True
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.turns):
            found = {}
            for is_ours in (True, False) if number % 2 else (False, True):
                found[is_ours] = turn(is_ours, folder, number)
            agree &= found[True][2] == found[False][2]
            ours.append(found[True][0])
            ranking.append(found[True][1])
            peer.append(found[False][0])
    seconds, theirs, ranked = np.stack(ours), np.stack(peer), np.stack(ranking)
    rng = np.random.default_rng(0)
    rows = []
    for kind, clock in (("wall", 0), ("processor", 1)):
        of_peer = theirs[..., clock]
        for name, of_ours in (
            ("a step without ranking", seconds[..., clock] - ranked[..., clock]),
            ("a step", seconds[..., clock]),
        ):
            ratios = of_ours / of_peer
            rows.append(
                {
                    "name": f"{name}, {kind} s",
                    "ours": round(float(np.median(of_ours)), 4),
                    "peer": round(float(np.median(of_peer)), 4),
                    "ratio": f"{np.median(ratios):.3f} {interval(ratios, rng)}",
                    "agree": agree,
                }
            )
    note = f"{len(task.split('train'))} prompts, {len(catalog)} items, {args.batch_size} paths of up to "
    note += f"{args.completion_length} tokens a step; medians of {args.turns} turns of {args.steps} steps each; "
    note += f"ranking: {np.median(ranked[..., 0]):.4f} s"
    report(rows, args.json, [note])


if __name__ == "__main__":
    main()
