"""STaR as a stage of a run: rounds of sample, rank, keep, train and measure, until validation gains no more.

    star/round-1/paths/      what was sampled, in shards; shared out over the processes
    star/round-1/hinted/     a second try, with the target as a hint, where nothing was kept
    star/round-1/kept.parquet, kept.json      what the round trains on, and what was left out for which reason
    star/round-1/teacher/    the round's teacher
    star/rounds.json         a row for each round, the start being round 0
    star/teacher/            the best of them on validation

Each of these is there whole or not at all, and is not made again.
"""

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from accelerate import PartialState
from trl import SFTConfig

from anyo_rl.catalog.item_tokens import teacher_files
from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.schema import EXAMPLE_ID
from anyo_rl.evaluation import stages
from anyo_rl.evaluation.report.rounds import Chosen, Round, read_rounds, rounds_file
from anyo_rl.evidence.fusion import Fusion
from anyo_rl.metrics.gains import ndcg
from anyo_rl.metrics.intervals import bootstrap_interval
from anyo_rl.metrics.ranking import per_user_metrics
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.files import read_json, read_table, write_table, write_whole
from anyo_rl.run.folder import METRICS
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.shards import ShardedJob, read_paths
from anyo_rl.stages.arguments import StarArguments
from anyo_rl.stages.fusion import training_fusion, with_headroom
from anyo_rl.stages.job import Job
from anyo_rl.stages.sample import EngineChoice, JobEngine, check_engine, path_ranker, sample_in_shards
from anyo_rl.stages.sft import Lesson, train_sft
from anyo_rl.teacher.save import save_teacher
from anyo_rl.training.loop.flops import log_flops, token_flops
from anyo_rl.training.loop.validation import METRIC
from anyo_rl.training.star import Beyond, diversity, keep_paths, reasonings

logger = logging.getLogger(__name__)

STAR = stages.STAR.name


