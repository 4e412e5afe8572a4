"""The fair comparison: a reasoning teacher beside `direct` trained to convergence, controls, an ensemble, and seeds.

A run folder holds, besides what every run folder holds:

    direct/           what was tried for `direct`, a run folder each, and `chosen.json`
    seed-S/           a run folder for each seed: its teachers, metrics.jsonl, answers, table and report
    evaluation.json   means over seeds with intervals over users, and evaluation.md

Every part is a stage of its folder, so that a killed comparison goes on where it was.
"""

import copy
import dataclasses
import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import yaml
from accelerate import PartialState
from trl import GRPOConfig, SFTConfig

from anyo_rl.data.sequences import held_out
from anyo_rl.evaluation.convergence import CONVERGED, Rule, Training, read_trainings, rival_flops
from anyo_rl.evaluation.evaluator import TOP_K, weights_of
from anyo_rl.evaluation.stages import (
    CONTROLS,
    DIRECT,
    DIRECT_ENSEMBLE,
    GRPO,
    ITEM_ONLY,
    POST_HOC,
    SFT,
    SFT_MORE,
    STAR,
)
from anyo_rl.evaluation.summarise import summarise_seeds
from anyo_rl.evaluation.summary import Summary, write_summary
from anyo_rl.evaluation.table import markdown_table
from anyo_rl.metrics.ranking import target_ranks, top_items
from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.run.files import read_json, readable, write_whole
from anyo_rl.run.folder import CONFIG, FINGERPRINT, METRICS
from anyo_rl.run.launch import go_on_alone, whole_weights
from anyo_rl.run.settings import Bounds, UsageError
from anyo_rl.search.answers import Answers
from anyo_rl.stages.arguments import GrpoArguments
from anyo_rl.stages.candidates import items_only
from anyo_rl.stages.evaluate import ask_teachers, conclude, evaluation_of
from anyo_rl.stages.job import Job
from anyo_rl.stages.path_arguments import StarArguments
from anyo_rl.stages.reinforce import Reward, train_reasoning
from anyo_rl.stages.sft import DIRECTLY, Lesson, train_sft
from anyo_rl.stages.star import Star
from anyo_rl.stages.warm_start import WarmStart, open_ended, train_until
from anyo_rl.training.advantages.credit import Credit
from anyo_rl.training.loop.until import Until

logger = logging.getLogger(__name__)

# A control has the FLOPs of what it stands beside, and goes on while that still pays.
CONTROL = Rule(least_wait=0, least_share=0.5, least_flops=1.0)
# What `direct` is trained with is chosen before any rival is trained, and so without a rival's FLOPs; what is chosen
# is then trained by the whole rule.
CANDIDATE = Rule(least_wait=1000, least_share=0.5, least_flops=0.0)
FILLER_WORD = "."
Settings = TypeVar("Settings", SFTConfig, GRPOConfig)


@dataclass
class CompareArguments:
    """How far a comparison goes."""

    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of everything that is drawn.", "free": True}
    )
    star_config: str | None = field(
        default=None,
        metadata={"help": "STaR recipe config, beside this config or from here: rounds between SFT and GRPO."},
    )
    controls: list[str] = field(
        default_factory=lambda: [stage.name for stage in CONTROLS],
        metadata={"help": f"Which: {', '.join(stage.name for stage in CONTROLS)}.", "free": True},
    )
    direct_learning_rates: list[float] | None = field(
        default=None,
        metadata={
            "bounds": Bounds(above=0),
            "help": "Tried for direct, on validation; the warm start's own, a third and three times it if unset.",
        },
    )
    direct_dropouts: list[float] = field(
        default_factory=lambda: [0.1],
        metadata={"bounds": Bounds(0, 1), "help": "Tried for direct besides none, after the learning rate."},
    )
    direct_weight_decays: list[float] = field(
        default_factory=lambda: [0.1],
        metadata={"bounds": Bounds(0), "help": "Tried for direct besides the warm start's, at last."},
    )
    most_updates: int = field(
        default=30_000,
        metadata={
            "bounds": Bounds(1),
            "help": "Most updates of direct and of controls; direct says in its row where that cut it short.",
        },
    )
    eval_every: int = field(
        default=250, metadata={"bounds": Bounds(1), "help": "Updates between two validations of direct and controls."}
    )

    def __post_init__(self) -> None:
        known = {stage.name for stage in CONTROLS}
        if unknown := sorted(set(self.controls) - known):
            raise UsageError(f"controls has {', '.join(unknown)}; expected some of {', '.join(sorted(known))}")
        if not self.seeds:
            raise UsageError("seeds is empty; expected one seed or more")


@dataclass(frozen=True)
class DirectSettings:
    """What is chosen for `direct`."""

    learning_rate: float
    weight_decay: float
    dropout: float = 0.0

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"lr-{self.learning_rate:g}-decay-{self.weight_decay:g}-dropout-{self.dropout:g}"


