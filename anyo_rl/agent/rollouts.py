"""Episodes about goals: who is asked how, for training and for evaluation alike."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from anyo_rl.agent.episodes import Episode, Limits, play
from anyo_rl.agent.planning import TASK, Planner, goal_prompt
from anyo_rl.agent.tools import Desk
from anyo_rl.data.completion import Prompt
from anyo_rl.data.goals import Goal, Verdict
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import CACHE_TOKENS, TransformersSampler
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.loop.weights import gathered

TOLD = (
    f"{TASK} Write one call a line and wait for its answer: `profile`, `search: WORDS`, `similar: TITLE`, "
    "`plan: TITLE | TITLE`. Then write {marker} TITLE | TITLE | TITLE."
)


@dataclass(frozen=True)
class Asker:
    """How goals are asked and their episodes played.

    Attributes:
        planner: the world as agents see it.
        tokens: the teacher's tokenizer and marker.
        limits: how far an episode may go.
        with_tools: whether there are tools; without them prompts show what the profile would say.
        most_chars: longest result.
        timeout_s: how long a tool may take.
        cache_tokens: see `TransformersSampler`.
    """

    planner: Planner
    tokens: Tokens
    limits: Limits
    with_tools: bool = True
    most_chars: int = 300
    timeout_s: float | None = None
    cache_tokens: int = CACHE_TOKENS

    def prompt(self, goal: Goal) -> Prompt:
        """What is asked: a text, or a chat that begins with how to call, for teachers with a chat template."""
        text = goal_prompt(goal, with_profile=not self.with_tools)
        if self.tokens.tokenizer.chat_template is None:
            return text
        marker = self.tokens.tokenizer.convert_ids_to_tokens(self.tokens.marker_id)
        return [{"role": "system", "content": TOLD.format(marker=marker)}, {"role": "user", "content": text}]

    def desk(self, goal: Goal) -> Desk:
        """Where the calls of an episode are answered."""
        tools = self.planner.tools(goal) if self.with_tools else {}
        return Desk(tools, self.tokens.safe_text, self.most_chars, self.timeout_s)

    def play(
        self, model: nn.Module, goals: Sequence[Goal], sampling: Sampling, keys: Sequence[str] | None = None
    ) -> list[Episode]:
        """An episode of each goal.

        Args:
            model: the teacher.
            goals: what is asked; a goal may come several times.
            sampling: temperature, nucleus and seed.
            keys: what tells the draws apart; the goals' ids if `None`.
        """
        return play(
            TransformersSampler(model, self.tokens, self.cache_tokens),
            self.tokens,
            [self.tokens.context_ids(self.prompt(goal)) for goal in goals],
            [self.desk(goal) for goal in goals],
            sampling,
            self.limits,
            keys or [goal.goal_id for goal in goals],
        )

    def judge(self, goal: Goal, episode: Episode) -> Verdict:
        """What an episode came to."""
        return self.planner.judge(goal, episode.answer)


def prompt_text(prompt: Prompt) -> str:
    """The text that tells goals apart."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def rollout_func(
    asker: Asker, goals: Sequence[Goal], sampling: Sampling
) -> Callable[[list[Prompt], Any], dict[str, object]]:
    """What TRL calls in place of its own generation (`rollout_func`).

    Args:
        asker: plays the episodes.
        goals: all that may be asked.
        sampling: temperature, nucleus and seed.

    Returns:
        A function of prompts, each as often as it is to be sampled, and the trainer. It returns TRL's columns, with
        `env_mask` 0 on the tokens of results, and the columns that rewards read.
    """
    by_prompt: Mapping[str, Goal] = {prompt_text(asker.prompt(goal)): goal for goal in goals}

    def rollout(prompts: list[Prompt], trainer: Any) -> dict[str, object]:
        asked = [by_prompt[prompt_text(prompt)] for prompt in prompts]
        where = f"{trainer.state.global_step} {trainer._step} {trainer.accelerator.process_index}"
        with gathered(trainer.model_wrapped, trainer.accelerator) as model:
            episodes = asker.play(model, asked, sampling, [f"{where} {place}" for place in range(len(asked))])
        verdicts = [asker.judge(goal, episode) for goal, episode in zip(asked, episodes, strict=True)]
        return {
            "prompt_ids": [episode.context_ids for episode in episodes],
            "completion_ids": [episode.ids for episode in episodes],
            "logprobs": None,  # those of the trainer itself are taken
            "env_mask": [episode.mask for episode in episodes],
            "regret": [verdict.regret for verdict in verdicts],
            "n_violations": [len(verdict.violations) for verdict in verdicts],
            "n_calls": [episode.n_calls for episode in episodes],
            "n_failed": [episode.n_failed for episode in episodes],
        }

    return rollout
