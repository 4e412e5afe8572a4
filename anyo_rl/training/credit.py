"""Credit for steps: how the tokens of a reasoning share the reward of its outcome."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from accelerate import Accelerator

from anyo_rl.ranking.likelihood import LikelihoodRanker
from anyo_rl.sampling.protocol import Sampler
from anyo_rl.tokens import Tokens
from anyo_rl.training.objectives import ProcessReduction, Scale, process_advantages, progress_advantages
from anyo_rl.values.prm import Prm
from anyo_rl.values.step_values import forced_answer_values, monte_carlo_values

StepSource = Literal["forced_answer", "monte_carlo", "prm"]
StepAdvantages = Literal["progress", "process"]


@dataclass(frozen=True)
class Credit:
    """What a step is credited with, and what the states between steps are worth.

    Attributes:
        advantages: `progress` (the path's reward, less what was gained before the step) or `process` (what this step
            and those after it gained); see `anyo_rl.training.objectives`.
        step_values: the gain of a `forced_answer`, or the mean gain of `n_continuations` sampled from a state
            (`monte_carlo`), see `anyo_rl.values.step_values`; or the scores of a `prm`.
        n_continuations: for `monte_carlo`, 1 or more.
        reduction: for `process`.
        prm: for `prm`, of a teacher with the same tokenizer.

    Raises:
        ValueError: an unknown name, less than one continuation, or no PRM where one is to be asked.
    """

    advantages: StepAdvantages = "progress"
    step_values: StepSource = "forced_answer"
    n_continuations: int = 4
    reduction: ProcessReduction = "mean"
    prm: Prm | None = None

    def __post_init__(self) -> None:
        for name, kind in (
            ("advantages", StepAdvantages),
            ("step_values", StepSource),
            ("reduction", ProcessReduction),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} is {getattr(self, name)!r}: expected one of {', '.join(get_args(kind))}")
        if self.n_continuations < 1:
            raise ValueError(f"n_continuations is {self.n_continuations}: expected 1 or more")
        if (self.step_values == "prm") != (self.prm is not None):
            raise ValueError("step_values prm and a PRM go together: set prm to the folder of one, or leave it out")

    def values(
        self,
        rows: Sequence[Mapping[str, Any]],
        completion_ids_B: Sequence[Sequence[int]],
        sampler: Sampler,
        ranker: LikelihoodRanker,
        tokens: Tokens,
        *,
        mask_history: bool,
        **sampling: Any,
    ) -> list[np.ndarray]:
        """Values before the steps of each completion, at least one; `sampling` as `monte_carlo_values` takes it."""
        if self.prm is not None:
            self.prm.check_texts(completion_ids_B, [tokens.decode(ids) for ids in completion_ids_B])
            scores_B = self.prm.scores([tokens.context_ids(row["prompt"]) for row in rows], completion_ids_B)
            return [scores[: max(1, len(scores) - 1)] for scores in scores_B]
        if self.step_values == "forced_answer":
            return forced_answer_values(rows, completion_ids_B, ranker, tokens, mask_history=mask_history)
        asked = {"n": self.n_continuations, "mask_history": mask_history, **sampling}
        return monte_carlo_values(rows, completion_ids_B, sampler, ranker, tokens, **asked)

    def token_advantages(
        self,
        values_B: Sequence[np.ndarray],
        outcomes_B: Sequence[float],
        rewards_N: torch.Tensor,
        completion_ids_B_T: torch.Tensor,
        tokens: Tokens,
        accelerator: Accelerator,
        *,
        group_size: int,
        scale: Scale,
    ) -> torch.Tensor:
        """Advantages of this process's completions: for each token those of the step that it is a part of.

        Called by all processes together, since a group may lie on several.

        Args:
            values_B: what `values` gave.
            outcomes_B: the gain after the last step; 0 for a completion without a marker.
            rewards_N: rewards of the completions of all processes.
            completion_ids_B_T: (B, T) token ids, padded on the right.
            tokens: the teacher's tokenizer and marker.
            accelerator: the processes.
            group_size: completions of each prompt, in a row.
            scale: TRL's `scale_rewards`; `process` is always scaled by the group.

        Returns:
            (B, T) advantages; the marker belongs to the last step.
        """
        device = completion_ids_B_T.device
        longest = torch.tensor([max(map(len, values_B))], device=device)
        states_B_S = np.full((len(values_B), int(accelerator.gather(longest).max()) + 1), np.nan, np.float32)
        for row, values, outcome in zip(states_B_S, values_B, outcomes_B, strict=True):
            row[: len(values) + 1] = [*values, outcome]
        states_N_S = accelerator.gather(torch.from_numpy(states_B_S).to(device))
        if self.advantages == "progress":
            before_N_S = states_N_S[:, :-1].masked_fill(states_N_S[:, 1:].isnan(), torch.nan)
            advantages_N_S = progress_advantages(rewards_N, before_N_S, group_size, scale)
        else:
            advantages_N_S = process_advantages(states_N_S.diff(dim=1), group_size, self.reduction)
        start = accelerator.process_index * len(values_B)
        step_B_T = torch.zeros_like(completion_ids_B_T)
        for step_T, ids in zip(step_B_T, completion_ids_B_T.tolist(), strict=True):
            for end in tokens.step_ends(ids)[:-1]:
                step_T[end:] += 1
        return advantages_N_S[start : start + len(values_B)].gather(1, step_B_T)
