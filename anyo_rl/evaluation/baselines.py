"""Baselines and oracles of an evaluation, fitted on training events and chosen on validation."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch

from anyo_rl.data.sequences import HeldOut, training_sequences
from anyo_rl.evaluation.evaluator import Evaluation
from anyo_rl.evaluation.stages import INTENT_ORACLE, ORACLE
from anyo_rl.search.answers import Answers
from anyo_rl.students.choice import Choice, choose_in_turn
from anyo_rl.students.ease import EASE_GRID, EaseGram, EaseSettings, choose_ease
from anyo_rl.students.fit import Help, fit_student
from anyo_rl.students.gru4rec import GRU4Rec
from anyo_rl.students.item_knn import KnnSettings, choose_item_knn, fit_item_knn
from anyo_rl.students.popularity import fit_popularity
from anyo_rl.students.protocol import Scorer
from anyo_rl.students.sasrec import SASRec
from anyo_rl.students.settings import FitSettings
from anyo_rl.students.thoughts import ThinkingSASRec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StudentSettings:
    """What is chosen of a neural baseline.

    Attributes:
        learning_rate: of its training.
        dropout: see its class.
        dim: width of its item vectors.
        batch_size: sequences in one step.
    """

    learning_rate: float = 1e-3
    dropout: float = 0.3
    dim: int = 64
    batch_size: int = 32


# What is tried besides the settings to begin with, one after the other: seven fits.
ALTERNATIVES: dict[str, tuple[float, ...]] = {
    "dropout": (0.1, 0.5),
    "batch_size": (128,),
    "learning_rate": (3e-4, 3e-3),
    "dim": (128,),
}
NEURAL: dict[str, type[SASRec] | type[GRU4Rec]] = {"sasrec": SASRec, "gru4rec": GRU4Rec}
NAMES = ("popularity", "item_knn", "ease", *NEURAL)


@dataclass(frozen=True)
class Fitting:
    """What baselines are fitted on, and how.

    Attributes:
        sequences: training sequences by item index.
        validation: the examples that settings are chosen by.
        n_items: size of the catalog.
        device: where neural ones are trained.
        tuned: whether neural ones are chosen among several settings, or taken as they come.
        start: what the choice of a neural one begins with, by its name, where that is not `StudentSettings()`.
        training: what all neural ones have in common.
        given: what they are given besides the sequences.
        n_thoughts: how often SASRec's state is fed back before it answers.
    """

    sequences: Sequence[Sequence[int]]
    validation: HeldOut
    n_items: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tuned: bool = False
    start: Mapping[str, StudentSettings] = field(default_factory=dict)
    training: FitSettings = field(default_factory=FitSettings)
    given: Help = field(default_factory=Help)
    n_thoughts: int = 0

    @classmethod
    def of(
        cls, evaluation: Evaluation, *, tuned: bool = False, start: Mapping[str, StudentSettings] | None = None
    ) -> "Fitting":
        """On the training events of an evaluation's task, on the device that there is."""
        sequences, validation = training_sequences(evaluation.task, evaluation.index)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return cls(sequences, validation, len(evaluation.item_ids), device, tuned, start or {})

    def item_knn(self, settings: KnnSettings) -> Scorer:
        """An item-kNN."""
        return fit_item_knn(self.sequences, self.n_items, settings)

    def neural(self, name: str, settings: StudentSettings, seed: int) -> SASRec | GRU4Rec:
        """SASRec or GRU4Rec, stopped early on validation."""
        training = replace(
            self.training,
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            device=self.device,
        )
        thoughts = {"n_thoughts": self.n_thoughts} if self.n_thoughts else {}
        model = fit_student(
            ThinkingSASRec if thoughts else NEURAL[name],
            self.sequences,
            self.n_items,
            training,
            validation=self.validation,
            seed=seed,
            given=self.given,
            dropout=settings.dropout,
            dim=settings.dim,
            **thoughts,
        )
        report = model.report
        best, epoch = max(report.validation_ndcg), report.best_epoch
        logger.info("%s, %s: validation %.4f in epoch %d, %.0f s", name, settings, best, epoch, report.seconds)
        return model


@dataclass(frozen=True)
class Baseline:
    """A baseline as it was chosen.

    Attributes:
        name: of its row.
        settings: what was chosen, ready for JSON; empty where there is no choice.
        validation_ndcg: NDCG@10 there, of what was chosen.
        seconds: of the whole search.
    """

    name: str
    settings: dict[str, float]
    validation_ndcg: float | None
    seconds: float


