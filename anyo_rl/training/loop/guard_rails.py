"""What tells that a run is going wrong, logged beside TRL's metrics, and said in words when it happens.

Logged here: `guard/length_ratio` (mean length over that of the first steps), `guard/reward_gap` (mean training reward
since the last validation, less its NDCG@10), and by the trainer `rewards/corr/A~B`, Pearson's correlation of each two
rewards over the completions of a batch, `guard/flat_groups` (groups with one reward all) and `ungrounded_share`.
"""

import itertools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from anyo_rl.evaluation.report.page import WARNINGS
from anyo_rl.evaluation.summary import FUSED
from anyo_rl.training.loop.callbacks import MetricsFile
from anyo_rl.training.loop.validation import METRIC

logger = logging.getLogger(__name__)

EVALUATION, FUSED_EVALUATION = f"eval_{METRIC}", f"eval_{FUSED}{METRIC}"
FLAT = "guard/flat_groups"
FLAT_SPREAD = 0.005  # of rewards between 0 and 1: the NDCG of rank 100 less that of rank 117
Log = Sequence[Mapping[str, Any]]


def reward_correlations(rewards: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """Pearson's correlation of each two rewards, over the completions to which both apply.

    Near 1 two rewards ask for the same thing, below 0 what one pays for the other takes back.

    Args:
        rewards: a row for each completion of all processes, a column for each name; NaN where one does not apply.
        names: of the rewards, in the order of the columns.

    Returns:
        `rewards/corr/A~B` to a number in [−1, 1]; NaN where one of the two does not vary.

    >>> reward_correlations(torch.tensor([[1.0, 0.0], [2.0, -2.0], [torch.nan, 5.0]]), ["a", "b"])
    {'rewards/corr/a~b': -1.0}
    """
    found = {}
    for (i, first), (j, second) in itertools.combinations(enumerate(names), 2):
        pair = rewards[:, [i, j]].double()
        pair = pair[~pair.isnan().any(1)]
        centred = pair - pair.mean(0)
        a, b = centred.T
        scale = float((a.square().sum() * b.square().sum()).sqrt())
        value = max(-1.0, min(1.0, float((a * b).sum()) / scale)) if scale > 1e-12 else math.nan
        found[f"rewards/corr/{first}~{second}"] = value
    return found


def flat_groups(rewards_B: torch.Tensor, group_size: int) -> float:
    """Share of groups whose rewards lie within `FLAT_SPREAD` of one another: there is next to nothing to learn.

    In the tail ranks differ and gains hardly do: 400 and 410 are worth .1156 and .1152 under `ndcg`. Scaled by the
    group that is as much signal as ranks 1 and 20. TRL's `frac_reward_zero_std` counts exact ties only, over the whole
    batch where the batch is what rewards are scaled by.

    Args:
        rewards_B: weighted sums of completions, groups of `group_size` in a row; NaN where no reward applies.
        group_size: completions of each prompt.

    >>> flat_groups(torch.tensor([1.0, 0.996, 0.0, 1.0, torch.nan, 2.0]), 2)
    0.6666666865348816
    """
    groups = rewards_B.view(-1, group_size)
    low = groups.nan_to_num(nan=math.inf).amin(1)
    high = groups.nan_to_num(nan=-math.inf).amax(1)
    return float((high - low < FLAT_SPREAD).float().mean())


def last_mean(history: Log, key: str, n: int) -> float | None:
    """Mean of the last n logged values; `None` while there are fewer."""
    values = list(itertools.islice((row[key] for row in reversed(history) if row.get(key) is not None), n))
    return sum(values) / n if len(values) == n else None


def first_mean(history: Log, key: str, n: int) -> float | None:
    """Mean of the first n logged values; `None` while there are fewer."""
    values = list(itertools.islice((row[key] for row in history if row.get(key) is not None), n))
    return sum(values) / n if len(values) == n else None


def stretches(history: Log) -> list[tuple[float | None, float]]:
    """For each validation: the mean reward since the one before (`None` without training), and its NDCG@10."""
    found: list[tuple[float | None, float]] = []
    rewards: list[float] = []
    for row in history:
        if row.get("reward") is not None:
            rewards.append(row["reward"])
        if (value := row.get(EVALUATION, row.get(FUSED_EVALUATION))) is not None:
            found.append((sum(rewards) / len(rewards) if rewards else None, value))
            rewards = []
    return found


def entropy_collapse(history: Log, window: int, share: float = 0.1) -> str | None:
    """Says so where the entropy of the last steps is below a share of that of the first."""
    first, last = first_mean(history, "entropy", window), last_mean(history, "entropy", window)
    if first is None or last is None or not last < share * first:
        return None
    return (
        f"the policy has stopped exploring: its entropy is {last:.3g}, and was {first:.3g} at the start. Completions "
        f"of a prompt become copies of one another: raise the temperature or beta, or lower the learning rate"
    )


def no_spread(history: Log, window: int, share: float = 0.9) -> str | None:
    """Says so where most groups have one reward for all their completions."""
    last = last_mean(history, FLAT, window)
    if last is None or not last > share:
        return None
    return (
        f"there is nothing to learn from {last:.0%} of the prompts: all completions of a group get the same reward. "
        f"Take a finer reward (ndcg or log in place of hit), more completions of each prompt, or set min_gain_spread"
    )


def unparseable(history: Log, window: int, share: float = 0.5) -> str | None:
    """Says so where most completions never reach the marker."""
    last = last_mean(history, "parsed_share", window)
    if last is None or not 1 - last > share:
        return None
    return (
        f"{1 - last:.0%} of the completions have no marker, and so no answer of their own: raise "
        f"max_reasoning_tokens, train the warm start longer, or add the format reward"
    )


def overfit(history: Log, n_evaluations: int = 3) -> str | None:
    """Says so where the reward rises and validation falls, over the last evaluations."""
    last = [(reward, ndcg) for reward, ndcg in stretches(history) if reward is not None][-n_evaluations:]
    if len(last) < n_evaluations or n_evaluations < 2:
        return None
    pairs = list(itertools.pairwise(last))
    if not all(later[0] > earlier[0] and later[1] < earlier[1] for earlier, later in pairs):
        return None
    return (
        f"the reward rises and validation falls, over the last {n_evaluations} evaluations: reward {last[0][0]:.4f} "
        f"to {last[-1][0]:.4f}, NDCG@10 {last[0][1]:.4f} to {last[-1][1]:.4f}. The teacher learns what the reward "
        f"pays for and not to recommend: look at completions, change the reward, or set early_stopping_patience"
    )


def watching(run_dir: Path, metrics: str, stage: str) -> list[TrainerCallback]:
    """The guard rails of a stage, and then what writes them down with all that is logged."""
    return [GuardRails(run_dir / WARNINGS), MetricsFile(run_dir / metrics, stage)]


class GuardRails(TrainerCallback):
    """Logs drifts, and warns in words, each once for a run. Put it before what writes the logs down.

    Args:
        file: where warnings are kept beside the log, for the report; `None` for none.
        window: logged steps that a warning is about.
        n_evaluations: evaluations over which the reward may not rise while validation falls.
    """

    def __init__(self, file: Path | None = None, window: int = 5, n_evaluations: int = 3) -> None:
        self.file = file
        self.window = window
        self.checks: dict[str, Callable[[Log], str | None]] = {
            "entropy": lambda history: entropy_collapse(history, window),
            "spread": lambda history: no_spread(history, window),
            "unparseable": lambda history: unparseable(history, window),
            "overfit": lambda history: overfit(history, n_evaluations),
        }
        self.told: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reads which warnings a run that goes on has given already; a run from the start has given none."""
        if self.file is None or not state.is_world_process_zero or not self.file.exists():
            return
        if state.global_step == 0:
            self.file.unlink()
            return
        self.told = {line.split(" ", 1)[0] for line in self.file.read_text(encoding="utf-8").splitlines()}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Adds to what is logged, and looks whether something has gone wrong."""
        if not logs:
            return
        history = state.log_history  # has these logs as its last row, and is restored when a run goes on
        if (length := logs.get("completions/mean_length")) is not None:
            first = first_mean(history, "completions/mean_length", 1)
            if first:
                logs["guard/length_ratio"] = length / first
        if EVALUATION in logs or FUSED_EVALUATION in logs:
            reward, ndcg = stretches(history)[-1]
            if reward is not None:
                logs["guard/reward_gap"] = reward - ndcg
        if not state.is_world_process_zero:
            return
        for name, check in self.checks.items():
            if name not in self.told and (words := check(history)) is not None:
                self.told.add(name)
                logger.warning("step %d: %s", state.global_step, words)
                if self.file is not None:
                    with self.file.open("a", encoding="utf-8") as file:
                        file.write(f"{name} step {state.global_step}: {words}\n")
