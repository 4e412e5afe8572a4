"""An LLM on a server as a source of step values: how far a reasoning so far will lead to the right item.

The judge sees the history as the teacher was shown it, and the steps so far: never the target. With it, it would tell
whether a step names the target, which a forced answer tells exactly and for nothing; without it, its score can be had
where a PRM's can. Its instructions are in `judge.txt` beside this file, or in a file of the user's; history and steps
are data between tags (`anyo_rl.llm.judge`), and the score is the last line alone, 0 to 10, over 10.

It is paid for by the state. Equal states are asked about once; with a journal that holds over calls, and over kills.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from anyo_rl.data.completion import completion_text
from anyo_rl.llm.http import Server, ServerError
from anyo_rl.llm.journal import Answer, Journal
from anyo_rl.llm.judge import judge_messages, read_score
from anyo_rl.llm.server import Request, ask
from anyo_rl.reasoning.rows import Row
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.values.step_values import State, of_each_state

PROMPT = Path(__file__).with_name("judge.txt")
MOST_UNSCORED = 0.5  # of the states of a call: beyond it something is wrong with the prompt or the model

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgeValues:
    """Scores of a judge.

    Attributes:
        server: where it is, how it is asked, and up to which budget.
        instructions: its prompt.
        journal: folder in which answers are kept as they arrive, and looked up: the same question is then asked once.
            `None` keeps nothing, and there can be no budget.

    Raises:
        ValueError: a budget without a journal to count in.
    """

    server: Server
    instructions: str
    journal: Path | None = None

    def __post_init__(self) -> None:
        if self.server.has_budget and self.journal is None:
            raise ValueError("a judge with a budget and no journal: name a folder to count in, or set no budget")

    def values(
        self, rows: Sequence[Row], completion_ids_B: Sequence[Sequence[int]], tokens: Tokens
    ) -> list[np.ndarray]:
        """The scores before each step, at least one each, in [0, 1]; NaN where the judge gave none.

        Args:
            rows: B examples (`anyo_rl.reasoning.rows.make_rows`), one for each completion.
            completion_ids_B: what was sampled.
            tokens: the teacher's tokenizer and marker.

        Raises:
            ServerError: the server refuses, nothing works any more, the budget ended, or more than half of the states
                have no score.
        """

        def value(states: list[State]) -> np.ndarray:
            requests: dict[tuple[str, str], Request] = {}
            keys: list[tuple[str, str]] = []
            for state in states:
                row = rows[state.row]
                parts = {"history": completion_text(row.prompt), "reasoning": tokens.decode(state.steps)}
                messages = judge_messages(self.instructions, parts)
                keys.append((row.example_id, messages[-1]["content"]))
                requests.setdefault(keys[-1], Request(row.example_id, 0, messages))
            scores = dict(zip(requests, self._scores(list(requests.values())), strict=True))
            return np.array([scores[key] for key in keys])

        return of_each_state(rows, completion_ids_B, tokens, value)

    def _scores(self, requests: list[Request]) -> list[float]:
        """The score of each request, NaN where there is none."""
        if not requests:
            return []
        with ExitStack() as stack:
            folder = self.journal or Path(stack.enter_context(TemporaryDirectory()))
            outcome = ask(requests, self.server, stack.enter_context(Journal(folder)))
        if outcome.report.stopped:
            raise ServerError(
                f"the judge's budget ended with {outcome.report.left} of {len(requests)} states left to ask about: "
                f"raise it (max_tokens_in_all, max_money), and what has arrived is not asked again"
            )
        scores = [
            read_score(found.text, found.finish_reason) if isinstance(found, Answer) else None
            for found in outcome.answers_R
        ]
        failed = sum(not isinstance(found, Answer) for found in outcome.answers_R)
        unread = sum(score is None for score in scores) - failed
        logger.info("judge: %d states asked about, %d failed, %d without a score", len(requests), failed, unread)
        if failed + unread > MOST_UNSCORED * len(requests):
            raise ServerError(
                f"of {len(requests)} states {failed} got no answer and {unread} an answer whose last line is not "
                f"'SCORE: N' with N from 0 to 10, or that was cut off: look at the prompt, the model and max_tokens"
            )
        return [np.nan if score is None else score for score in scores]


def held(values_B: list[np.ndarray]) -> list[np.ndarray]:
    """Values without gaps: a state without a score is worth what the state before it was, so its step gains nothing.

    Before the first score the first one holds; a reasoning without any is worth 0 throughout.

    >>> [values.tolist() for values in held([np.array([np.nan, 0.2, np.nan, 0.6]), np.array([np.nan])])]
    [[0.2, 0.2, 0.2, 0.6], [0.0]]
    """
    found = []
    for values in values_B:
        known = np.flatnonzero(~np.isnan(values))
        if not len(known):
            found.append(np.zeros(len(values)))
            continue
        last = np.maximum(np.searchsorted(known, np.arange(len(values)), side="right") - 1, 0)
        found.append(values[known[last]])
    return found
