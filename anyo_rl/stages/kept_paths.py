"""Paths that are trained on: a teacher samples them, and those that lead to the target are kept.

    paths/            what was sampled, in shards; shared out over the processes
    hinted/           a second try, with the target as a hint, where nothing was kept
    kept.parquet      what is trained on
    kept.json         what was left out, for which reason

Each of these is there whole or not at all, and is not made again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from accelerate import PartialState

from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.schema import EXAMPLE_ID
from anyo_rl.evaluation.report.rounds import Chosen
from anyo_rl.evidence.fusion import Fusion
from anyo_rl.metrics.gains import ndcg
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.files import read_table, write_table, write_whole
from anyo_rl.run.folder import METRICS
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.shards import ShardedJob, read_paths
from anyo_rl.stages.fusion import with_headroom
from anyo_rl.stages.job import Job
from anyo_rl.stages.path_arguments import PathArguments
from anyo_rl.stages.sample import EngineChoice, JobEngine, check_engine, path_ranker, sample_in_shards
from anyo_rl.training.loop.flops import log_flops, token_flops
from anyo_rl.training.star import Beyond, diversity, keep_paths


@dataclass(frozen=True)
class KeptPaths:
    """Paths of training examples, sampled once and kept in a folder.

    Attributes:
        job: of the run.
        args: which paths.
        folder: where they are kept.
        policy: what the one who samples them is called.
        sampling: how.
        places: the row numbers of the examples.
        fusion: evidence that ranks are taken together with.
    """

    job: Job
    args: PathArguments
    folder: Path
    policy: str
    sampling: Sampling
    places: np.ndarray
    fusion: Fusion | None = None

    def kept(self, teacher: Path | str, *, may_be_empty: bool = False) -> pl.DataFrame:
        """The paths, which all processes sample, rank and choose together.

        Args:
            teacher: samples them.
            may_be_empty: whether there is something else to train on.

        Raises:
            ValueError: there is nothing to train on.
        """
        file, state = self.folder / "kept.parquet", PartialState()
        if self.args.engine != "hf":
            check_engine(teacher, self.job.teacher_args)
        if not file.exists():
            with whole_weights():
                paths, chosen = self._choose(teacher)
            if paths.is_empty() and not may_be_empty:
                raise UsageError(
                    f"{self.folder.name}: no path has a gain of {self.args.least_gain} or more: lower least_gain, "
                    f"raise n_samples, or start from a better teacher ({self.folder} has the paths)"
                )
            state.wait_for_everyone()
            if state.is_main_process:
                write_whole(self.folder / "kept.json", json.dumps(chosen.as_json(), indent=2))
                write_table(paths, file)
        state.wait_for_everyone()
        return read_table(file)

    def _choose(self, path: Path | str) -> tuple[pl.DataFrame, Chosen]:
        """Samples, and once more with a hint where nothing was good enough; what is kept, and the counts."""
        args = self.args
        keep = partial(
            keep_paths,
            least_gain=self._least_gain(),
            most_per_example=args.most_per_example,
            most_per_item=args.most_per_item,
            least_agreement=args.least_agreement,
            seed=self.sampling.seed,
        )
        with self.job.opened(path) as teacher:
            rows = self.job.rows("train", teacher).at(self.places)
            paths = self.sample("paths", path, teacher, rows, args.n_samples)
            found = keep(paths)
            chosen = Chosen(found.counts, diversity=diversity(paths))
            if not args.rationalise:
                return found.paths, chosen
            failed = rows.of(found.reached, wanted=False).hinted()
            hinted = keep(self.sample("hinted", path, teacher, failed, args.n_hinted), hinted=True)
        return pl.concat([found.paths, hinted.paths]), replace(chosen, hinted=hinted.counts)

    def _least_gain(self) -> float | Beyond:
        """What paths have to gain, also beyond the evidence where that is asked for."""
        args = self.args
        if self.fusion is None or args.min_beyond_evidence is None:
            return args.least_gain
        ids = self.job.task.examples[EXAMPLE_ID].gather(self.places).to_list()
        ranks_R = self.fusion.evidence.target_ranks(ids)
        if args.rank_cap:
            ranks_R = np.minimum(ranks_R, args.rank_cap + 1)
        gains = dict(zip(ids, ndcg(ranks_R).tolist(), strict=True))
        return Beyond(args.least_gain, args.min_beyond_evidence, gains)

    def sample(self, name: str, path: Path | str, teacher: Teacher, rows: Sequence[Row], n: int) -> pl.DataFrame:
        """A sampling job in shards, which all processes do together, each with the whole teacher.

        Args:
            name: of its folder.
            path: where the teacher lies.
            teacher: the same, opened.
            rows: of which examples.
            n: paths of each.
        """
        args, folder = self.args, self.folder / name
        sampling = replace(self.sampling, n=n)
        choice = EngineChoice(
            args.engine,
            dtype=self.job.model_args.dtype,
            gpu_memory_utilization=args.gpu_memory_utilization,
            cache_tokens=self.job.teacher_args.sampling_tokens,
        )
        sample_in_shards(
            rows,
            ShardedJob(folder, sampling, policy=self.policy, n_shards=args.n_shards, split="train"),
            JobEngine(choice, path, teacher.model, teacher.tokens, sampling),
            teacher.catalog,
            ranker=path_ranker(teacher.answers, teacher.model, args, self.fusion),
        )
        paths = read_paths(folder)
        n_read = n * sum(len(teacher.tokens.context_ids(row.sampled_prompt)) for row in rows)
        n_tokens = n_read + int(paths["token_ids"].list.len().sum())
        # A path is written, and read once more for its rank.
        flops = 2 * n_tokens * token_flops(teacher.model)
        log_flops(self.job.folder / METRICS, str(folder.relative_to(self.job.folder)), flops)
        return paths


def training_places(job: Job, args: PathArguments, seed: int, number: int, fusion: Fusion | None) -> np.ndarray:
    """The row numbers of a round's training examples, other ones for each where there is a limit.

    Args:
        job: of the run.
        args: the limit, and the headroom that examples need.
        seed: of the draw.
        number: of the round.
        fusion: has the evidence that headroom is of.
    """
    evidence = None if fusion is None else fusion.evidence
    train = with_headroom(job.task, job.task.places("train"), evidence, args.headroom)
    if args.max_examples is None or args.max_examples >= len(train):
        return train
    rng = np.random.default_rng([seed, number])
    return train[np.sort(rng.choice(len(train), args.max_examples, replace=False))]
