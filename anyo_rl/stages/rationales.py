"""Rationales from an LLM on a server: why this user chose this item next, asked, filtered, and written down.

A run folder holds, besides what every run folder holds:

    journal/              every answer, written down as it arrives: what a kill leaves, and what is never asked again
    paths.parquet         the paths table: all answers, each (example, sample) once. `rewards` says what came of it:
                          {"kept": 1.0}, or {"kept": 0.0, "leak": 0.0} with the filter that it did not pass
    rationales/           those kept, as TRL takes them: prompt, completion, example_id, sample_index, target_id
    rationales.json, .md  counts by filter (they sum to the requests), failures, tokens, money

All but the journal is made anew from it at each start. One process asks, with many requests in flight: a server is
shared out by its own queue, and two processes in one folder would pay twice for what both have in flight.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from anyo_rl.data.completion import render
from anyo_rl.data.rationales import DATASET_FILE, PATHS_FILE
from anyo_rl.data.schema import DataError
from anyo_rl.llm.journal import Answer, Journal
from anyo_rl.llm.report import Report
from anyo_rl.llm.server import Request, Server, ServerError, ask, request_key
from anyo_rl.reasoning.prompts import render_prompt
from anyo_rl.reasoning.rationales.filters import FilterArguments, Verdict, count, judge_all
from anyo_rl.reasoning.rationales.questions import Question
from anyo_rl.reasoning.rationales.titles import Titles
from anyo_rl.run.files import write_table, write_whole
from anyo_rl.sampling.paths import SampledPath, paths_table

REPORT = "rationales.json"
TABLE = "rationales.md"


@dataclass(frozen=True)
class JobReport:
    """What a job came to: the contents of `rationales.json`, see docs/rationales.md.

    Attributes:
        model: who was asked.
        examples: asked about.
        n_samples: of each.
        requests: their product.
        counts: requests by outcome; their sum is `requests`.
        examples_with_rationale: those with one that was kept.
        prompt_tokens: of all answers.
        completion_tokens: of all answers.
        without_usage: answers that came without counts.
        money: of all answers; `None` without prices.
        attempts_of_answers: how often was asked for these.
        stopped: `budget`, `error` or `None`.
        error: what the error said.
        this_start: what the server was asked this time; `None` where that had not begun.
    """

    model: str
    examples: int
    n_samples: int
    requests: int
    counts: Mapping[str, int]
    examples_with_rationale: int
    prompt_tokens: int
    completion_tokens: int
    without_usage: int
    money: float | None
    attempts_of_answers: int
    stopped: str | None
    error: str | None
    this_start: Report | None

    def as_json(self) -> dict[str, object]:
        """Ready for JSON, in the order of the fields."""
        return asdict(self)


def generate(
    questions: Sequence[Question],
    n_samples: int,
    server: Server,
    titles: Titles,
    args: FilterArguments,
    run_dir: Path,
    prompt_style: Literal["text", "chat"] = "text",
) -> JobReport:
    """Asks what has not been answered yet, then writes tables and report of all that has.

    Args:
        questions: what to ask about.
        n_samples: samples of each.
        server: where, how and up to which budget.
        titles: of the catalog.
        args: which answers are kept.
        run_dir: the run folder.
        prompt_style: of the prompts in the data set, which a teacher will read.

    Returns:
        The report, as it is in the folder.

    Raises:
        ServerError: the server refuses, or nothing works any more; tables and report are written.
        DataError: less than one sample.
    """
    if n_samples < 1:
        raise DataError(f"n_samples is {n_samples}: expected 1 or more")
    # An example's samples are asked one after another: a server that keeps prefixes reads the prompt once.
    rows = [(question, sample) for question in questions for sample in range(n_samples)]
    requests = [Request(question.example.example_id, sample, question.prompt) for question, sample in rows]
    error, outcome = None, None
    with Journal(run_dir / "journal") as journal:
        try:
            outcome = ask(requests, server, journal)
        except ServerError as caught:
            error = caught
        known = journal.answers()
    answers = [known.get(request_key(request, server)) for request in requests]
    verdicts = judge_all([question.shown for question, _ in rows], answers, titles, args)
    paths = [
        _path(*row, answer, verdict, server)
        for row, answer, verdict in zip(rows, answers, verdicts, strict=True)
        if answer is not None and verdict is not None
    ]
    kept = [
        (*row, verdict)
        for row, verdict in zip(rows, verdicts, strict=True)
        if verdict is not None and verdict.reason is None
    ]
    write_table(paths_table(paths), run_dir / PATHS_FILE)
    write_table(_dataset(kept, prompt_style), run_dir / "rationales" / DATASET_FILE)
    this_start = outcome.report if outcome else error.report if error else None
    n_failed = sum(this_start.failed.values()) if this_start else 0
    came = [answer for answer in answers if answer is not None]
    report = JobReport(
        model=server.model,
        examples=len(questions),
        n_samples=n_samples,
        requests=len(requests),
        counts=count(verdicts, n_failed),
        examples_with_rationale=len({question.example.example_id for question, *_ in kept}),
        prompt_tokens=sum(answer.prompt_tokens or 0 for answer in came),
        completion_tokens=sum(answer.completion_tokens or 0 for answer in came),
        without_usage=sum(None in (answer.prompt_tokens, answer.completion_tokens) for answer in came),
        money=sum(answer.money or 0.0 for answer in came) if server.prompt_price is not None else None,
        attempts_of_answers=sum(answer.attempts for answer in came),
        stopped="error" if error else this_start.stopped if this_start else None,
        error=str(error) if error else None,
        this_start=this_start,
    )
    write_whole(run_dir / REPORT, json.dumps(report.as_json(), indent=2))
    write_whole(run_dir / TABLE, report_table(report))
    if error is not None:
        raise error
    return report


def report_table(report: JobReport) -> str:
    """The report as a Markdown table."""
    requests = report.requests
    lines = [f"# Rationales of {report.model}", "", "| Outcome | Requests | Share |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {n:,} | {n / max(requests, 1):.1%} |" for name, n in report.counts.items()]
    lines += [f"| all | {requests:,} | {1:.1%} |", ""]
    lines += [f"Examples with a rationale: {report.examples_with_rationale:,} of {report.examples:,}."]
    tokens = f"{report.prompt_tokens:,} prompt and {report.completion_tokens:,} completion tokens"
    lines += [f"Answers took {tokens}" + (f", {report.money:.4f} in money." if report.money is not None else ".")]
    if report.stopped:
        lines += [f"Stopped: {report.stopped}" + (f" ({report.error})." if report.error else ".")]
    return "\n".join(lines) + "\n"


def _path(question: Question, sample: int, answer: Answer, verdict: Verdict, server: Server) -> SampledPath:
    example, prompt = question.example, question.prompt
    rewards = {"kept": 1.0} if verdict.reason is None else {"kept": 0.0, verdict.reason: 0.0}
    return SampledPath(
        example_id=example.example_id,
        sample_index=sample,
        policy=server.model,
        split=question.split,
        user_id=example.user_id,
        history=list(question.history),
        prompt=prompt if isinstance(prompt, str) else prompt[-1]["content"],
        completion=answer.text,
        steps=list(verdict.steps),
        item_id=verdict.item_id,
        item_title=verdict.item,
        target_id=example.target_id,
        target_title=question.shown.target,
        rewards=json.dumps(rewards),
        finish_reason=answer.finish_reason,
        model=server.model,
        seed=None if server.seed is None else server.seed + sample,
    )


def _dataset(kept: Sequence[tuple[Question, int, Verdict]], style: Literal["text", "chat"]) -> pl.DataFrame:
    examples = [question.example for question, _, _ in kept]
    texts = [render(verdict.steps, question.shown.target) for question, _, verdict in kept]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    prompt = pl.String() if style == "text" else pl.List(pl.Struct({"role": pl.String(), "content": pl.String()}))
    return pl.DataFrame(
        {
            "prompt": [render_prompt(question.history, style) for question, _, _ in kept],
            "completion": texts if style == "text" else messages,
            "example_id": [example.example_id for example in examples],
            "sample_index": [sample for _, sample, _ in kept],
            "target_id": [example.target_id for example in examples],
        },
        schema={
            "prompt": prompt,
            "completion": prompt,
            "example_id": pl.String(),
            "sample_index": pl.Int64(),
            "target_id": pl.String(),
        },
    )
