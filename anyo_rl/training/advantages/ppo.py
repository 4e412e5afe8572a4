"""PPO (Schulman et al., 2017, arXiv 1707.06347) on reasoning tokens, with rewards for steps.

The policy loss is TRL's clipped one; what is added to GRPO is a critic, advantages by GAE in place of the group's, and
the critic's own loss. The reward of the outcome is given with a completion's last token, and those of steps where they
end. All of it is arrays in and arrays out: the trainer runs the forwards.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from anyo_rl.run.settings import UsageError
from anyo_rl.training.advantages.batch import AddUp, Batch, masked_mean
from anyo_rl.training.advantages.gae import clipped_value_loss, gae, potential_shaping, whiten
from anyo_rl.values.source import StepSource

CRITIC_FACTOR = 10.0
StepRewards = Literal["none", "shaping", "scores"]
CriticKind = Literal["head", "separate"]
KlPlace = Literal["reward", "loss"]


@dataclass(frozen=True)
class Estimates:
    """What PPO's losses need of a batch that was just sampled.

    Attributes:
        advantages: (B, T), of the policy's loss.
        old_values: (B, T) values of the states before each token, as they were when it was sampled.
        returns: (B, T), what the values are fitted to.
        value_mask: (B, T) which of them count: completions that no reward applies to teach nothing.
        numbers: for the log, over all processes.
    """

    advantages: torch.Tensor
    old_values: torch.Tensor
    returns: torch.Tensor
    value_mask: torch.Tensor
    numbers: dict[str, float]


@dataclass(frozen=True)
class Ppo:
    """How PPO estimates advantages, and what it rewards besides the outcome.

    Attributes:
        gamma: discount of a token, in [0, 1].
        lam: λ of GAE, in [0, 1].
        vf_coef: weight of the critic's loss.
        critic: what values come from: a `head` on the teacher, or a `separate` model (`anyo_rl.training.critic`).
        critic_learning_rate: of its weights; 10 times the policy's if `None`, for it begins with nothing.
        cliprange_value: how far a value may move from what it was, above 0.
        whiten_advantages: whether advantages are centred and scaled over the batch of all processes.
        kl: where TRL's `beta` times the divergence from the reference goes: into the `reward` of each token, or into
            the `loss` as in GRPO.
        step_rewards: `none`; `shaping`, γ Φ(s′) − Φ(s) with what `source` says as Φ; or `scores`, the value after
            each step over the number of steps, so that more of them pay no more.
        step_reward_weight: of them, beside rewards that are weighted already.
        source: what the states between steps are worth, for `shaping` and `scores`.

    Raises:
        ValueError: a setting is unknown or out of its range.
    """

    gamma: float = 1.0
    lam: float = 0.95
    vf_coef: float = 0.1
    critic: CriticKind = "head"
    critic_learning_rate: float | None = None
    cliprange_value: float = 0.2
    whiten_advantages: bool = True
    kl: KlPlace = "reward"
    step_rewards: StepRewards = "none"
    step_reward_weight: float = 1.0
    source: StepSource | None = None

    def __post_init__(self) -> None:
        for name, kind in (("kl", KlPlace), ("critic", CriticKind), ("step_rewards", StepRewards)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(get_args(kind))}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}: expected a number from 0 to 1")
        if self.cliprange_value <= 0 or self.vf_coef < 0:
            raise UsageError(
                f"cliprange_value is {self.cliprange_value} and vf_coef is {self.vf_coef}: expected a range above 0 "
                f"and a weight of 0 or more"
            )
        if (self.step_rewards == "none") != (self.source is None):
            raise UsageError("rewards for steps need a source of their values, and only they do")

    def token_rewards(self, batch: Batch) -> torch.Tensor:
        """(B, T) rewards of tokens: the completion's at its last token (0 where there is none), and what steps get."""
        rewards_B, mask_B_T = batch.rewards_A[batch.own].nan_to_num(), batch.mask_B_T
        given_B_T = torch.zeros(mask_B_T.shape, dtype=torch.float32, device=rewards_B.device)
        last_B = (mask_B_T.sum(1) - 1).clamp(min=0)
        given_B_T.scatter_(1, last_B[:, None], rewards_B[:, None].float())
        if self.step_rewards == "shaping":
            phi_B_T = batch.of_tokens(batch.states).to(given_B_T)
            given_B_T += self.step_reward_weight * potential_shaping(phi_B_T, mask_B_T, self.gamma)
        elif self.step_rewards == "scores":
            for given_T, ends, states_S in zip(given_B_T, batch.ends_B, batch.states[batch.own], strict=True):
                for end, score in zip(ends, states_S[1:].tolist(), strict=False):
                    given_T[end - 1] += self.step_reward_weight * score / len(ends)
        return given_B_T * mask_B_T

    def estimates(
        self,
        batch: Batch,
        old_values_B_T: torch.Tensor,
        penalty_B_T: torch.Tensor | None = None,
        add_up: AddUp = lambda x: x,
    ) -> Estimates:
        """Advantages by GAE, and what the critic is fitted to.

        Args:
            batch: the completions.
            old_values_B_T: (B, T) values of the states before each token.
            penalty_B_T: (B, T) taken off each token's reward: beta times the divergence from the reference.
            add_up: sums over all processes, which call this together.
        """
        mask_B_T, known_B = batch.mask_B_T, ~batch.rewards_A[batch.own].isnan()
        given_B_T = self.token_rewards(batch)
        if penalty_B_T is not None:
            given_B_T = given_B_T - penalty_B_T
        advantages_B_T, returns_B_T = gae(given_B_T, old_values_B_T, mask_B_T, self.gamma, self.lam)
        counted_B_T = mask_B_T * known_B[:, None]
        mean = masked_mean(returns_B_T, counted_B_T, add_up)
        spread = masked_mean(returns_B_T.square(), counted_B_T, add_up) - mean**2
        error = masked_mean((returns_B_T - old_values_B_T).square(), counted_B_T, add_up)
        numbers = {"value/mean": masked_mean(old_values_B_T, counted_B_T, add_up), "value/return": mean}
        if spread > 0:
            numbers["value/explained_variance"] = 1 - error / spread
        if self.whiten_advantages:
            advantages_B_T = whiten(advantages_B_T, counted_B_T, add_up)
        return Estimates(
            advantages=advantages_B_T * counted_B_T,
            old_values=old_values_B_T,
            returns=torch.where(counted_B_T.bool(), returns_B_T, old_values_B_T),
            value_mask=counted_B_T,
            numbers=numbers,
        )

    def value_loss(
        self,
        values_B_T: torch.Tensor,
        estimates: Estimates,
        n_tokens: torch.Tensor | float,
        add_up: AddUp = lambda x: x,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The critic's loss, a mean over the tokens of an optimizer step as TRL's `dapo` is, and numbers for the log.

        Args:
            values_B_T: (B, T) values, with gradients.
            estimates: of the same completions; its own numbers are not read.
            n_tokens: what the sum over tokens is divided by.
            add_up: sums over all processes, which call this together.
        """
        old_B_T, mask_B_T = estimates.old_values, estimates.value_mask
        loss_B_T = clipped_value_loss(values_B_T, old_B_T, estimates.returns, self.cliprange_value)
        moved_B_T = (values_B_T.detach() - old_B_T).abs() > self.cliprange_value
        numbers = {
            "value/clip_ratio": masked_mean(moved_B_T.float(), mask_B_T, add_up),
            "value/loss": masked_mean(loss_B_T.detach(), mask_B_T, add_up),
        }
        return (loss_B_T * mask_B_T).sum() / n_tokens, numbers
