"""Teachers that are asked about candidates, as rows of a run's table: beside the order in which these came in.

An order is read off the first number's probabilities (the teacher's own row), and read as it was written (a row of its
own, where teachers learned to write orders). Yes and no are read off for each candidate.
"""

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import PartialState

from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.schema import EXAMPLE_ID
from anyo_rl.evaluation.evaluator import TOP_K, Evaluation, weights_of
from anyo_rl.evaluation.stages import INCOMING, stage_of, written_row
from anyo_rl.ranking.orders import told
from anyo_rl.reasoning.kinds.questions import Candidates, LikedQuestions, OrderQuestions
from anyo_rl.run.files import write_whole
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.search.answers import Answers, How, shared_out
from anyo_rl.search.reranked import Reranker
from anyo_rl.stages.candidates import FOLDER
from anyo_rl.stages.job import Job

logger = logging.getLogger(__name__)


def candidates_of(job: Job) -> Candidates:
    """The candidates that a run's teachers are asked about."""
    questions = job.asking.questions
    assert isinstance(questions, OrderQuestions | LikedQuestions), "they are asked about candidates"
    return questions.candidates


def ranker_of(job: Job) -> str:
    """How ranks are taken, for the heading of tables."""
    listed, liked = job.asking.listed, job.asking.kind.liked
    of = f"{listed.n_candidates} candidates of {job.asks.source}"
    return f"order of {of}" if liked is None else f"p(yes) of {of}, yes: {liked.told}"


def keep_incoming(job: Job, evaluation: Evaluation) -> None:
    """Keeps the row of the candidates as they came in, with the rest of the catalog behind them."""
    lists, items = candidates_of(job).lists, evaluation.item_ids

    def ask() -> Answers:
        ids = evaluation.test[EXAMPLE_ID].to_list()
        top_U_K = lists.incoming(ids, TOP_K).items_R_K
        return Answers(lists.target_ranks(ids), [[items[item] for item in row if item >= 0] for row in top_U_K], [])

    evaluation.keep(INCOMING.name, "plain", ask, job.asks.made_with(), together=True)


def keep_reranked(
    job: Job, evaluation: Evaluation, stage: str, teacher: Teacher, path: Path | str, *, writes: bool
) -> None:
    """Keeps what a teacher makes of the candidates of the test users; all processes call this together.

    Args:
        job: of the run.
        evaluation: of the run.
        stage: whose teacher it is.
        teacher: the teacher.
        path: its folder.
        writes: whether it is also asked to write orders.
    """
    for mode in stage_of(stage).modes:
        how = job.how(mode, seed=job.seed, top_k=TOP_K)
        made_with: dict[str, object] = {
            "weights": weights_of(path),
            "marker": teacher.tokens.marker_id,
            "chat_template_kwargs": job.chat_template_kwargs,
            "max_new_tokens": job.max_reasoning_tokens,
            **job.asks.made_with(),
        }
        if mode == "mixture":
            made_with["n_paths"] = job.teacher_args.n_paths
        names = [stage]
        if writes and job.asking.kind.liked is None:
            names.append(written_row(stage, "catalog"))
        for name in names:
            ask = partial(_answers, job, teacher, how, name, writes=name != stage)
            evaluation.keep(name, mode, ask, made_with | {"written": name != stage}, together=True)


def reranker(job: Job, teacher: Teacher, how: How, *, writes: bool) -> Reranker:
    """A teacher that is asked about a run's candidates; greedy writing where it writes orders."""
    sampler = job.sampler(teacher.model, teacher.tokens)
    writer = TransformersSampler(teacher.model, teacher.tokens, job.teacher_args.sampling_tokens) if writes else None
    return Reranker(job.task, teacher, job.asking, sampler, how, writer)


def _answers(job: Job, teacher: Teacher, how: How, name: str, *, writes: bool) -> Answers:
    """The answers to the run's test users, and a file of what there is to know of them besides."""
    places = job.task.places("test", job.task.args.max_test)
    asked = reranker(job, teacher, how, writes=writes)
    ids = job.task.examples[EXAMPLE_ID].gather(places).to_list()
    answers = shared_out(ids, lambda part: asked.answers(places[part]))
    counts = counted(answers)
    logger.info("%s (%s): %s", name, how.mode, ", ".join(f"{key} {value:.3g}" for key, value in counts.items()))
    if PartialState().is_main_process:
        file = job.folder / FOLDER / f"{name}.{how.mode}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(counts, indent=2))
    return answers


def counted(answers: Answers) -> Mapping[str, float]:
    """What there is to know of answers about candidates besides ranks.

    Returns:
        `prompts`, lists that were asked about; `as_shown`, the share that stayed as they were shown; and of written
        orders what `anyo_rl.ranking.orders.told` tells.
    """
    came = answers.as_it_came
    found = {"prompts": float(len(came)), "as_shown": float(np.mean(came)) if len(came) else float("nan")}
    return found | told(list(answers.orders))
