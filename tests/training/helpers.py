"""How the tests make a reasoner trainer: the one place that knows what its constructor takes."""

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import GRPOConfig

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.search.answers import How
from anyo_rl.teacher.load import stop_at_marker
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.advantages.batch import Batch, padded_states
from anyo_rl.training.loop.validation import Validation
from anyo_rl.training.objective import Objective
from anyo_rl.training.reasoner import ReasonerTrainer

G = 4
OBJECTIVE = {field.name for field in fields(Objective)}
QUIET = {"report_to": "none", "save_strategy": "no", "use_cpu": True, "bf16": False, "disable_tqdm": True}
ROWS = [
    Row(example_id=f"u{u}:1", user_id=f"u{u}", prompt=prompt, history=history, target_id=target)
    for u, (prompt, history, target) in enumerate(
        [("Alien\n", ["i0"], "i1"), ("mug\n", ["i9"], "i9"), ("Toys and toys\n", ["i5"], "i4"), ("x\n", [], "i7")]
    )
]


def constant(completions, **columns) -> list[float]:
    """The same reward for all: no policy gradient."""
    return [1.0] * len(completions)


def by_rank(rank, **columns) -> list[float]:
    """The inverse of the rank, 0 without a marker."""
    return [0.0 if r is None else 1 / r for r in rank]


def grpo_config(folder: Path, **settings) -> GRPOConfig:
    """Two steps, each with the prompts of two groups, unless `settings` say otherwise."""
    args = {"per_device_train_batch_size": 2 * G, "num_generations": G, "max_completion_length": 5, "max_steps": 2}
    args |= {"learning_rate": 1e-3, "logging_steps": 1, "eval_strategy": "no", **QUIET, **settings}
    return GRPOConfig(output_dir=str(folder), **args)


def reasoner(
    model: PreTrainedModel,
    catalog: Catalog,
    tokens: Tokens,
    args: GRPOConfig | Path,
    *,
    rows=ROWS,
    reward=constant,
    settings=None,
    write_item: bool = False,
    **arguments,
) -> ReasonerTrainer:
    """A trainer.

    Args:
        args: TRL's settings; a folder stands for those of `grpo_config`, with `settings` over them.
        rows: the examples, which training and validation share.
        reward: one reward, or a list of them.
        write_item: whether the model stops after the item in place of the marker.
        **arguments: of the objective, or the trainer's own.
    """
    stop_at_marker(model, tokens, write_item)
    how = How("greedy", Sampling(max_new_tokens=3), top_k=1)
    return ReasonerTrainer(
        model=model,
        args=grpo_config(args, **(settings or {})) if isinstance(args, Path) else args,
        train_dataset=Dataset.from_list([row.columns() for row in rows]),
        processing_class=tokens.tokenizer,
        reward_funcs=reward if isinstance(reward, list) else [reward],
        catalog=catalog,
        tokens=tokens,
        validation=Validation(rows, catalog, tokens, how),
        objective=Objective(**{name: arguments.pop(name) for name in OBJECTIVE & arguments.keys()}),
        **arguments,
    )


def batch_of(
    completions: Sequence[list[int]],
    tokens: Tokens,
    rewards: Sequence[float],
    values: Sequence[np.ndarray] = (),
    outcomes: Sequence[float] = (),
    scale: str = "none",
) -> Batch:
    """Completions of one group as advantages see them, padded by two tokens more than they need.

    Args:
        completions: token ids of each.
        rewards: of each.
        values: before the steps of each, where they have any; then `outcomes` too.
    """
    width = max(map(len, completions)) + 2
    n_states = max(map(len, values), default=0) + 1
    return Batch(
        rewards_A=torch.tensor(rewards),
        outcome_B=torch.tensor(rewards) - torch.tensor(rewards).nanmean(),
        mask_B_T=torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in completions]),
        ends_B=[tokens.step_ends(row) for row in completions],
        states_A_S=padded_states(values, outcomes, n_states) if len(values) else None,
        start=0,
        group_size=len(completions),
        scale=scale,
    )


def lift(model: PreTrainedModel, token: int, by: float = 4.0) -> None:
    """Makes a token likely at every position, by a bias of the head."""
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    head.weight = model.lm_head.weight
    torch.nn.init.zeros_(head.bias)
    head.bias.data[token] = by
    head.bias.requires_grad_(False)
    model.lm_head = head


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trained_batches(trainer: ReasonerTrainer) -> list[dict]:
    """Trains, and gives what each generation became: one a step, or a loop over them would check nothing."""
    batches, original = [], trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(original(inputs)) or batches[-1]
    trainer.train()
    assert len(batches) == trainer.state.global_step > 0
    return batches


def slow_step_values(trainer: ReasonerTrainer, prompt: str, ids: list[int], target: str) -> list[float]:
    """The gain of an answer forced before each step, by the whole distribution."""
    tokens = trainer.tokens
    starts = [0, *tokens.step_ends(ids)[:-1]]
    contexts = [tokens.answered_now(tokens.context_ids(prompt), ids[:start]) for start in starts]
    ranks = DistributionRanker(trainer.catalog, trainer.model).rank(contexts, [target] * len(contexts)).ranks_B
    return [1 / math.log2(1 + rank) for rank in ranks]