@dataclass(frozen=True)
class Comparison:
    """A comparison as it was asked for.

    Attributes:
        job: of the whole; seeds are jobs in folders of their own.
        args: how far it goes.
        warm_start: SFT's settings.
        grpo_args: what is rewarded, and what trains the answer.
        training_args: GRPO's settings.
        rewards: makes the rewards, anew for each seed.
        rounds: settings of STaR between SFT and GRPO; `None` where there is none.
    """

    job: Job
    args: CompareArguments
    warm_start: WarmStart
    grpo_args: GrpoArguments
    training_args: GRPOConfig
    rewards: Callable[[], list[Reward]]
    rounds: tuple[StarArguments, SFTConfig] | None = None

    def of_seed(self, seed: int) -> Job:
        """The job of a seed."""
        return dataclasses.replace(self.job, folder=self.job.folder / f"seed-{seed}", seed=seed)

    def open_ended(self, seed: int, settings: DirectSettings | None = None) -> SFTConfig:
        """The same at a constant rate, to be ended by a rule."""
        args = open_ended(seeded(self.warm_start.training_args, seed), self.args.most_updates)
        args.eval_steps = args.save_steps = self.args.eval_every
        if settings is not None:
            args.learning_rate, args.weight_decay = settings.learning_rate, settings.weight_decay
        return args

    def train(self, seed: int) -> dict[str, Path | str]:
        """Trains all teachers of a seed; what is finished is not done again.

        Returns:
            Stage name to teacher.
        """
        items_only(self.of_seed(seed).asking.kind, "compare")
        settings = self.direct_settings()
        job = self.of_seed(seed)
        self._claim(job)
        patient = dataclasses.replace(job, teacher_args=self.warm_start.teacher_args)
        sft = train_sft(patient, SFT.name, seeded(self.warm_start.training_args, seed))
        teachers: dict[str, Path | str] = {SFT.name: sft}
        start: Path | str = sft
        if self.rounds is not None:
            star_args, sft_args = self.rounds
            start = teachers[STAR.name] = Star(patient, star_args, seeded(sft_args, seed)).train(sft)
        teachers[GRPO.name] = self._reinforce(job, start, self.grpo_args.method())
        spent = read_trainings(job.folder / METRICS)
        for name in self.args.controls:
            if name != ITEM_ONLY.name:
                teachers[name] = self._control(job, name, sft, spent)
            elif self.grpo_args.item_loss != "none":  # else it would train nothing
                teachers[name] = self._reinforce(job, sft, Credit("none"))
        teachers[DIRECT.name] = self._train_direct(job, settings, Until(CONVERGED, rival_flops(spent)))
        return teachers

    def _claim(self, job: Job) -> None:
        """A seed's folder says what it was made with, as run folders do."""
        if PartialState().is_main_process and not (job.folder / CONFIG).exists():
            job.folder.mkdir(parents=True, exist_ok=True)
            for name in ("versions.json", "data.json", FINGERPRINT):
                shutil.copy(self.job.folder / name, job.folder / name)
            arguments = yaml.safe_load((self.job.folder / CONFIG).read_text())
            arguments[type(self.training_args).__name__]["seed"] = job.seed
            write_whole(job.folder / CONFIG, yaml.safe_dump(arguments, sort_keys=False))
        PartialState().wait_for_everyone()

    def _reinforce(self, job: Job, start: Path | str, method: Credit) -> Path:
        """GRPO, or with no advantages its control."""
        stage = ITEM_ONLY if method.advantages == "none" else GRPO
        args = seeded(self.training_args, job.seed)
        return train_reasoning(job, stage.name, start, self.grpo_args, args, self.rewards(), method)

    def _control(self, job: Job, name: str, sft: Path | str, spent: Mapping[str, Training]) -> Path:
        """One of `CONTROLS` that SFT trains."""
        flops, lesson = rival_flops(spent), Lesson()
        if name == SFT_MORE.name:
            job = dataclasses.replace(job, model_args=dataclasses.replace(job.model_args, model_name_or_path=str(sft)))
            flops -= spent[SFT.name].flops or 0.0
        else:
            lesson = Lesson("after") if name == POST_HOC.name else Lesson(rationales=fillers(job))
        return train_until(job, name, self.open_ended(job.seed), lesson, Until(CONTROL, flops))

    def _train_direct(self, job: Job, settings: DirectSettings, until: Until) -> Path:
        lesson = dataclasses.replace(DIRECTLY, dropout=settings.dropout)
        return train_until(job, DIRECT.name, self.open_ended(job.seed, settings), lesson, until)

    def direct_settings(self) -> DirectSettings:
        """What `direct` is trained with, chosen once with the first seed and kept in `direct/chosen.json`."""
        file = self.job.folder / DIRECT.name / "chosen.json"
        if not file.exists():
            settings = self._choose_direct()
            if PartialState().is_main_process:
                write_whole(file, json.dumps(asdict(settings), indent=2))
            PartialState().wait_for_everyone()
        with readable(file):
            return DirectSettings(**read_json(file))

    def _choose_direct(self) -> DirectSettings:
        """Learning rate, then dropout, then weight decay, each as long as `CANDIDATE` says, the best on validation."""
        own = self.warm_start.training_args
        rates = self.args.direct_learning_rates or [own.learning_rate / 3, own.learning_rate, own.learning_rate * 3]
        best, best_value = DirectSettings(rates[0], own.weight_decay), -np.inf
        turns: Sequence[tuple[str, Sequence[float]]] = (
            ("learning_rate", rates),
            ("dropout", self.args.direct_dropouts),
            ("weight_decay", self.args.direct_weight_decays),
        )
        for name, values in turns:
            start = best
            for value in values:
                settings = dataclasses.replace(start, **{name: value})
                folder = self.job.folder / DIRECT.name / settings.name
                job = dataclasses.replace(self.of_seed(self.args.seeds[0]), folder=folder)
                self._train_direct(job, settings, Until(CANDIDATE, 0.0))
                found = read_trainings(folder / METRICS)[DIRECT.name].value or 0.0
                logger.info("direct with %s: validation NDCG@10 %.4f", settings.name, found)
                if found > best_value:
                    best, best_value = settings, found
        return best

    def evaluate(self, teachers: Mapping[int, Mapping[str, Path | str]], *, baselines: bool) -> Summary | None:
        """Evaluates all seeds, an ensemble of their `direct` teachers, and what they are on average.

        Args:
            teachers: of each seed, by stage.
            baselines: whether tables have baselines too.

        Returns:
            The means; `None` in processes but the main one.
        """
        for seed, of_seed in teachers.items():
            ask_teachers(self.of_seed(seed), of_seed)
        if not go_on_alone():
            return None
        if len(teachers) > 1:
            jobs = [self.of_seed(seed) for seed in teachers]
            evaluate_ensemble(jobs, [of_seed[DIRECT.name] for of_seed in teachers.values()])
        for seed, of_seed in teachers.items():
            conclude(self.of_seed(seed), of_seed, baselines=baselines)
        summary = summarise_seeds({seed: self.of_seed(seed).folder for seed in teachers})
        write_summary(self.job.folder, summary)
        write_whole(self.job.folder / "evaluation.md", markdown_table(summary))
        return summary


