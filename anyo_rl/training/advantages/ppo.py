"""PPO (Schulman et al., 2017, arXiv 1707.06347) on reasoning tokens, with rewards for steps.

The policy loss is TRL's clipped one; what is added to GRPO is a critic, advantages by GAE in place of the group's, and
the critic's own loss. The reward of the outcome is given with a completion's last token, and those of steps where they
end.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from trl import GRPOConfig

from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.advantages.credit import steps_of_tokens
from anyo_rl.training.objectives import clipped_value_loss, gae, potential_shaping, whiten
from anyo_rl.values.source import StepSource

if TYPE_CHECKING:
    from anyo_rl.training.reasoner import ReasonerTrainer

CRITIC_FACTOR = 10.0
StepRewards = Literal["none", "shaping", "scores"]
CriticKind = Literal["head", "separate"]
KlPlace = Literal["reward", "loss"]


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
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(get_args(kind))}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected a number from 0 to 1")
        if self.cliprange_value <= 0 or self.vf_coef < 0:
            raise ValueError(
                f"cliprange_value is {self.cliprange_value} and vf_coef is {self.vf_coef}: expected a range above 0 "
                f"and a weight of 0 or more"
            )
        if (self.step_rewards == "none") != (self.source is None):
            raise ValueError("rewards for steps need a source of their values, and only they do")

    def token_rewards(
        self,
        rewards_B: torch.Tensor,
        mask_B_T: torch.Tensor,
        completion_ids_B_T: torch.Tensor,
        tokens: Tokens,
        values_B: Sequence[np.ndarray] = (),
        outcomes_B: Sequence[float] = (),
    ) -> torch.Tensor:
        """(B, T) rewards of tokens: the completion's at its last token, and what steps get.

        Args:
            rewards_B: rewards of completions; 0 where there is none.
            mask_B_T: which tokens there are.
            completion_ids_B_T: token ids, padded on the right.
            tokens: the teacher's tokenizer and marker.
            values_B: V_0 … V_{T−1} of each completion's steps, where steps are rewarded.
            outcomes_B: the value after the last step, likewise.
        """
        given_B_T = torch.zeros(mask_B_T.shape, dtype=torch.float32, device=rewards_B.device)
        last_B = (mask_B_T.sum(1) - 1).clamp(min=0)
        given_B_T.scatter_(1, last_B[:, None], rewards_B[:, None].float())
        if self.step_rewards == "shaping":
            phi_B_T = torch.zeros_like(given_B_T)
            for phi_T, step_T, values in zip(
                phi_B_T, steps_of_tokens(completion_ids_B_T, tokens), values_B, strict=True
            ):
                phi_T[:] = torch.as_tensor(values, dtype=phi_T.dtype, device=phi_T.device)[step_T]
            given_B_T += self.step_reward_weight * potential_shaping(phi_B_T, mask_B_T, self.gamma)
        elif self.step_rewards == "scores":
            for given_T, ids, values, outcome in zip(
                given_B_T, completion_ids_B_T.tolist(), values_B, outcomes_B, strict=True
            ):
                ends = tokens.step_ends(ids)
                for end, score in zip(ends, [*values[1 : len(ends)], outcome], strict=False):
                    given_T[end - 1] += self.step_reward_weight * float(score) / len(ends)
        return given_B_T * mask_B_T

    def estimates(self, trainer: "ReasonerTrainer", output: dict[str, Any], rewards_B: torch.Tensor) -> dict[str, Any]:
        """What the loss needs of a batch that was just sampled: `advantages`, `old_values` and `returns`, all (B, T).

        All processes call this together. Completions that no reward applies to teach nothing.

        Args:
            trainer: with the values of steps and the outcomes of this process's completions.
            output: what TRL made of the batch.
            rewards_B: weighted rewards of this process's completions, NaN where there is none.
        """
        mask_B_T, known_B = output["completion_mask"], ~rewards_B.isnan()
        with torch.no_grad():
            log_probs_B_T, old_B_T = trainer.log_probs_and_values(output)
        given_B_T = self.token_rewards(
            rewards_B.nan_to_num(),
            mask_B_T,
            output["completion_ids"],
            trainer.tokens,
            trainer.step_values_B,
            trainer.outcomes_B.tolist(),
        )
        if trainer.beta and self.kl == "reward":
            divergence_B_T = (log_probs_B_T - output["ref_per_token_logps"]) * mask_B_T
            given_B_T = given_B_T - trainer.beta * divergence_B_T
            trainer.log_number("kl", trainer.mean(divergence_B_T, mask_B_T))
        advantages_B_T, returns_B_T = gae(given_B_T, old_B_T, mask_B_T, self.gamma, self.lam)
        counted_B_T = mask_B_T * known_B[:, None]
        mean = trainer.mean(returns_B_T, counted_B_T)
        spread = trainer.mean(returns_B_T.square(), counted_B_T) - mean**2
        error = trainer.mean((returns_B_T - old_B_T).square(), counted_B_T)
        trainer.log_number("value/mean", trainer.mean(old_B_T, counted_B_T))
        trainer.log_number("value/return", mean)
        if spread > 0:
            trainer.log_number("value/explained_variance", 1 - error / spread)
        if self.whiten_advantages:
            advantages_B_T = whiten(advantages_B_T, counted_B_T, trainer.accelerator.reduce)
        return {
            "advantages": advantages_B_T * counted_B_T,
            "old_values": old_B_T,
            "returns": torch.where(counted_B_T.bool(), returns_B_T, old_B_T),
            "value_mask": counted_B_T,
        }

    def value_loss(self, trainer: "ReasonerTrainer", inputs: dict[str, Any], values_B_T: torch.Tensor) -> torch.Tensor:
        """The critic's loss, a mean over the tokens of an optimizer step, as TRL's `dapo` is for the policy."""
        mask_B_T, old_B_T, returns_B_T = inputs["value_mask"], inputs["old_values"], inputs["returns"]
        loss_B_T = clipped_value_loss(values_B_T, old_B_T, returns_B_T, self.cliprange_value)
        moved_B_T = (values_B_T.detach() - old_B_T).abs() > self.cliprange_value
        trainer.log_number("value/clip_ratio", trainer.mean(moved_B_T.float(), mask_B_T))
        trainer.log_number("value/loss", trainer.mean(loss_B_T.detach(), mask_B_T))
        n = inputs["num_items_in_batch"].clamp(min=1.0) / trainer.accelerator.num_processes
        n = n * trainer.current_gradient_accumulation_steps / trainer.args.steps_per_generation
        return (loss_B_T * mask_B_T).sum() / n


def with_critic(args: GRPOConfig) -> GRPOConfig:
    """A copy of the settings under which DDP waits for the critic's gradients.

    It would look for weights that a forward left out by that forward's outputs, which values are none of.
    """
    args = copy.copy(args)
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False
    return args


def completion_values(values: Sequence[torch.Tensor], n_completion: int) -> torch.Tensor:
    """(B, T) values of the states before each token of the completions, from recorded forwards over whole sequences.

    Args:
        values: (B', W) values of parts of the batch, in order.
        n_completion: T, the tokens of the padded completions.
    """
    return torch.cat(list(values))[:, -n_completion - 1 : -1]
