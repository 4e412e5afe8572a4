"""GRPO and PPO on completions that are a function of their prompt: what any number of processes must agree on.

    python -m tests.training.replay OUT.json --use_cpu
    accelerate launch --config_file accelerate_configs/cpu_2.yaml -m tests.training.replay OUT.json --use_cpu

OUT.json has the logged numbers of each step by algorithm. Of 16 completions a step each process takes its share.
"""

import json
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import polars as pl
import torch
from accelerate import PartialState
from accelerate.state import AcceleratorState
from trl import GRPOConfig, TrlParser

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.metrics.gains import ndcg
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.launch import check_launch, whole_weights
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.advantages.credit import Credit
from anyo_rl.training.advantages.ppo import Ppo
from anyo_rl.training.critic import attach_critic
from anyo_rl.values.source import StepSource
from tests.training.helpers import reasoner

GLOBAL_BATCH, G = 16, 4
TITLES = ["Alien", "Alien 3", "Aliens", "Toy Story", "Toy Story 2", "Toys", "lamp oak 1", "lamp oak 2", "mug"]
KEPT = ("loss", "grad_norm", "reward", "item_loss", "entropy", "rank/mean", "value/loss", "value/mean", "value/return")


def replay(prompts: list[str], tokens: Tokens) -> dict[str, Any]:
    """TRL's `rollout_func`: the same words for the i-th copy of a prompt, wherever it is asked for."""
    copies: dict[str, int] = {}
    prompt_ids, completion_ids = [], []
    for prompt in prompts:
        copy = copies[prompt] = copies.get(prompt, -1) + 1
        draw = torch.Generator().manual_seed(zlib.crc32(f"{prompt}{copy}".encode()))
        ids = tokens.reasoning_ids(TITLES[int(i)] for i in torch.randint(len(TITLES), (1 + copy,), generator=draw))
        prompt_ids.append(tokens.context_ids(prompt))
        completion_ids.append(ids[:-1] if copy == 2 else ids)  # one of a group never gets to the marker
    return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": None}


def by_rank(rank, completion_ids, **_):
    """NDCG, and a little for brevity."""
    return [(0.0 if r is None else ndcg(r)) - 0.01 * len(ids) for r, ids in zip(rank, completion_ids, strict=True)]


def train(algorithm: str, args: GRPOConfig, folder: Path) -> list[dict[str, float]]:
    """The numbers that each step logged."""
    tokens = Tokens.of(train_tokenizer(TITLES * 3, vocab_size=300))
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(len(TITLES))], "title": TITLES})
    catalog = build_catalog(items, tokens)
    with whole_weights():
        model = make_tiny_teacher(tokens.tokenizer, hidden_size=32, n_layers=2, n_heads=2, max_length=256, seed=3)
        if algorithm == "ppo":
            attach_critic(model)
    rows = [
        Row(example_id=f"u{n}:1", user_id=f"u{n}", prompt=f"{n} {title}\n", history=[], target_id=f"i{n}")
        for n, title in enumerate(TITLES)
    ]
    args.output_dir = str(folder / algorithm)
    AcceleratorState._reset_state()
    trainer = reasoner(
        *(model, catalog, tokens, args),
        rows=rows,
        reward=by_rank,
        item_loss="mixture",
        method=Ppo(step_rewards="shaping", source=StepSource()) if algorithm == "ppo" else Credit(),
        rollout_func=lambda prompts, _: replay(prompts, tokens),
    )
    trainer.train()
    rows = [row for row in trainer.state.log_history if "reward" in row]
    return [{name: row[name] for name in KEPT if name in row} for row in rows]


def main() -> None:
    """Trains by both, and writes down what the main process logged."""
    (settings,) = TrlParser(GRPOConfig).parse_args_and_config(
        [*sys.argv[2:], "--output_dir", "unused", "--bf16", "false", "--report_to", "none"]
    )
    check_launch()
    state = PartialState()
    settings.per_device_train_batch_size = GLOBAL_BATCH // state.num_processes
    with tempfile.TemporaryDirectory() as folder:
        found = {algorithm: train(algorithm, settings, Path(folder)) for algorithm in ("grpo", "ppo")}
        state.wait_for_everyone()
    if state.is_main_process:
        kind = AcceleratorState().distributed_type.value
        Path(sys.argv[1]).write_text(json.dumps({"launch": [state.num_processes, kind], **found}))
    state.destroy_process_group()  # its threads may abort a process that ends beside them


if __name__ == "__main__":
    main()
