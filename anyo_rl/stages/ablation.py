"""What each typed step is worth to the answer: the target's gain with the step in the reasoning, and without it.

    ablation/<stage>.json    for each named step the gain with it, without it, and what it adds, over test examples

The greedy reasonings of the evaluation are written again from their steps, all of them and all but one, so that both
sides differ by the step alone; the item is read off after each. Examples whose reasoning has no such step, or has it
more than once, are left out, and `n` says how many there are. A teacher that takes no notice of a step adds 0.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import PartialState

from anyo_rl.catalog.opening import Teacher
from anyo_rl.evaluation.evaluator import Evaluation
from anyo_rl.metrics.gains import ndcg
from anyo_rl.metrics.intervals import Interval, bootstrap_interval, paired_interval
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.kinds.typed import read_typed
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.files import read_json, read_table, write_whole
from anyo_rl.run.shards import hash_of
from anyo_rl.search.answers import USERS_AT_ONCE

FOLDER = "ablation"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ablated:
    """The gain of a step: NDCG of the target's rank, without a cut-off.

    Attributes:
        with_it: the mean gain of the whole reasoning.
        without: the same when the step is left out.
        added: the first less the second, paired.
    """

    with_it: Interval
    without: Interval
    added: Interval


def ablate(
    evaluation: Evaluation, stage: str, teacher: Teacher, rows: Sequence[Row], step_names: Sequence[str]
) -> dict[str, Ablated]:
    """Leaves each named step out of a stage's greedy reasonings; what is there and of the same ones stays.

    Args:
        evaluation: has kept the stage's greedy answers and their paths.
        stage: the stage.
        teacher: its weights, whole.
        rows: the test examples.
        step_names: of the kind.

    Returns:
        What each step adds; empty in processes other than the main one.
    """
    if not PartialState().is_main_process:
        return {}
    paths = read_table(evaluation.paths(stage, "greedy"), ["example_id", "steps", "token_ids", "rank"])
    file = evaluation.run_dir / FOLDER / f"{stage}.json"
    made_of = hash_of([paths.rows(), [list(row.excluded) for row in rows], list(step_names), evaluation.seed])
    if file.is_file() and (found := read_json(file)).get("made_of") == made_of:
        return {name: _read(numbers) for name, numbers in found["steps"].items()}
    steps_U = dict(paths.select("example_id", "steps").iter_rows())
    ranker = LikelihoodRanker(teacher.catalog, teacher.model)
    found = {}
    for name in step_names:
        typed = {id_: read_typed(steps, step_names) for id_, steps in steps_U.items()}
        there = [row for row in rows if name in (of := typed[row.example_id]).places and name not in of.repeated]
        reasonings = [steps_U[row.example_id] for row in there]
        places = [typed[row.example_id].places[name] for row in there]
        fewer = [[*steps[:at], *steps[at + 1 :]] for steps, at in zip(reasonings, places, strict=True)]
        with_R, without_R = (_gains(there, some, ranker, teacher) for some in (reasonings, fewer))
        users, seed = [row.user_id for row in there], evaluation.seed
        found[name] = Ablated(
            with_it=bootstrap_interval(with_R, users, seed=seed),
            without=bootstrap_interval(without_R, users, seed=seed),
            added=paired_interval(with_R, without_R, users, seed=seed),
        )
        logger.info("%s: %s adds %s in %d reasonings", stage, name, found[name].added.text(signed=True), len(there))
    _write(file, made_of, found)
    return found


def _gains(
    rows: Sequence[Row], reasonings: Sequence[Sequence[str]], ranker: LikelihoodRanker, teacher: Teacher
) -> np.ndarray:
    """The target's gain after each reasoning, (R,)."""
    ranks = [np.zeros(0, np.int64)]
    for start in range(0, len(rows), USERS_AT_ONCE):
        part = rows[start : start + USERS_AT_ONCE]
        contexts = []
        for row, steps in zip(part, reasonings[start:], strict=False):
            context = teacher.tokens.context_ids(row.prompt)
            safe = [text for step in steps if (text := teacher.tokens.safe_text(step))]
            contexts.append([*context, *teacher.tokens.reasoning_ids(safe, context)])
        excluded = [row.excluded for row in part]
        found = ranker.rank(contexts, [row.target_id for row in part], top_k=0, excluded_B=excluded)
        ranks.append(found.ranks_B)
    return ndcg(np.concatenate(ranks))


def _write(file: Path, made_of: str, found: dict[str, Ablated]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    steps = {name: {of: getattr(one, of).as_json() for of in vars(one)} for name, one in found.items()}
    write_whole(file, json.dumps({"made_of": made_of, "steps": steps}, indent=2))


def _read(numbers: dict[str, object]) -> Ablated:
    intervals = {name: Interval.from_json(raw) or Interval(float("nan"), n=0) for name, raw in numbers.items()}
    return Ablated(**intervals)