def choose_baseline(name: str, fitting: Fitting, seed: int = 0) -> tuple[Baseline, Scorer]:
    """Fits a baseline with the settings that are best on validation.

    Args:
        name: one of `NAMES`.
        fitting: on what.
        seed: of a neural one.

    Raises:
        ValueError: EASE was asked for and there are too many items.
    """
    began = time.perf_counter()
    choice: Choice[Any] | None = None
    if name == "popularity":
        return Baseline(name, {}, None, 0.0), fit_popularity(fitting.sequences, fitting.n_items)
    if name == "item_knn":
        choice = choose_item_knn(fitting.sequences, fitting.n_items, fitting.validation)
    elif name == "ease":
        choice = choose_ease(EaseGram.of(fitting.sequences, fitting.n_items), EASE_GRID, fitting.validation)
    else:
        alternatives = ALTERNATIVES if fitting.tuned else {}
        choice = choose_in_turn(
            lambda settings: fitting.neural(name, settings, seed),
            fitting.start.get(name, StudentSettings()),
            alternatives,
            fitting.validation,
        )
    logger.info("%s: %s chosen on validation, NDCG@10 %.4f", name, choice.settings, choice.value)
    seconds = time.perf_counter() - began
    return Baseline(name, asdict(choice.settings), choice.value, seconds), choice.fitted


def fit_baseline(baseline: Baseline, fitting: Fitting, seed: int) -> Scorer:
    """Fits a baseline with settings that were chosen before."""
    settings: Any = baseline.settings
    if baseline.name == "popularity":
        return fit_popularity(fitting.sequences, fitting.n_items)
    if baseline.name == "item_knn":
        return fitting.item_knn(KnnSettings(**settings))
    if baseline.name == "ease":
        return EaseGram.of(fitting.sequences, fitting.n_items).fit(EaseSettings(**settings))
    return fitting.neural(baseline.name, StudentSettings(**settings), seed)


def keep_baseline(evaluation: Evaluation, name: str, fit: Callable[[], Scorer]) -> None:
    """Keeps the answers of a baseline, which is fitted unless they are there."""

    def answers() -> Answers:
        scorer = fit()
        return evaluation.score_answers(lambda histories, _: scorer.scores(histories))

    evaluation.keep(name, "plain", answers)


def evaluate_baselines(evaluation: Evaluation, names: Sequence[str] = ("popularity", "item_knn", "sasrec")) -> None:
    """Some baselines, untuned, beside what a run is about, and the toy world's two oracles.

    For a look beside a run; `recipes/baselines.py` has them all, tuned, over seeds.
    """
    fitting = Fitting.of(evaluation)
    for name in names:
        keep_baseline(evaluation, name, partial(_chosen, name, fitting, evaluation.seed))
    evaluate_oracles(evaluation)


def _chosen(name: str, fitting: Fitting, seed: int) -> Scorer:
    return choose_baseline(name, fitting, seed)[1]


def evaluate_oracles(evaluation: Evaluation) -> None:
    """The toy world's two; nothing on other data.

    `oracle` sees the history as teachers do, cut to `max_history` events, and knows the world: that some events are
    noise, and where in the user's life the history begins. No ranker of that history is better on average.
    `intent_oracle` knows the user's routine and favourite style instead, and leaves the history alone.
    """
    world, position = evaluation.task.world, evaluation.task.position
    if world is None:
        return
    columns = [world.index[item_id] for item_id in evaluation.item_ids]

    def oracle(_: Sequence[Sequence[int]], rows: pl.DataFrame) -> np.ndarray:
        seen = [[world.index[item] for item in history] for history in rows["history"].to_list()]
        starts = [position(example) - len(history) for example, history in zip(rows["example_id"], seen, strict=True)]
        return world.oracle_scores(seen, starts)[:, columns]

    def intent_oracle(_: Sequence[Sequence[int]], rows: pl.DataFrame) -> np.ndarray:
        positions = [position(example) for example in rows["example_id"]]
        return world.intent_scores(rows["user_id"].to_list(), positions)[:, columns]

    evaluation.keep(ORACLE, "plain", lambda: evaluation.score_answers(oracle, break_score_ties=True))
    evaluation.keep(INTENT_ORACLE, "plain", lambda: evaluation.score_answers(intent_oracle, break_score_ties=True))