def evaluate_ensemble(jobs: Sequence[Job], teachers: Sequence[Path | str]) -> None:
    """Keeps, for each seed, the answers of the mean over all seeds of the distributions of their `direct` teachers.

    It stands beside a mixture of paths, which also averages what several forwards say.

    Args:
        jobs: of the seeds.
        teachers: `direct` of each seed.
    """
    made_with = {"weights": [weights_of(teacher) for teacher in teachers]}
    answered = cache(lambda: ensemble_answers(jobs, teachers))  # once for all seeds, and only where one lacks it
    for job in jobs:
        _, catalog = job.opening.catalog(teachers[0])
        evaluation_of(job, catalog.item_ids).keep(DIRECT_ENSEMBLE.name, "plain", answered, made_with)


def ensemble_answers(jobs: Sequence[Job], teachers: Sequence[Path | str]) -> Answers:
    """What teachers answer together: items by the mean of their probabilities."""
    total_U_N: torch.Tensor | None = None
    for job, path in zip(jobs, teachers, strict=True):
        with job.opened(path) as teacher, whole_weights():
            evaluation = evaluation_of(job, teacher.catalog.item_ids)
            rows = job.rows_of(evaluation.test, teacher)
            tokens = teacher.tokens
            contexts = [tokens.marked_context(tokens.context_ids(row.prompt), []) for row in rows]
            probs_U_N = DistributionRanker(teacher.catalog, teacher.model).log_probs(contexts).exp()
            total_U_N = probs_U_N if total_U_N is None else total_U_N + probs_U_N
    assert total_U_N is not None, "there is one teacher or more"
    asked = held_out(jobs[0].task, evaluation.test, evaluation.index)
    scores = total_U_N.numpy()
    top = top_items(scores, TOP_K, asked.excluded)[0]
    ranks_U = target_ranks(scores, asked.targets, asked.excluded)
    return Answers(ranks_U, [[evaluation.item_ids[item] for item in row] for row in top], [])


def seeded(args: Settings, seed: int) -> Settings:
    """A copy of trainer settings with another seed."""
    args = copy.copy(args)
    args.seed = seed
    return args


def fillers(job: Job) -> dict[str, list[tuple[str, ...]]]:
    """For every training example a reasoning of nothing but fillers, as long as the rationale there is.

    Examples without a rationale are given the lengths of others, in turn.
    """
    of_length = {
        example: [tuple(" ".join([FILLER_WORD] * len(step.split())) for step in steps) for steps in reasonings]
        for example, reasonings in job.task.rationales.items()
    }
    others = [of_length[example] for example in sorted(of_length)]
    ids = job.task.split("train")["example_id"].to_list()
    return {example: of_length.get(example) or others[place % len(others)] for place, example in enumerate(ids)}
