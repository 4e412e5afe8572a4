"""The outcome, less the progress that was already made: what a step cannot take credit for is what came before it."""

import torch

from anyo_rl.training.advantages.batch import Batch, Scale, scaled


def progress(batch: Batch) -> torch.Tensor:
    """(B, T) advantages of tokens: those of the step that each is a part of, by `progress_advantages`."""
    before_A_S = batch.states[:, :-1].masked_fill(batch.states[:, 1:].isnan(), torch.nan)
    return batch.of_tokens(progress_advantages(batch.rewards_A, before_A_S, batch.group_size, batch.scale))


def progress_advantages(
    rewards_A: torch.Tensor, values_A_S: torch.Tensor, group_size: int, scale: Scale = "group"
) -> torch.Tensor:
    """GRPO's advantage, less the progress that a path had already made when a step began.

    The tokens of step j get (R − mean R of the group) − (V_{j−1} − V_0): the return to go against the value of the
    state as its baseline, which is potential-based shaping with γ = 1 and V = 0 at the end (Ng, Harada and Russell,
    1999), so the best policy is the same. What a step cannot take credit for is what came before it. Paths with equal
    rewards begin with equal advantages, whatever their number of steps.

    Args:
        rewards_A: (A,) rewards, groups of `group_size` in a row; NaN where there is none, whose advantages are 0.
        values_A_S: (A, S) V_0, V_1, … before each step, on the scale of the rewards; NaN where a path has fewer
            steps. V_0 is the same for a group.
        group_size: paths of each prompt, G.
        scale: `group` or `batch` divides by the root mean square over the steps, each path counting alike, which
            without progress is the standard deviation of the rewards; `none` leaves the advantages as they are.

    Returns:
        (A, S) advantages; 0 where a path has fewer steps.

    >>> rewards, values = torch.tensor([1.0, 0.0]), torch.tensor([[0.2, 0.8], [0.2, torch.nan]])
    >>> progress_advantages(rewards, values, 2, scale="none")
    tensor([[ 0.5000, -0.1000],
            [-0.5000,  0.0000]])
    """
    groups = rewards_A.view(-1, group_size)
    centred_A = (groups - groups.nanmean(1, keepdim=True)).flatten()
    there = ~values_A_S.isnan()
    raw = centred_A[:, None] - (values_A_S - values_A_S[:, :1])
    raw = torch.where(there & ~raw.isnan(), raw, 0.0)
    square_A = raw.square().sum(1) / there.sum(1).clamp(min=1)
    return scaled(raw, square_A, group_size, scale)
