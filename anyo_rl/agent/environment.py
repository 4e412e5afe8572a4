"""The tools of a goal for chat models with a tool template: TRL's `environment_factory`, and rewards of its answers.

TRL renders the tools by their names, types and docstrings, runs the calls, and keeps results out of the loss. What the
tools answer is what an agent by our own protocol hears, by the same desk, so results are one bounded line here too.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from anyo_rl.agent.planning import TASK, Planner, goal_prompt
from anyo_rl.agent.tools import RESULT, Desk
from anyo_rl.data.completion import MARKER
from anyo_rl.data.goals import Goal

Reward = Callable[..., Any]
TOLD = f"{TASK} Use the tools. At the end answer in one line: -> TITLE | TITLE | TITLE"


class GoalEnvironment:
    """One episode about one goal. What is public here is a tool, `reset` aside: TRL finds them by name.

    Args:
        planner: the world as agents see it.
        goals: all that may be asked, by id.
        clean: takes control tokens out of a text (`Tokens.safe_text`).
        most_chars: longest result.
        timeout_s: how long a tool may take.
    """

    def __init__(
        self,
        planner: Planner,
        goals: Mapping[str, Goal],
        clean: Callable[[str], str] = str,
        most_chars: int = 300,
        timeout_s: float | None = None,
    ) -> None:
        self._planner, self._goals = planner, goals
        self._clean, self._most_chars, self._timeout_s = clean, most_chars, timeout_s
        self._goal: Goal | None = None
        self._n_calls = self._n_failed = 0

    def reset(self, goal_id: str, **row: Any) -> None:
        """Begins an episode.

        Args:
            goal_id: the goal.
            **row: other columns.
        """
        self._goal, self._n_calls, self._n_failed = self._goals[goal_id], 0, 0

    def search(self, words: str) -> str:
        """Finds offers.

        Args:
            words: categories, styles, days, and the highest price, in any order.

        Returns:
            The offers that match best.
        """
        return self._answer("search", words)

    def similar(self, title: str) -> str:
        """Finds offers of the same category that travellers booked together with one.

        Args:
            title: of the offer.

        Returns:
            The offers, most often booked together first.
        """
        return self._answer("similar", title)

    def profile(self) -> str:
        """Says what the traveller likes.

        Returns:
            The style that the traveller likes.
        """
        return self._answer("profile", "")

    def plan(self, titles: str) -> str:
        """Checks a set of offers.

        Args:
            titles: titles, parted by ` | `.

        Returns:
            What the set costs, what is left, what is missing and what is wrong.
        """
        return self._answer("plan", titles)

    def _answer(self, name: str, argument: str) -> str:
        assert self._goal is not None, "reset comes first"
        desk = Desk(self._planner.tools(self._goal), self._clean, self._most_chars, self._timeout_s)
        result = desk.answer(f"{name}: {argument}")
        assert result is not None, "a call"
        self._n_calls, self._n_failed = self._n_calls + 1, self._n_failed + result.failed
        return result.text.removeprefix(RESULT)

    def _columns(self, answer: str | None) -> dict[str, float]:
        assert self._goal is not None, "reset comes first"
        verdict = self._planner.judge(self._goal, answer)
        counts = {"n_calls": self._n_calls, "n_failed": self._n_failed}
        return {"regret": verdict.regret, "n_violations": len(verdict.violations), **counts}


def chats(goals: Sequence[Goal]) -> Dataset:
    """Goals as TRL's GRPO takes them where tools are called by the chat template."""
    rows: list[Mapping[str, Any]] = [
        {"prompt": [{"role": "user", "content": f"{TOLD}\n\n{goal_prompt(goal)}"}], "goal_id": goal.goal_id}
        for goal in goals
    ]
    return Dataset.from_list(rows)


def final_answer(completion: Sequence[Mapping[str, Any]]) -> str | None:
    """The answer in the messages of an episode: the last line of the last one, behind its marker where it has one."""
    last = completion[-1] if completion else {}
    text = str(last.get("content") or "") if last.get("role") == "assistant" else ""
    lines = [line for line in text.rpartition(MARKER)[2].splitlines() if line.strip()]
    return lines[-1].strip() if lines else None


def with_verdicts(reward: Reward) -> Reward:
    """A reward that gets the columns of episodes by our own protocol, for TRL's environments."""

    def judged(completions: list[Any], environments: list[GoalEnvironment], **columns: Any) -> Any:
        found = [
            environment._columns(final_answer(completion))
            for environment, completion in zip(environments, completions, strict=True)
        ]
        own = {name: [each[name] for each in found] for name in found[0]}
        return reward(completions=completions, **{**columns, **own})

    judged.__name__ = getattr(reward, "__name__", "reward")
    return judged
