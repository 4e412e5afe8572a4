"""Who answers histories that nobody has seen before: a teacher by a search, or whatever scores the whole catalog."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.completion import parse
from anyo_rl.data.schema import Example
from anyo_rl.data.sequences import HeldOut
from anyo_rl.evidence.asked import AskedEvidence
from anyo_rl.evidence.fusion import Engine, FusedRanker
from anyo_rl.evidence.opened import Evidence
from anyo_rl.metrics.ranking import target_ranks, top_items
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import row_of
from anyo_rl.sampling.protocol import LineSampler, Sample, Sampling
from anyo_rl.search.answers import How, Recommendation, answer
from anyo_rl.search.how import Settings
from anyo_rl.stages.job import Job
from anyo_rl.students.protocol import rows_at_once
from anyo_rl.teacher.tokens import Tokens

Watch = Callable[[str, tuple[str, ...]], None]  # the key of a request, and steps of it that were just written


@dataclass(frozen=True)
class Found:
    """One answer.

    Attributes:
        item_ids: best first.
        scores: theirs.
        target_rank: 1-based; 0 where no target is known.
        seconds: the time that the batch took, over its examples.
        searched: what a teacher's search found.
    """

    item_ids: Sequence[str]
    scores: Sequence[float]
    target_rank: int
    seconds: float
    searched: Recommendation | None = None


class Answerer(Protocol):
    """A teacher, or what scores the catalog."""

    def answer(self, examples: Sequence[Example], how: How, watch: Watch | None = None) -> list[Found]:
        """Answers examples, whose targets are empty where they are not known.

        Args:
            examples: with what rankings leave out.
            how: a search, and how many items; `plain` for what does not search.
            watch: gets steps as they are written, with the key of their draws.
        """
        ...


@dataclass(frozen=True)
class Watched:
    """A sampler that tells of each reasoning, or step of one, as soon as it is written."""

    sampler: LineSampler
    tokens: Tokens
    watch: Watch

    def sample(
        self,
        contexts_B: Sequence[Sequence[int]],
        sampling: Sampling = Sampling(),
        *,
        keys_B: Sequence[str] | None = None,
    ) -> list[list[Sample]]:
        """See `anyo_rl.sampling.protocol.Sampler`."""
        found = self.sampler.sample(contexts_B, sampling, keys_B=keys_B)
        for key, samples in zip(keys_B or (), found, strict=True):
            for sample in samples:
                self._tell(key, sample)
        return found

    def sample_lines(
        self, contexts_B: Sequence[Sequence[int]], sampling: Sampling, limits_B: Sequence[int], keys_B: Sequence[str]
    ) -> list[Sample]:
        """See `anyo_rl.sampling.protocol.LineSampler`."""
        found = self.sampler.sample_lines(contexts_B, sampling, limits_B, keys_B)
        for key, sample in zip(keys_B, found, strict=True):
            self._tell(key.rpartition(" ")[0], sample)  # behind the example stands the node
        return found

    def _tell(self, key: str, sample: Sample) -> None:
        steps = parse(self.tokens.decode(sample.token_ids)).steps
        if steps:
            self.watch(key, tuple(steps))


@dataclass(frozen=True)
class Beside:
    """Evidence beside a teacher.

    Attributes:
        evidence: of the same data.
        alphas: the teacher's weight, by mode of the run's table; other searches take that of a mixture.
    """

    evidence: Evidence
    alphas: dict[str, float]

    def of(self, ranker: LikelihoodRanker, examples: Sequence[Example], search: str) -> FusedRanker:
        """What ranks the candidates of these examples by both."""
        index = self.evidence.maker.index
        asked = HeldOut(
            [[index[item] for item in one.history] for one in examples],
            [index.get(one.target_id, 0) for one in examples],
            [[index[item] for item in one.excluded if item != one.target_id] for one in examples],
        )
        found = AskedEvidence(self.evidence, [one.example_id for one in examples], asked)
        return FusedRanker(ranker, found, self.alphas.get(search, self.alphas["mixture"]))


@dataclass(frozen=True)
class OfTeacher:
    """A teacher that answers, by itself or beside evidence."""

    job: Job
    teacher: Teacher
    settings: Settings
    beside: Beside | None = None

    def answer(self, examples: Sequence[Example], how: How, watch: Watch | None = None) -> list[Found]:
        """See `Answerer`."""
        tokens, catalog, model = self.teacher.tokens, self.teacher.catalog, self.teacher.model
        rows = [row_of(self.job.asking, one, catalog, tokens) for one in examples]
        sampler: Any = self.job.sampler(model, tokens, with_log_probs=self.settings.score == "likelihood")
        if watch is not None:
            sampler = Watched(sampler, tokens, watch)
        engine = LikelihoodRanker(catalog, model)
        ranker: Engine = engine if self.beside is None else self.beside.of(engine, examples, how.mode)
        answers = answer(rows, ranker, sampler, tokens, how)
        return [
            Found(one.item_ids_K, one.scores_K, int(rank), one.seconds, one)
            for one, rank in zip(answers.found_U or [], answers.ranks_U, strict=True)
        ]


@dataclass(frozen=True)
class OfScorer:
    """Whatever scores the whole catalog after a history: a student, or evidence."""

    score: Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], Any]
    index: dict[str, int]

    def answer(self, examples: Sequence[Example], how: How, watch: Watch | None = None) -> list[Found]:
        """See `Answerer`; there is nothing to watch."""
        ids, found = list(self.index), []
        at_once = rows_at_once(len(ids))
        for start in range(0, len(examples), at_once):
            block, began = examples[start : start + at_once], time.perf_counter()
            histories = [[self.index[item] for item in one.history] for one in block]
            excluded = [[self.index[item] for item in one.excluded if item != one.target_id] for one in block]
            scores_B_N = np.asarray(self.score(histories, excluded))
            ranks = target_ranks(scores_B_N, [self.index.get(one.target_id, 0) for one in block], excluded)
            tops, scores = top_items(scores_B_N, how.top_k, excluded)
            seconds = (time.perf_counter() - began) / len(block)
            for one, rank, top, of_top in zip(block, ranks, tops, scores, strict=True):
                rank_or_0 = int(rank) if one.target_id else 0
                found.append(Found([ids[item] for item in top], of_top, rank_or_0, seconds))
        return found
