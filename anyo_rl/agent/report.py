"""The report of an agent's run: one HTML file that needs nothing else, with the table and plans as they were made.

Everything that comes from data or from a teacher is escaped, and there is no script in it.
"""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path

from anyo_rl.agent.outcomes import AGENT, FOR_PRICE, HEADER, NO_TOOLS, WORDS, Outcome, cells, differences
from anyo_rl.agent.planning import goal_prompt
from anyo_rl.data.goals import Goal, GoalWorld
from anyo_rl.run.files import write_whole

N_SHOWN = 12
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse } td, th { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
ol { list-style: none; padding: 0 } li { padding: .15rem .6rem; white-space: pre-wrap; overflow-wrap: anywhere }
.own { border-left: 3px solid #2a6 } .heard { border-left: 3px solid #bbb; color: #666 }
.answer { border-left: 3px solid #26a; font-weight: 600 } .bad { color: #a22 }
"""


def write_report(run_dir: Path, world: GoalWorld, outcomes: Mapping[str, Sequence[Outcome]]) -> Path:
    """Writes `report.html` into a run folder.

    Args:
        run_dir: the run folder.
        world: the goals.
        outcomes: of test goals, by name.

    Returns:
        The file.
    """
    goals = {goal.goal_id: goal for goal in world.goals["test"]}
    parts = ["<h1>An agent and its goals</h1>", *_table(outcomes), "<h2>Plans, step by step</h2>"]
    parts.append("<p>Green is the agent's own, grey is what the tools answered.</p>")
    for outcome in chosen(outcomes):
        parts += _plan(goals[outcome.goal_id], world, outcome, outcomes)
    page = "\n".join(parts)
    head = f'<meta charset="utf-8"><title>Agent</title><style>{STYLE}</style>'
    file = run_dir / "report.html"
    write_whole(file, f'<!doctype html><html lang="en"><head>{head}</head><body>\n{page}\n</body></html>\n')
    return file


def chosen(outcomes: Mapping[str, Sequence[Outcome]], limit: int = N_SHOWN) -> list[Outcome]:
    """The agent's episodes that a report shows: best, middle and worst by regret, a third each."""
    own = sorted(outcomes.get(AGENT, ()), key=lambda one: (one.regret, one.goal_id))
    if len(own) <= limit:
        return own
    third, middle = limit // 3, len(own) // 2
    places = [*range(third), *range(middle, middle + third), *range(len(own) - third, len(own))]
    return [own[place] for place in dict.fromkeys(places)]


def _plan(goal: Goal, world: GoalWorld, outcome: Outcome, outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    wrong = f" <span class=bad>{_safe('; '.join(outcome.violations))}</span>" if outcome.violations else ""
    lines = [f"<li class={'heard' if heard else 'own'}>{_safe(text)}</li>" for text, heard in outcome.lines]
    best = world.best(goal)
    others = [
        f"{_safe(WORDS[name])}: regret {one.regret:.2f}"
        for name in (NO_TOOLS, FOR_PRICE)
        for one in outcomes.get(name, ())
        if one.goal_id == goal.goal_id
    ]
    told = " | ".join(
        f"{offer.title} ({' '.join(offer.days)}, {goal.worth(offer)} for {offer.price})" for offer in best
    )
    return [
        f"<h3>{_safe(goal_prompt(goal, with_profile=True).strip())}</h3>",
        f"<ol>{''.join(lines)}<li class=answer>-&gt; {_safe(outcome.answer or '(no answer)')}</li></ol>",
        f"<p>Regret {outcome.regret:.2f}.{wrong} Best: {_safe(told)}. {'; '.join(others)}</p>",
    ]


def _table(outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    head = "".join(f"<th>{_safe(cell)}</th>" for cell in HEADER)
    body = ["".join(f"<td>{_safe(cell)}</td>" for cell in row) for row in cells([outcomes])]
    shown = [f"<table><tr>{head}</tr>", *(f"<tr>{row}</tr>" for row in body), "</table>"]
    return [*shown, *(f"<p>{_safe(note)}</p>" for note in differences([outcomes]))]


def _safe(text: str) -> str:
    return html.escape(text)
