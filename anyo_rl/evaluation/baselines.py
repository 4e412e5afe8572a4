"""Baselines and oracles of an evaluation, fitted on training events and chosen on validation."""

import logging
from collections.abc import Sequence

import numpy as np
import polars as pl

from anyo_rl.data.sequences import training_sequences
from anyo_rl.data.toy.world import ToyWorld
from anyo_rl.evaluation.evaluator import Evaluation
from anyo_rl.evaluation.stages import INTENT_ORACLE, ORACLE
from anyo_rl.search.answers import Answers
from anyo_rl.students.choice import choose_on_validation
from anyo_rl.students.fit import fit_student
from anyo_rl.students.item_knn import KNN_GRID, ItemKNN, KnnSettings, fit_item_knn
from anyo_rl.students.popularity import fit_popularity
from anyo_rl.students.sasrec import SASRec

logger = logging.getLogger(__name__)


def evaluate_baselines(evaluation: Evaluation) -> None:
    """Popularity, item-kNN with settings chosen on validation, SASRec, and the toy world's two oracles."""
    n = len(evaluation.catalog)
    sequences, validation = training_sequences(evaluation.task, evaluation.catalog.index)

    def popularity() -> Answers:
        popular = fit_popularity(sequences, n)
        return evaluation.score_answers(lambda histories, _: popular.scores(histories))

    def item_knn() -> Answers:
        def fit(settings: KnnSettings) -> ItemKNN:
            return fit_item_knn(sequences, n, settings)

        choice = choose_on_validation(fit, KNN_GRID, validation)
        logger.info("item-kNN: %s chosen on validation", choice.settings)
        knn = fit(choice.settings)
        return evaluation.score_answers(lambda histories, _: knn.scores(histories))

    def sasrec() -> Answers:
        model = fit_student(SASRec, sequences, n, validation=validation, seed=evaluation.seed)
        return evaluation.score_answers(lambda histories, _: model.scores(histories).numpy())

    for name, make in (("popularity", popularity), ("item_knn", item_knn), ("sasrec", sasrec)):
        evaluation.keep(name, "plain", make)
    if evaluation.task.world is not None:
        _evaluate_oracles(evaluation, evaluation.task.world)


def _evaluate_oracles(evaluation: Evaluation, world: ToyWorld) -> None:
    """The toy world's two.

    `oracle` sees the history as teachers do, cut to `max_history` events, and knows the world: that some events
    are noise, and where in the user's life the history begins. No ranker of that history is better on average.
    `intent_oracle` knows the user's routine and favourite style instead, and leaves the history alone.
    """
    columns = [world.index[item_id] for item_id in evaluation.catalog.item_ids]
    position = evaluation.task.position

    def oracle(_: Sequence[Sequence[int]], rows: pl.DataFrame) -> np.ndarray:
        seen = [[world.index[item] for item in history] for history in rows["history"].to_list()]
        starts = [position(example) - len(history) for example, history in zip(rows["example_id"], seen, strict=True)]
        return world.oracle_scores(seen, starts)[:, columns]

    def intent_oracle(_: Sequence[Sequence[int]], rows: pl.DataFrame) -> np.ndarray:
        positions = [position(example) for example in rows["example_id"]]
        return world.intent_scores(rows["user_id"].to_list(), positions)[:, columns]

    evaluation.keep(ORACLE, "plain", lambda: evaluation.score_answers(oracle, break_score_ties=True))
    evaluation.keep(INTENT_ORACLE, "plain", lambda: evaluation.score_answers(intent_oracle, break_score_ties=True))
