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
import gc
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from accelerate import PartialState
from accelerate.utils import gather_object
from trl import ModelConfig, SFTConfig

from anyo_rl.catalog.item_tokens import teacher_files
from anyo_rl.data.task import Task
from anyo_rl.metrics.intervals import bootstrap_interval
from anyo_rl.metrics.ranking import per_user_metrics
from anyo_rl.reasoning.rows import Row, hinted_prompt, make_rows
from anyo_rl.run.files import write_table, write_whole
from anyo_rl.run.launch import whole_weights
from anyo_rl.sampling.shards import read_paths
from anyo_rl.stages.arguments import StarArguments, TeacherArguments
from anyo_rl.stages.finish import teacher_folder, validation
from anyo_rl.stages.opening import OpenTeacher, open_teacher
from anyo_rl.stages.sample import JobEngine, check_engine, path_ranker, sample_in_shards
from anyo_rl.stages.sft import train_sft
from anyo_rl.teacher.save import save_teacher
from anyo_rl.training.loop.validation import METRIC
from anyo_rl.training.star import diversity, keep_paths, reasonings

logger = logging.getLogger(__name__)

STAR = "star"
ROUNDS = "rounds.json"


@dataclass(frozen=True)
class Star:
    """What all rounds of a run share.

    Attributes:
        run_dir: the run folder.
        task: the data.
        model_args: how teachers are loaded, and their adapters.
        teacher_args: the marker, the length of a reasoning, how validation users are answered.
        star_args: the rounds.
        training_args: TRL's settings for the SFT of one round.
    """

    run_dir: Path
    task: Task
    model_args: ModelConfig
    teacher_args: TeacherArguments
    star_args: StarArguments
    training_args: SFTConfig

    def train(self, start: Path | str) -> Path:
        """Trains rounds from a teacher, and keeps the best on validation, which may be the start itself.

        Returns:
            The folder of the finished teacher; if it is there already nothing is done.
        """
        folder = teacher_folder(self.run_dir / STAR)
        if folder.exists():
            return folder
        teachers: list[Path | str] = [start]
        rows = [self.measured(0, start)]
        while len(rows) <= self.star_args.rounds and self._goes_on(rows):
            number = len(rows)
            teachers.append(self.round(number, teachers))
            rows.append(self.measured(number, teachers[-1]))
            logger.info("STaR round %d: %s", number, json.dumps(rows[-1]))
        best = max(range(len(rows)), key=lambda number: rows[number][METRIC])  # the first of equals
        if best == 0:
            logger.warning("no round was better on validation than the start, whose teacher is kept")
        self._finish(teachers[best], folder)
        return folder

    def _goes_on(self, rows: Sequence[dict[str, Any]]) -> bool:
        """Whether one of the last `patience` rounds was the best so far."""
        values = [row[METRIC] for row in rows]
        return len(values) - 1 - int(np.argmax(values)) < self.star_args.patience

    def round(self, number: int, teachers: Sequence[Path | str]) -> Path:
        """One round: samples with the last teacher, keeps, trains.

        Raises:
            ValueError: no path was good enough to train on.
        """
        stage = f"{STAR}/round-{number}"
        folder = self.run_dir / stage
        if not teacher_folder(folder).exists():
            kept = self.kept(number, teachers[-1])
            rationales = reasonings(kept)
            if self.star_args.mix_rationales:
                for example_id, of_example in self.task.rationales.items():
                    known = rationales.setdefault(example_id, [])
                    known += [steps for steps in of_example if steps not in known]
            base = teachers[0] if self.star_args.start_from == "base" else teachers[-1]
            train_sft(
                self.run_dir,
                self.task,
                dataclasses.replace(self.model_args, model_name_or_path=str(base)),
                self.teacher_args,
                self.training_args,
                stage,
                reasoning=True,
                rationales=rationales,
                hint_share=self.star_args.hint_share if self.star_args.mix_rationales else 0.0,
            )
        return teacher_folder(folder)

    def kept(self, number: int, teacher: Path | str) -> pl.DataFrame:
        """The paths that a round trains on: sampled, ranked and chosen, by all processes together.

        Raises:
            ValueError: there is nothing to train on.
        """
        folder = self.run_dir / STAR / f"round-{number}"
        file = folder / "kept.parquet"
        state = PartialState()
        if self.star_args.engine != "hf":
            check_engine(teacher, self.teacher_args)
        if not file.exists():
            with whole_weights():
                chosen, counts = self._choose(number, folder, teacher)
            gc.collect()
            if chosen.is_empty() and not (self.star_args.mix_rationales and self.task.rationales):
                raise ValueError(
                    f"round {number}: no path has a gain of {self.star_args.least_gain} or more: lower least_gain, "
                    f"raise n_samples, or start from a better teacher ({folder} has the paths)"
                )
            state.wait_for_everyone()
            if state.is_main_process:
                write_whole(folder / "kept.json", json.dumps(counts, indent=2))
                write_table(chosen, file)
        state.wait_for_everyone()
        return pl.read_parquet(file)

    def _choose(self, number: int, folder: Path, teacher: Path | str) -> tuple[pl.DataFrame, dict[str, Any]]:
        """Samples, and once more with a hint where nothing was good enough; what is kept, and the counts."""
        args, opened = self.star_args, self.open(teacher)
        keep = partial(
            keep_paths,
            least_gain=args.least_gain,
            most_per_example=args.most_per_example,
            most_per_item=args.most_per_item,
            seed=self.training_args.seed,
        )
        rows = make_rows(self.task, self.examples(number), opened.catalog, opened.tokens)
        paths = self.sample(folder / "paths", number, teacher, opened, rows, args.n_samples)
        found = keep(paths)
        counts: dict[str, Any] = {"sampled": found.counts, "diversity": diversity(paths)}
        if not args.rationalise:
            return found.paths, counts
        reached = set(found.reached)
        failed = [
            {**row, "hinted_prompt": hinted_prompt(self.task, row, opened.catalog, opened.tokens)}
            for row in rows
            if row["example_id"] not in reached
        ]
        hinted = keep(self.sample(folder / "hinted", number, teacher, opened, failed, args.n_hinted), hinted=True)
        return pl.concat([found.paths, hinted.paths]), counts | {"hinted": hinted.counts}

    def examples(self, number: int) -> pl.DataFrame:
        """The training examples of a round, other ones for each where there is a limit."""
        train = self.task.split("train")
        most = self.star_args.max_examples
        if most is None or most >= len(train):
            return train
        rng = np.random.default_rng([self.training_args.seed, number])
        return train[np.sort(rng.choice(len(train), most, replace=False))]

    def sample(
        self, folder: Path, number: int, teacher: Path | str, opened: OpenTeacher, rows: list[Row], n: int
    ) -> pl.DataFrame:
        """A sampling job in shards, which all processes do together, each with the whole teacher."""
        args, teacher_args = self.star_args, self.teacher_args
        asked: dict[str, Any] = {
            "n": n,
            "temperature": args.temperature,
            "top_p": args.top_p,
            "max_new_tokens": teacher_args.max_reasoning_tokens,
            "seed": self.training_args.seed + number,
        }
        engine = JobEngine(
            args.engine,
            teacher,
            opened.model,
            opened.tokens,
            asked,
            dtype=self.model_args.dtype,
            gpu_memory_utilization=args.gpu_memory_utilization,
        )
        sample_in_shards(
            rows,
            folder,
            engine,
            path_ranker(opened.catalog, opened.model, args),
            opened.tokens,
            asked,
            mask_history=self.task.args.mask_history,
            n_shards=args.n_shards,
            split="train",
            policy=f"{STAR}-{number - 1}",
        )
        return read_paths(folder)

    def measured(self, number: int, teacher: Path | str) -> dict[str, Any]:
        """Validation of a round's teacher, and what the round was made of: its row of `rounds.json`."""
        file = self.run_dir / STAR / ROUNDS
        rows = json.loads(file.read_text()) if file.exists() else []
        if number < len(rows):
            return rows[number]
        state = PartialState()
        with whole_weights():
            opened = self.open(teacher)
            mode = self.teacher_args.eval_mode
            asked = validation(self.task, opened.catalog, opened.tokens, self.teacher_args, mode)
            ranks = asked.metrics(opened.model, slice(state.process_index, None, state.num_processes))
        ranks = gather_object(ranks) if state.num_processes > 1 else ranks
        values = per_user_metrics(np.array(ranks), cutoffs=(10,))
        interval = bootstrap_interval(values[METRIC], seed=self.training_args.seed).as_dict()
        row = {"round": number, METRIC: interval["mean"], "low": interval["low"], "high": interval["high"]}
        kept = self.run_dir / STAR / f"round-{number}" / "kept.json"
        row |= json.loads(kept.read_text()) if number else {}
        if state.is_main_process:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps([*rows, row], indent=2))
        state.wait_for_everyone()
        return row

    def open(self, teacher: Path | str) -> OpenTeacher:
        """A teacher for sampling, whole in each process."""
        return open_teacher(
            self.run_dir, self.task, teacher, self.model_args, self.teacher_args, self.training_args.seed
        )

    def _finish(self, teacher: Path | str, folder: Path) -> None:
        """Saves the best teacher where stages leave theirs."""
        if PartialState().is_main_process:
            with whole_weights():
                opened = self.open(teacher)
            save_teacher(opened.model, opened.tokens.tokenizer, folder, teacher_files(opened.ids))
        PartialState().wait_for_everyone()