@dataclass(frozen=True)
class Star:
    """What all rounds of a run share.

    Attributes:
        job: of the run.
        star_args: the rounds.
        training_args: TRL's settings for the SFT of one round.
        fusion: evidence that ranks are taken together with, as `train` chose its weight.
    """

    job: Job
    star_args: StarArguments
    training_args: SFTConfig
    fusion: Fusion | None = None

    def train(self, start: Path | str) -> Path:
        """Trains rounds from a teacher, and keeps the best on validation, which may be the start itself.

        Returns:
            The folder of the finished teacher; if it is there already nothing is done.
        """
        folder = self.job.teacher_folder(STAR)
        if folder.exists():
            return folder
        fusion = training_fusion(self.job, STAR, start, self.star_args)
        return replace(self, fusion=fusion)._train(start, folder)

    def _train(self, start: Path | str, folder: Path) -> Path:
        teachers: list[Path | str] = [start]
        rounds = [self.measured(0, start)]
        while len(rounds) <= self.star_args.rounds and self._goes_on(rounds):
            number = len(rounds)
            teachers.append(self.round(number, teachers))
            rounds.append(self.measured(number, teachers[-1]))
            logger.info("STaR round %d: %s", number, json.dumps(rounds[-1].as_json()))
        best = max(range(len(rounds)), key=lambda number: rounds[number].ndcg)  # the first of equals
        if best == 0:
            logger.warning("no round was better on validation than the start, whose teacher is kept")
        self._finish(teachers[best], folder)
        return folder

    def _goes_on(self, rounds: Sequence[Round]) -> bool:
        """Whether one of the last `patience` rounds was the best so far."""
        values = [each.ndcg for each in rounds]
        return len(values) - 1 - int(np.argmax(values)) < self.star_args.patience

    def round(self, number: int, teachers: Sequence[Path | str]) -> Path:
        """One round: samples with the last teacher, keeps, trains.

        Raises:
            ValueError: no path was good enough to train on.
        """
        stage = f"{STAR}/round-{number}"
        if not self.job.teacher_folder(stage).exists():
            kept = self.kept(number, teachers[-1])
            rationales = reasonings(kept)
            if self.star_args.mix_rationales:
                for example_id, of_example in self.job.task.rationales.items():
                    known = rationales.setdefault(example_id, [])
                    known += [steps for steps in of_example if steps not in known]
            base = teachers[0] if self.star_args.start_from == "base" else teachers[-1]
            from_base = dataclasses.replace(self.job.model_args, model_name_or_path=str(base))
            train_sft(
                dataclasses.replace(self.job, model_args=from_base),
                stage,
                self.training_args,
                Lesson(
                    rationales=rationales,
                    hint_share=self.star_args.hint_share if self.star_args.mix_rationales else 0.0,
                ),
            )
        return self.job.teacher_folder(stage)

    def kept(self, number: int, teacher: Path | str) -> pl.DataFrame:
        """The paths that a round trains on: sampled, ranked and chosen, by all processes together.

        Raises:
            ValueError: there is nothing to train on.
        """
        folder = self.job.folder / STAR / f"round-{number}"
        file = folder / "kept.parquet"
        state = PartialState()
        if self.star_args.engine != "hf":
            check_engine(teacher, self.job.teacher_args)
        if not file.exists():
            with whole_weights():
                paths, chosen = self._choose(number, folder, teacher)
            if paths.is_empty() and not (self.star_args.mix_rationales and self.job.task.rationales):
                raise UsageError(
                    f"round {number}: no path has a gain of {self.star_args.least_gain} or more: lower least_gain, "
                    f"raise n_samples, or start from a better teacher ({folder} has the paths)"
                )
            state.wait_for_everyone()
            if state.is_main_process:
                write_whole(folder / "kept.json", json.dumps(chosen.as_json(), indent=2))
                write_table(paths, file)
        state.wait_for_everyone()
        return read_table(file)

    def _choose(self, number: int, folder: Path, path: Path | str) -> tuple[pl.DataFrame, Chosen]:
        """Samples, and once more with a hint where nothing was good enough; what is kept, and the counts."""
        args = self.star_args
        places = self.places(number)
        keep = partial(
            keep_paths,
            least_gain=self._least_gain(places),
            most_per_example=args.most_per_example,
            most_per_item=args.most_per_item,
            least_agreement=args.least_agreement,
            seed=self.training_args.seed,
        )
        with self.job.opened(path) as teacher:
            rows = self.job.rows("train", teacher).at(places)
            paths = self.sample(folder / "paths", number, path, teacher, rows, args.n_samples)
            found = keep(paths)
            chosen = Chosen(found.counts, diversity=diversity(paths))
            if not args.rationalise:
                return found.paths, chosen
            failed = rows.of(found.reached, wanted=False).hinted()
            hinted = keep(self.sample(folder / "hinted", number, path, teacher, failed, args.n_hinted), hinted=True)
        return pl.concat([found.paths, hinted.paths]), replace(chosen, hinted=hinted.counts)

    def places(self, number: int) -> np.ndarray:
        """The row numbers of a round's training examples, other ones for each where there is a limit."""
        evidence = None if self.fusion is None else self.fusion.evidence
        train = with_headroom(self.job.task, self.job.task.places("train"), evidence, self.star_args.headroom)
        most = self.star_args.max_examples
        if most is None or most >= len(train):
            return train
        rng = np.random.default_rng([self.training_args.seed, number])
        return train[np.sort(rng.choice(len(train), most, replace=False))]

    def _least_gain(self, places: np.ndarray) -> float | Beyond:
        """What paths of these examples have to gain, also beyond the evidence where that is asked for."""
        args = self.star_args
        if self.fusion is None or args.min_beyond_evidence is None:
            return args.least_gain
        ids = self.job.task.examples[EXAMPLE_ID].gather(places).to_list()
        ranks_R = self.fusion.evidence.target_ranks(ids)
        if args.rank_cap:
            ranks_R = np.minimum(ranks_R, args.rank_cap + 1)
        gains = dict(zip(ids, ndcg(ranks_R).tolist(), strict=True))
        return Beyond(args.least_gain, args.min_beyond_evidence, gains)

    def sample(
        self, folder: Path, number: int, path: Path | str, teacher: Teacher, rows: Sequence[Row], n: int
    ) -> pl.DataFrame:
        """A sampling job in shards, which all processes do together, each with the whole teacher."""
        args, dtype = self.star_args, self.job.model_args.dtype
        sampling = Sampling(
            n,
            args.temperature,
            args.top_p,
            self.job.max_reasoning_tokens,
            self.training_args.seed + number,
        )
        choice = EngineChoice(
            args.engine,
            dtype=dtype,
            gpu_memory_utilization=args.gpu_memory_utilization,
            cache_tokens=self.job.teacher_args.sampling_tokens,
        )
        sample_in_shards(
            rows,
            ShardedJob(folder, sampling, policy=f"{STAR}-{number - 1}", n_shards=args.n_shards, split="train"),
            JobEngine(choice, path, teacher.model, teacher.tokens, sampling),
            teacher.catalog,
            ranker=path_ranker(teacher.catalog, teacher.model, args, self.fusion),
        )
        paths = read_paths(folder)
        n_read = n * sum(len(teacher.tokens.context_ids(row.sampled_prompt)) for row in rows)
        n_tokens = n_read + int(paths["token_ids"].list.len().sum())
        # A path is written, and read once more for its rank.
        flops = 2 * n_tokens * token_flops(teacher.model)
        log_flops(self.job.folder / METRICS, f"{STAR}/round-{number}/{folder.name}", flops)
        return paths

    def measured(self, number: int, teacher: Path | str) -> Round:
        """Validation of a round's teacher, and what the round was made of: its row of `rounds.json`."""
        rounds = read_rounds(self.job.folder)
        if number < len(rounds):
            return rounds[number]
        state = PartialState()
        with whole_weights(), self.job.opened(teacher) as opened:
            ranks_U = self.job.validation(opened, fusion=self.fusion).answers(opened.model).ranks_U
        values = per_user_metrics(ranks_U, cutoffs=(10,))
        interval = bootstrap_interval(values[METRIC], seed=self.training_args.seed)
        kept = self.job.folder / STAR / f"round-{number}" / "kept.json"
        measured = Round(number, interval, Chosen.from_json(read_json(kept)) if number else Chosen())
        if state.is_main_process:
            file = rounds_file(self.job.folder)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps([each.as_json() for each in (*rounds, measured)], indent=2))
        state.wait_for_everyone()
        return measured

    def _finish(self, path: Path | str, folder: Path) -> None:
        """Saves the best teacher where stages leave theirs."""
        if PartialState().is_main_process:
            with whole_weights(), self.job.opened(path) as teacher:
                save_teacher(teacher.model, teacher.tokens.tokenizer, folder, teacher_files(teacher.ids))
        PartialState().wait_for_everyone()
