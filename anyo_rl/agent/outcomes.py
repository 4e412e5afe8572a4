"""What came of test goals: each answer as it was kept, and tables of one run or of several seeds.

python -m anyo_rl.agent.outcomes runs/goals/seed-0 runs/goals/seed-1
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from anyo_rl.agent.episodes import Episode
from anyo_rl.data.goals import Goal, GoalWorld, Offer, Verdict, greedy_plan
from anyo_rl.metrics.intervals import Interval, bootstrap_interval, paired_interval
from anyo_rl.run.files import read_json, write_whole

AGENT, AGENT_SFT, NO_TOOLS, NO_TOOLS_SFT = "agent", "agent_sft", "no_tools", "no_tools_sft"
GREEDY, FOR_PRICE, BEST = "greedy", "greedy_for_price", "best"
WORDS = {
    AGENT: "agent, GRPO",
    AGENT_SFT: "agent, SFT alone",
    NO_TOOLS: "without tools, GRPO, equal FLOPs",
    NO_TOOLS_SFT: "without tools, SFT alone",
    GREEDY: "greedy planner, most worth first",
    FOR_PRICE: "greedy planner, most worth for its price first",
    BEST: "optimum",
}
FOLDER = "outcomes"


@dataclass(frozen=True)
class Outcome:
    """An answer to a test goal, and how it was come by.

    Attributes:
        goal_id: the goal.
        regret: share of the best value that was missed.
        violations: in words.
        is_best: whether no set is worth more.
        answer: as it was written; `None` for none.
        lines: what was written and heard, and whether it was heard.
        n_calls: calls that were answered.
        n_failed: of these, calls of tools that failed.
        n_tokens: tokens of the episode, results included.
    """

    goal_id: str
    regret: float
    violations: tuple[str, ...]
    is_best: bool
    answer: str | None = None
    lines: tuple[tuple[str, bool], ...] = ()
    n_calls: int = 0
    n_failed: int = 0
    n_tokens: int = 0

    @classmethod
    def of(cls, goal: Goal, verdict: Verdict, episode: Episode | None = None) -> "Outcome":
        """That of an episode, or of a planner, which has none."""
        told = (goal.goal_id, verdict.regret, verdict.violations, verdict.value == verdict.best)
        if episode is None:
            return cls(*told)
        counts = (episode.n_calls, episode.n_failed, len(episode.ids))
        return cls(*told, episode.answer, tuple(episode.lines), *counts)


def planners(world: GoalWorld, goals: Sequence[Goal]) -> dict[str, list[Outcome]]:
    """What the planners that see the whole catalog come to, the exact one last."""
    plans: Mapping[str, Callable[[Goal], tuple[Offer, ...]]] = {
        GREEDY: lambda goal: greedy_plan(goal, world.offers),
        FOR_PRICE: lambda goal: greedy_plan(goal, world.offers, for_price=True),
        BEST: lambda goal: world.best(goal),
    }
    return {name: [Outcome.of(goal, world.judge(goal, plan(goal))) for goal in goals] for name, plan in plans.items()}


def write_outcomes(folder: Path, name: str, outcomes: Sequence[Outcome]) -> None:
    """Keeps outcomes in a run folder."""
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    write_whole(folder / FOLDER / f"{name}.json", json.dumps([asdict(one) for one in outcomes], indent=0))


def read_outcomes(folder: Path) -> dict[str, list[Outcome]]:
    """What a run folder keeps, by name, in the order of tables."""
    found = {}
    for name in WORDS:
        file = folder / FOLDER / f"{name}.json"
        if file.is_file():
            rows = read_json(file)
            found[name] = [
                Outcome(
                    **{
                        **row,
                        "violations": tuple(row["violations"]),
                        "lines": tuple((text, heard) for text, heard in row["lines"]),
                    }
                )
                for row in rows
            ]
    return found


HEADER = ["", "regret", "success", "best", "violations", "calls", "tokens"]
Runs = Sequence[Mapping[str, Sequence[Outcome]]]


def table(runs: Runs) -> str:
    """A Markdown table over seeds: means, with 95% intervals of a bootstrap over goals.

    A goal is drawn with its answers of all seeds. Below it stands how much more regret others have than the agent,
    where there is one.

    Args:
        runs: the outcomes of each seed, on the same goals.
    """
    aligned = ["---", *["---:"] * (len(HEADER) - 1)]
    lines = [f"|{''.join(f' {cell} |' if cell else ' |' for cell in row)}" for row in (HEADER, aligned, *cells(runs))]
    told, *others = differences(runs) or [""]
    return "\n".join([*lines, *(["", told, "", *(f"- {line}" for line in others)] if told else [])])


def cells(runs: Runs) -> list[list[str]]:
    """The rows of the table; see `table`."""
    body = []
    for name in [name for name in WORDS if all(name in run for run in runs)]:
        rows = [one for run in runs for one in run[name]]
        goals = [one.goal_id for one in rows]
        shares = ([one.regret for one in rows], [not one.violations for one in rows], [one.is_best for one in rows])
        counts = ([len(one.violations) for one in rows], [one.n_calls for one in rows], [one.n_tokens for one in rows])
        intervals = [bootstrap_interval([float(value) for value in values], goals) for values in shares]
        body.append([WORDS[name], *map(_text, intervals), *(f"{sum(values) / len(rows):.1f}" for values in counts)])
    return body


def differences(runs: Runs) -> list[str]:
    """How much more regret others have than the agent: what is told, then a line for each; empty without an agent."""
    if not all(AGENT in run for run in runs):
        return []
    lines = ["How much more regret than the agent's, paired by goal and seed:"]
    for name in (AGENT_SFT, NO_TOOLS, GREEDY, FOR_PRICE):
        if all(name in run for run in runs):
            own = [one for run in runs for one in run[AGENT]]
            other = [one for run in runs for one in run[name]]
            found = paired_interval(
                [one.regret for one in other], [one.regret for one in own], [one.goal_id for one in own]
            )
            by_seed = " ".join(
                f"{sum(b.regret - a.regret for a, b in zip(run[AGENT], run[name], strict=True)) / len(run[name]):+.3f}"
                for run in runs
            )
            lines.append(f"{WORDS[name]}: {_text(found, '+.3f')}; by seed {by_seed}")
    return lines


def _text(value: Interval, spec: str = ".3f") -> str:
    if value.low is None or value.high is None or value.low == value.high:
        return format(value.mean, spec)
    return f"{value.mean:{spec}} [{value.low:{spec}}, {value.high:{spec}}]"


if __name__ == "__main__":
    print(table([read_outcomes(Path(folder)) for folder in sys.argv[1:]]))
