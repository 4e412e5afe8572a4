"""An LLM's judgement of the reasoning, from any OpenAI-compatible server.

Its instructions are in `judge.txt` beside this file; a file of your own goes into `prompt_file`. The key is read from
the environment. What comes from data or from the teacher is shown as `anyo_rl.llm.judge` has it; a judge may
still be talked round by a teacher that learns to, which is why its score should stand next to a reward from ranks.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anyo_rl.data.completion import MARKER, completion_text, parse
from anyo_rl.llm.http import Server
from anyo_rl.llm.journal import Answer, Journal, Key
from anyo_rl.llm.judge import judge_messages, read_score
from anyo_rl.llm.server import Request, Streak, ask_async
from anyo_rl.run.imports import choices

PROMPT = Path(__file__).with_name("judge.txt")
EXAMPLE = "judge"  # what tells answers apart in the journal is the fingerprint
# Where they are unset: a run waits for its judge, so it is asked for more at once and given up sooner than others.
SETTINGS = {"concurrency": 16, "timeout_s": 60.0, "max_attempts": 3, "max_failures_in_a_row": 50}
# Processes and threads ask at the same time, each for itself: a budget would be overrun.
NO_BUDGET = {"prompt_price", "completion_price", "max_tokens_in_all", "max_money"}
_OPENING = threading.Lock()


class Kept:
    """The answers of a journal, read once, and added to from any thread (`anyo_rl.llm.server.Answers`).

    Args:
        folder: of the journal, in which each process writes a file of its own; `None` keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.journal = None if folder is None else Journal(folder)
        self._answers = {} if self.journal is None else self.journal.answers()
        self._lock = threading.Lock()

    def answers(self) -> dict[Key, Answer]:
        """Those of now."""
        with self._lock:
            return dict(self._answers)

    def append(self, answer: Answer) -> None:
        """Writes an answer down, before anything else happens to it."""
        if self.journal is None:
            return
        with self._lock:
            self.journal.append(answer)
            self._answers[answer.key] = answer


class JudgeReward:
    """The judge's score of a reasoning, over 10: 0 … 1; `None` where it gave none.

    A completion that does not parse is not sent and gets `floor`. No answer after `max_attempts`, or one without a
    score in its last line, is `None`; `judge/failed` and `judge/unparseable` are the shares of what was sent. Equal
    completions of a prompt in a batch are asked about once.

    Args:
        url: of the server, up to `/chat/completions`.
        model: the model's name there.
        prompt_file: the judge's prompt; `judge.txt` if unset.
        floor: reward of a completion that does not parse.
        journal: folder in which answers are kept as they arrive, and looked up: a run that was killed does not pay
            twice. The same question is asked once then, so take it with temperature 0. `None` keeps nothing.
        **server: the other settings of `anyo_rl.llm.http.Server`, but for a budget. Where they are unset: 16 requests
            in flight, 3 attempts of 60 s, 50 failures in a row, temperature 0 and at most 300 tokens (`parameters`).

    Raises:
        ValueError: a setting is unknown or out of its range, or `parameters` holds a secret.
        FileNotFoundError: there is no such prompt file.
        ServerError: the key is not in the environment.
    """

    calls_out = True

    def __init__(
        self,
        url: str,
        model: str,
        prompt_file: str | None = None,
        floor: float = 0.0,
        journal: str | None = None,
        **server: Any,
    ) -> None:
        of_server = [item.name for item in dataclasses.fields(Server) if item.name not in NO_BUDGET]
        known = ["prompt_file", "floor", "journal", *of_server]
        for name in server:
            if name not in known:
                raise ValueError(f"reward 'judge' has no parameter {name!r}: {choices(name, known)}")
        parameters = server.pop("parameters", None)
        parameters = {"temperature": 0.0, "max_tokens": 300} if parameters is None else parameters
        self.server = Server(url, model, parameters, **{**SETTINGS, **server})
        self.server.key()  # a key that is not there is said now, and not after the warm start
        self.instructions = (PROMPT if prompt_file is None else Path(prompt_file)).read_text(encoding="utf-8").strip()
        self.concurrency = self.server.concurrency
        self.floor = floor
        self.journal = journal
        self.__name__ = "judge"
        self._titles: dict[str, str] = {}
        self._streak = Streak()
        self._kept: Kept | None = None

    def fit(self, task: Any, catalog: Any, seed: int = 0) -> None:
        """Takes the titles of the catalog, to name the item that an answer is read off as."""
        self._titles = dict(zip(catalog.item_ids, catalog.titles, strict=True))

    def messages(self, prompt: Any, completion: Any, steps: list[str], item_id: str | None) -> list[dict[str, str]]:
        """What is sent about a completion."""
        written = parse(completion_text(completion)).item
        item = (written if item_id is None else self._titles.get(item_id, item_id)) or ""
        parts = {"history": completion_text(prompt), "reasoning": "\n".join(steps), "item": item}
        return judge_messages(self.instructions, parts)

    async def __call__(
        self,
        prompts: list[Any],
        completions: list[Any],
        steps: list[list[str]],
        item_id: list[str | None],
        log_metric: Callable[[str, float], None] | None = None,
        **kwargs: Any,
    ) -> list[float | None]:
        """One reward per completion.

        Args:
            prompts: the history as the teacher was shown it: text, or chat messages.
            completions: what it wrote: text, or TRL's list of one message.
            steps: the steps of each.
            item_id: the item that was written or is ranked first; `None` where there is none.
            log_metric: gets the shares of what failed and could not be read.
            **kwargs: the other columns, not used.

        Raises:
            ServerError: the server refuses, or nothing works any more.
        """
        asked: dict[tuple[str, ...], list[dict[str, str]]] = {}
        keys: list[tuple[str, ...] | None] = []
        for prompt, completion, of_one, item in zip(prompts, completions, steps, item_id, strict=True):
            if MARKER not in completion_text(completion):
                keys.append(None)
                continue
            messages = self.messages(prompt, completion, of_one, item)
            key = tuple(message["content"] for message in messages)
            keys.append(key)
            asked.setdefault(key, messages)
        answers = await self._ask(list(asked.values()))
        of_key = dict(zip(asked, answers, strict=True))
        scores = {
            key: None if answer is None else read_score(answer.text, answer.finish_reason)
            for key, answer in of_key.items()
        }
        if log_metric is not None and asked:
            log_metric("judge/failed", sum(answer is None for answer in answers) / len(asked))
            unread = sum(scores[key] is None and of_key[key] is not None for key in asked)
            log_metric("judge/unparseable", unread / len(asked))
        return [self.floor if key is None else scores[key] for key in keys]

    async def _ask(self, prompts: list[list[dict[str, str]]]) -> list[Answer | None]:
        """The answer to each prompt; `None` where there is none after all attempts."""
        if not prompts:
            return []
        with _OPENING:  # when first asked, which may be by several threads at once
            if self.journal is not None and self._kept is None:
                self._kept = Kept(Path(self.journal))
        requests = [Request(EXAMPLE, 0, messages) for messages in prompts]
        outcome = await ask_async(requests, self.server, self._kept or Kept(None), streak=self._streak)
        return [found if isinstance(found, Answer) else None for found in outcome.answers_R]
