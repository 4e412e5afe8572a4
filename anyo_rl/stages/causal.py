"""The causal report of a teacher: histories and reasonings are changed, and it is asked again.

The reasonings are the greedy ones of the evaluation, written again from their steps like all changed ones, so that
nothing but the change differs. Item distributions are whole, over the catalog and without masks: what a user has seen
would make items follow the history by itself. See docs/causal.md.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
import torch
from accelerate import PartialState
from tqdm import tqdm

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.completion import parse
from anyo_rl.data.schema import Example
from anyo_rl.evaluation.causal import (
    BY_HISTORY,
    BY_REASONING,
    EXCHANGED,
    FOLLOWS_DROP,
    FOLLOWS_REASONING,
    FOLLOWS_SWAP,
    FOLLOWS_TASTE,
    GROUNDED,
    KEEPS_THE_REST,
    MEASURES,
    OWN,
    WITHOUT,
    causal_frame,
    file_of,
)
from anyo_rl.evaluation.evaluator import MADE_WITH, Evaluation, read_made_with, weights_of
from anyo_rl.metrics.distances import share_moved, share_of_change, total_variation
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.distribution import DistributionRanker, rank_scores
from anyo_rl.reasoning.interventions import Changed, change_history, change_taste, derangement
from anyo_rl.reasoning.mentions import Name, Names, grounded_share
from anyo_rl.reasoning.rows import Row, row_of
from anyo_rl.run.files import read_table, write_table
from anyo_rl.run.shards import hash_of
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.stages.job import Job
from anyo_rl.teacher.tokens import Tokens

AT_ONCE = 32  # examples whose distributions are in memory together
CUTOFF = 10
logger = logging.getLogger(__name__)

Steps = Sequence[str]


@dataclass(frozen=True)
class Interviewed:
    """A teacher as interventions ask it.

    Attributes:
        catalog: of its items.
        tokens: its tokenizer and marker.
        names: what a reasoning can name.
        log_probs: contexts up to the marker → (B, N) log-probabilities of all items.
        write: rows → the steps of a greedy reasoning for each.
        with_history: a row and another history → what the teacher reads of that.
    """

    catalog: Catalog
    tokens: Tokens
    names: Names
    log_probs: Callable[[Sequence[Sequence[int]]], torch.Tensor]
    write: Callable[[Sequence[Row]], list[Steps]]
    with_history: Callable[[Row, Sequence[str]], Row]

    @classmethod
    def of(cls, job: Job, teacher: Teacher) -> Self:
        """A teacher of a run."""
        args, tokens = job.task.args, teacher.tokens
        sampler = job.sampler(teacher.model, tokens)
        sampling = Sampling(max_new_tokens=job.max_reasoning_tokens, seed=job.seed).greedy()

        def write(rows: Sequence[Row]) -> list[Steps]:
            contexts = [tokens.context_ids(row.prompt) for row in rows]
            samples = sampler.sample(contexts, sampling, keys_B=[str(place) for place in range(len(rows))])
            return [parse(tokens.decode(of_row[0].token_ids)).steps for of_row in samples]

        def with_history(row: Row, history: Sequence[str]) -> Row:
            example = Example(row.example_id, row.user_id, list(history), row.target_id, excluded=row.excluded)
            return row_of(job.asking, example, teacher.catalog, tokens)

        return cls(
            teacher.catalog,
            tokens,
            Names.of(job.task.interactions.items, args.rationale_attributes),
            DistributionRanker(teacher.catalog, teacher.model).log_probs,
            write,
            with_history,
        )

    def probabilities(self, rows: Sequence[Row], steps_B: Sequence[Steps]) -> np.ndarray:
        """The item distribution after each prompt and reasoning, (B, N)."""
        contexts = []
        for row, steps in zip(rows, steps_B, strict=True):
            context = self.tokens.context_ids(row.prompt)
            safe = [text for step in steps if (text := self.tokens.safe_text(step))]
            contexts.append([*context, *self.tokens.reasoning_ids(safe, context)])
        return self.log_probs(contexts).double().exp().numpy() if contexts else np.zeros((0, len(self.catalog)))

    def gain(self, rows: Sequence[Row], p_B_N: np.ndarray) -> np.ndarray:
        """NDCG@10 of the targets, masked as in the evaluation, (B,)."""
        with np.errstate(divide="ignore"):
            scores = np.log(p_B_N)
        targets, excluded = [row.target_id for row in rows], [row.excluded for row in rows]
        return ndcg(rank_scores(self.catalog, scores, targets, top_k=1, excluded_B=excluded).ranks_B, CUTOFF)


def keep_causal(evaluation: Evaluation, stage: str, job: Job, teacher: Teacher, path: Path | str) -> None:
    """Measures a stage and keeps what was measured, unless the very same is there; in the main process alone.

    Args:
        evaluation: has kept the stage's greedy answers and their paths.
        stage: the stage.
        job: of the run.
        teacher: its weights, whole.
        path: where it lies.
    """
    if not PartialState().is_main_process:
        return
    n = min(job.teacher_args.causal_examples, len(evaluation.test))
    places = np.sort(np.random.default_rng(job.seed).permutation(len(evaluation.test))[:n])
    rows = job.rows_of(evaluation.test[places.tolist()], teacher)
    kept = dict(read_table(evaluation.paths(stage, "greedy"), ["example_id", "steps"]).iter_rows())
    steps_U = [kept[row.example_id] for row in rows]
    file = file_of(evaluation.run_dir, stage)
    read = [[row.prompt_text, list(row.excluded), steps] for row, steps in zip(rows, steps_U, strict=True)]
    made_of = hash_of([weights_of(path), read, list(MEASURES), job.seed])
    if read_made_with(file) == {"made_of": made_of}:
        return
    logger.info("%s: what follows from what, on %d examples", stage, n)
    frame = intervene(Interviewed.of(job, teacher), rows, steps_U, job.seed)
    write_table(frame, file, {MADE_WITH: json.dumps({"made_of": made_of})})


def intervene(asked: Interviewed, rows: Sequence[Row], steps_U: Sequence[Steps], seed: int) -> pl.DataFrame:
    """Changes histories and reasonings of examples, and measures what follows.

    Args:
        asked: the teacher.
        rows: the examples.
        steps_U: its own reasoning for each.
        seed: of partners, and of what is dropped, swapped and put in.

    Returns:
        A row for each example; see `anyo_rl.evaluation.causal`.
    """
    partners = derangement([row.user_id for row in rows], np.random.default_rng(seed))
    parts = []
    for start in tqdm(range(0, len(rows), AT_ONCE), desc="causal", unit="batch", leave=False, delay=2.0):
        places = range(start, min(start + AT_ONCE, len(rows)))
        others = [partners[place] for place in places]
        batch, own = [rows[place] for place in places], [steps_U[place] for place in places]
        draws = [np.random.default_rng([seed, 1, place]) for place in places]
        p_own = asked.probabilities(batch, own)
        found = _exchanged(asked, batch, own, p_own, [None if o is None else (rows[o], steps_U[o]) for o in others])
        found[OWN] = asked.gain(batch, p_own)
        found[WITHOUT] = asked.gain(batch, asked.probabilities(batch, [()] * len(batch)))
        found[FOLLOWS_TASTE] = _with_another_taste(asked, batch, own, p_own, draws)
        found |= _with_other_histories(asked, batch, own, draws)
        parts.append(found)
    measured = {name: np.concatenate([np.zeros(0), *(part[name] for part in parts)]) for name in MEASURES}
    return causal_frame([row.example_id for row in rows], [row.user_id for row in rows], measured)


Measured = dict[str, np.ndarray]


def _exchanged(
    asked: Interviewed,
    rows: Sequence[Row],
    steps_B: Sequence[Steps],
    p_own_B_N: np.ndarray,
    partners_B: Sequence[tuple[Row, Steps] | None],
) -> Measured:
    """What happens when the reasoning alone, and the history alone, become another user's.

    A partner that wrote the same, or has the same history, would exchange nothing.
    """
    there = [
        (place, *partner)
        for place, partner in enumerate(partners_B)
        if partner is not None
        and list(partner[1]) != list(steps_B[place])
        and list(partner[0].history) != list(rows[place].history)
    ]
    places = [place for place, _, _ in there]
    mine = [rows[place] for place in places]
    p_reasoning = asked.probabilities(mine, [steps for _, _, steps in there])
    p_history = asked.probabilities([row for _, row, _ in there], [steps_B[place] for place in places])
    by_reasoning = total_variation(p_own_B_N[places], p_reasoning)
    by_history = total_variation(p_own_B_N[places], p_history)
    values = {
        FOLLOWS_REASONING: share_of_change(by_reasoning, by_history),
        BY_REASONING: by_reasoning,
        BY_HISTORY: by_history,
        EXCHANGED: asked.gain(mine, p_reasoning),
    }
    return {name: _at(places, value, len(rows)) for name, value in values.items()}


def _with_another_taste(
    asked: Interviewed,
    rows: Sequence[Row],
    steps_B: Sequence[Steps],
    p_own_B_N: np.ndarray,
    draws: Sequence[np.random.Generator],
) -> np.ndarray:
    """How much of the probability goes over to items of the taste that was put into the reasoning, (B,)."""
    first = [asked.catalog.item_ids[item] for item in p_own_B_N.argmax(axis=1)]
    tastes = [
        change_taste(steps, item, asked.names, draw) for steps, item, draw in zip(steps_B, first, draws, strict=True)
    ]
    there = [(place, taste) for place, taste in enumerate(tastes) if taste is not None]
    p_changed = asked.probabilities([rows[place] for place, _ in there], [taste.steps for _, taste in there])
    moved = []
    for (place, taste), changed in zip(there, p_changed, strict=True):
        left = asked.catalog.known(sorted(taste.name.items - taste.other.items))
        right = asked.catalog.known(sorted(taste.other.items - taste.name.items))
        before = float(p_own_B_N[place, left].sum()), float(p_own_B_N[place, right].sum())
        moved.append(share_moved(before, float(changed[right].sum())))
    return _at([place for place, _ in there], np.array(moved), len(rows))


def _with_other_histories(
    asked: Interviewed, rows: Sequence[Row], steps_B: Sequence[Steps], draws: Sequence[np.random.Generator]
) -> Measured:
    """What the teacher writes when what it named is dropped, when other items are, and when it is swapped."""
    names = asked.names
    changes = [
        change_history(row.history, steps, names, draw) for row, steps, draw in zip(rows, steps_B, draws, strict=True)
    ]

    def rewritten(history_of: Callable[[Changed], list[str] | None]) -> list[tuple[int, Changed, list[Name]]]:
        there = [(place, one) for place, one in enumerate(changes) if one is not None and history_of(one)]
        anew = [asked.with_history(rows[place], history_of(one) or []) for place, one in there]
        return [(*one, names.said(steps)) for one, steps in zip(there, asked.write(anew) if anew else [], strict=True)]

    def column(values: list[tuple[int, bool]]) -> np.ndarray:
        return _at([place for place, _ in values], np.array([float(value) for _, value in values]), len(rows))

    dropped, kept, swapped = map(rewritten, map(attrgetter, ("dropped", "kept", "swapped")))
    said_B = [names.said(steps) for steps in steps_B]
    return {
        FOLLOWS_DROP: column([(place, one.name not in said) for place, one, said in dropped]),
        KEEPS_THE_REST: column([(place, one.name in said) for place, one, said in kept]),
        FOLLOWS_SWAP: column([(place, one.other in said and one.name not in said) for place, one, said in swapped]),
        GROUNDED: np.array([grounded_share(said, row.history) for said, row in zip(said_B, rows, strict=True)]),
    }


def _at(places: Sequence[int], values: np.ndarray, n: int) -> np.ndarray:
    """Values at their places among n, NaN elsewhere."""
    found = np.full(n, np.nan)
    found[list(places)] = values
    return found
