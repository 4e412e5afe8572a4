"""SFT on solved goals and GRPO on episodes: TRL's trainers, validated by what the answers to goals are worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import Trainer, TrainerCallback
from trl import GRPOTrainer, SFTTrainer

from anyo_rl.agent.lessons import labelled, lesson, renamed
from anyo_rl.agent.rollouts import Asker
from anyo_rl.data.completion import Prompt
from anyo_rl.data.goals import Goal
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.training.loop.flops import validating
from anyo_rl.training.loop.weights import gathered

VALUE = "value"  # the share of the best value that answers reach: what checkpoints are chosen by
SHOWN = {VALUE: "share of the best value", "success": "success"}
GREEDY = Sampling(temperature=0)


@dataclass(frozen=True)
class GoalValidation:
    """What is measured while training.

    Attributes:
        asker: plays the episodes.
        goals: validation goals, each asked once, greedily.
    """

    asker: Asker
    goals: Sequence[Goal]

    def run(self, trainer: Trainer, prefix: str = "eval") -> dict[str, float]:
        """Measures, logs and hands the metrics to the trainer's callbacks, as `Trainer.evaluate` does with a loss."""
        with gathered(trainer.model_wrapped, trainer.accelerator) as model, validating(trainer):
            episodes = self.asker.play(model, self.goals, GREEDY)
        verdicts = [self.asker.judge(goal, one) for goal, one in zip(self.goals, episodes, strict=True)]
        metrics = {
            f"{prefix}_{VALUE}": float(np.mean([1 - verdict.regret for verdict in verdicts])),
            f"{prefix}_success": float(np.mean([verdict.success for verdict in verdicts])),
            f"{prefix}_violations": float(np.mean([len(verdict.violations) for verdict in verdicts])),
            f"{prefix}_calls": float(np.mean([episode.n_calls for episode in episodes])),
        }
        Trainer.log(trainer, metrics)  # not TRL's, which would put the pending training metrics into this row
        trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
        return metrics


class AgentSFTTrainer(SFTTrainer):
    """TRL's SFT trainer, validated on goals.

    Args:
        validation: what is measured at each evaluation.
        *args, **kwargs: as TRL's; the dataset is one of `lessons`.
    """

    def __init__(self, *args: Any, validation: GoalValidation, **kwargs: Any) -> None:
        self.validation = validation
        # The trainer insists on an evaluation set, and never reads it.
        super().__init__(*args, eval_dataset=kwargs["train_dataset"].select([0]), **kwargs)

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # it has its token ids and labels

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """See `GoalValidation.run`."""
        return self.validation.run(self, metric_key_prefix)


class AgentGRPOTrainer(GRPOTrainer):
    """TRL's GRPO trainer, validated on goals.

    Args:
        validation: what is measured at each evaluation.
        *args, **kwargs: as TRL's, `rollout_func` among them, or tools.
    """

    def __init__(self, *args: Any, validation: GoalValidation, **kwargs: Any) -> None:
        self.validation = validation
        super().__init__(*args, eval_dataset=kwargs["train_dataset"].select([0]), **kwargs)

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """See `GoalValidation.run`."""
        return self.validation.run(self, metric_key_prefix)


def lessons(asker: Asker, goals: Sequence[Goal], n_names: int = 1, seed: int = 0) -> Dataset:
    """Solved goals as token ids and labels; results and prompts have no label.

    Args:
        asker: how goals are asked.
        goals: the goals.
        n_names: how often each is told; every time but the first in other names (see `anyo_rl.agent.lessons`).
        seed: of the names.
    """
    rng, rename = np.random.default_rng(seed), asker.planner.world.rename
    rows = []
    for goal in goals:
        lines = lesson(asker.planner, asker.desk(goal), goal)
        for again in range(n_names if rename is not None else 1):
            names = rename(rng) if again and rename is not None else {}
            context = asker.tokens.context_ids(renamed_prompt(asker.prompt(goal), names))
            told = [(renamed(text, names), heard) for text, heard in lines]
            ids, labels = labelled(asker.tokens, context, told)
            rows.append({"input_ids": ids, "labels": labels})
    return Dataset.from_list(rows)


def renamed_prompt(prompt: Prompt, names: Mapping[str, str]) -> Prompt:
    """A prompt whose goal is told in other names."""
    if isinstance(prompt, str):
        return renamed(prompt, names)
    return [*prompt[:-1], {**prompt[-1], "content": renamed(prompt[-1]["content"], names)}]


class UntilFlops(TrainerCallback):
    """Ends a training, with a validation and a checkpoint, when it has had its FLOPs.

    Args:
        trainer: the trainer, which counts them (`anyo_rl.training.loop.flops.Flops`).
        most: when it is enough.
    """

    def __init__(self, trainer: Trainer, most: float) -> None:
        self.trainer = trainer
        self.most = most

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Looks at what was counted so far."""
        if self.trainer.flop_counter.total * self.trainer.accelerator.num_processes >= self.most:
            control.should_training_stop = control.should_log = True
            control.should_evaluate = control.should_save = True


def prompts(asker: Asker, goals: Sequence[Goal]) -> Dataset:
    """Goals as TRL's GRPO takes them."""
    rows: list[Mapping[str, Any]] = [{"prompt": asker.prompt(goal), "goal_id": goal.goal_id} for goal in goals]
    return Dataset.from_list(rows)
