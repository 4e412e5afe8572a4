"""STaR as a stage of a run: rounds of sample, rank, keep, train and measure, until validation gains no more.

    star/round-1/            its paths, as `anyo_rl.stages.kept_paths` keeps them
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
from pathlib import Path

import numpy as np
import polars as pl
from accelerate import PartialState
from trl import SFTConfig

from anyo_rl.catalog.item_tokens import teacher_files
from anyo_rl.evaluation import stages
from anyo_rl.evaluation.report.rounds import Chosen, Round, read_rounds, rounds_file
from anyo_rl.evidence.fusion import Fusion
from anyo_rl.metrics.intervals import bootstrap_interval
from anyo_rl.metrics.ranking import per_user_metrics
from anyo_rl.run.files import read_json, write_whole
from anyo_rl.run.launch import whole_weights
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.stages.fusion import training_fusion
from anyo_rl.stages.job import Job
from anyo_rl.stages.kept_paths import KeptPaths, training_places
from anyo_rl.stages.path_arguments import StarArguments
from anyo_rl.stages.sft import Lesson, train_sft
from anyo_rl.teacher.save import save_teacher
from anyo_rl.training.loop.validation import METRIC
from anyo_rl.training.star import reasonings

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

    def paths(self, number: int) -> KeptPaths:
        """The paths of a round."""
        args, seed = self.star_args, self.training_args.seed
        sampling = Sampling(args.n_samples, args.temperature, args.top_p, self.job.max_reasoning_tokens, seed + number)
        places = training_places(self.job, args, seed, number, self.fusion)
        folder, policy = self.job.folder / STAR / f"round-{number}", f"{STAR}-{number - 1}"
        return KeptPaths(self.job, args, folder, policy, sampling, places, self.fusion)

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
        """The paths that a round trains on, by all processes together.

        Raises:
            ValueError: there is nothing to train on.
        """
        instead = self.star_args.mix_rationales and bool(self.job.task.rationales)
        return self.paths(number).kept(teacher, may_be_empty=instead)

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
        chosen = Chosen.from_json(read_json(kept)) if number else Chosen()
        measured = Round(number, interval, chosen, fused=self.fusion is not None)
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
