"""Where the values of the states between steps come from, by the settings of a training run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from anyo_rl.evidence.fusion import Engine
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sampler, Sampling
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.values.judge import JudgeValues, held
from anyo_rl.values.prm import Prm
from anyo_rl.values.prm_vllm import VllmPrm
from anyo_rl.values.step_values import forced_answer_values, monte_carlo_values

StepValueKind = Literal["forced_answer", "monte_carlo", "judge", "prm"]


@dataclass(frozen=True)
class StepSource:
    """What a state between steps is worth.

    Attributes:
        kind: the gain of a `forced_answer`, or the mean gain of `n_continuations` sampled from a state
            (`monte_carlo`), see `anyo_rl.values.step_values`; or the scores of a `judge` or of a `prm`.
        n_continuations: for `monte_carlo`, 1 or more.
        prm: for `prm`, of a teacher with the same tokenizer, in hand or on a vLLM engine.
        judge: for `judge`. A state that it gave no score is worth what the one before it was.

    Raises:
        ValueError: an unknown kind, less than one continuation, or no PRM or judge where one is to be asked.
    """

    kind: StepValueKind = "forced_answer"
    n_continuations: int = 4
    prm: Prm | VllmPrm | None = None
    judge: JudgeValues | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(StepValueKind):
            raise UsageError(f"step_values is {self.kind!r}: expected one of {', '.join(get_args(StepValueKind))}")
        if self.n_continuations < 1:
            raise UsageError(f"n_continuations is {self.n_continuations}: expected 1 or more")
        if (self.kind == "prm") != (self.prm is not None):
            raise UsageError("step_values prm and a PRM go together: set prm to the folder of one, or leave it out")
        if (self.kind == "judge") != (self.judge is not None):
            raise UsageError(
                "step_values judge and a judge go together, and recipes that reinforce have none: label paths by "
                "recipes/train_prm.py --step_values judge, and take step_values prm"
            )

    def values(
        self,
        rows: Sequence[Row],
        completion_ids_B: Sequence[Sequence[int]],
        sampler: Sampler,
        ranker: Engine,
        tokens: Tokens,
        sampling: Sampling,
    ) -> list[np.ndarray]:
        """Values before the steps of each completion, at least one; `sampling` is that of the completions."""
        if self.prm is not None:
            self.prm.check_texts(completion_ids_B, [tokens.decode(ids) for ids in completion_ids_B])
            scores_B = self.prm.scores([tokens.context_ids(row.prompt) for row in rows], completion_ids_B)
            return [scores[: max(1, len(scores) - 1)] for scores in scores_B]
        if self.judge is not None:
            return held(self.judge.values(rows, completion_ids_B, tokens))
        if self.kind == "forced_answer":
            return forced_answer_values(rows, completion_ids_B, ranker, tokens)
        on = replace(sampling, n=self.n_continuations)
        return monte_carlo_values(rows, completion_ids_B, sampler, ranker, tokens, on)
