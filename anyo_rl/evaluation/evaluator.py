"""One evaluator for teachers, baselines and oracles: whole catalog, held-out users, intervals, paired differences."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.completion import parse
from anyo_rl.data.toy import parse_intent
from anyo_rl.data.toy_oracle import break_ties
from anyo_rl.evaluation.answers import Answers, Mode
from anyo_rl.evaluation.baselines import choose_on_validation, fit_item_knn, fit_popularity
from anyo_rl.metrics.intervals import bootstrap_interval, paired_interval
from anyo_rl.metrics.ranking import CUTOFFS, coverage, per_user_metrics, target_ranks, top_items
from anyo_rl.students.sasrec import fit_sasrec
from anyo_rl.task import Task

logger = logging.getLogger(__name__)

REASONING_MODES: tuple[Mode, ...] = ("greedy", "mixture")
TOP_K = max(CUTOFFS)
KNN_GRID = {"history_decay": [0.3, 0.6, 0.9], "backward": [0.0, 0.5, 1.0], "target_power": [0.0, 0.3, 0.6]}
Score = Callable[[Sequence[Sequence[int]]], np.ndarray]


@dataclass(frozen=True)
class Evaluation:
    """Collects answers under a run folder, one file each, so that what is finished is never done again.

    Attributes:
        run_dir: the run folder.
        task: the data.
        catalog: the catalog.
        test: the test examples.
        seed: of baselines, ties and bootstrap draws.
    """

    run_dir: Path
    task: Task
    catalog: Catalog
    test: pl.DataFrame
    seed: int = 0

    def file(self, stage: str, mode: str) -> Path:
        """Where the answers of a stage and mode are kept."""
        return self.run_dir / "answers" / f"{stage}.{mode}.parquet"

    def keep(self, stage: str, mode: str, make: Callable[[], Answers]) -> None:
        """Makes and keeps the answers of a stage and mode, unless they are there for these users; with their paths."""
        file = self.file(stage, mode)
        if file.exists():
            kept = pl.read_parquet(file, columns=["example_id"])
            if kept["example_id"].equals(self.test["example_id"]):
                return
            logger.info("%s is of other users: made again", file)
        logger.info("evaluating %s (%s) on %d users", stage, mode, len(self.test))
        answers = make()
        if answers.paths:
            _write(self._path_table(stage, answers.paths), self.run_dir / "paths" / f"{stage}.{mode}.parquet")
        frame = pl.DataFrame(
            {"example_id": self.test["example_id"], "rank": answers.ranks_U},
            schema_overrides={"rank": pl.Int64()},
        ).with_columns(pl.Series("top_ids", answers.top_ids_U_K, dtype=pl.List(pl.String)))
        _write(frame, file)

    def _path_table(self, stage: str, paths: Sequence[dict[str, Any]]) -> pl.DataFrame:
        """The paths table: what the sampler knows, and split, titles and policy besides."""
        titles = dict(zip(self.catalog.item_ids, self.catalog.titles, strict=True))
        histories = dict(zip(self.test["example_id"], self.test["history"].to_list(), strict=True))
        schema: dict[str, pl.DataType] = {
            "token_log_probs": pl.List(pl.Float32),
            "step_values": pl.List(pl.Float32),
            "cap": pl.Int64(),
        }
        rows = [
            {
                **path,
                "policy": stage,
                "split": "test",
                "history": [titles[item] for item in histories[path["example_id"]]],
                "steps": list(parse(path["completion"]).steps),
                "item_title": titles[path["item_id"]],
                "target_title": titles[path["target_id"]],
                "ranker": "likelihood",
                "cap": None,
                "rewards": json.dumps({"ndcg": float(1 / np.log2(1 + path["rank"]))}),
                "step_values": None,
                "model": stage,
            }
            for path in paths
        ]
        return pl.DataFrame(rows, schema_overrides=schema, infer_schema_length=None)

    def score_answers(self, score: Score, break_score_ties: bool = False) -> Answers:
        """Answers of anything that scores the whole catalog for histories of item indices."""
        histories = [self.catalog.indices(history).tolist() for history in self.test["history"].to_list()]
        targets = self.catalog.indices(self.test["target_id"].to_list())
        ranks, top = [], []
        for start in range(0, len(histories), 512):
            batch = histories[start : start + 512]
            scores = score(batch)
            if break_score_ties:
                scores = break_ties(scores, seed=self.seed + start)
            excluded = batch if self.task.args.mask_history else None
            ranks.append(target_ranks(scores, targets[start : start + 512], excluded))
            top += top_items(scores, TOP_K, excluded)[0]
        return Answers(np.concatenate(ranks), [[self.catalog.item_ids[i] for i in row] for row in top], [])

    def baselines(self) -> None:
        """Popularity, item-kNN with settings chosen on validation, SASRec, and the toy world's oracle."""
        n = len(self.catalog)
        sequences, validation = training_sequences(self.task, self.catalog)
        popular = fit_popularity(sequences, n)
        self.keep("popularity", "plain", lambda: self.score_answers(popular.scores))

        def item_knn() -> Answers:
            fit = partial(fit_item_knn, sequences, n)
            choice = choose_on_validation(fit, KNN_GRID, validation, mask_history=self.task.args.mask_history)
            logger.info("item-kNN: %s chosen on validation", choice.settings)
            return self.score_answers(fit(**choice.settings).scores)

        def sasrec() -> Answers:
            model = fit_sasrec(sequences, n, validation=validation, seed=self.seed)
            return self.score_answers(lambda histories: model.scores(histories).numpy())

        self.keep("item_knn", "plain", item_knn)
        self.keep("sasrec", "plain", sasrec)
        world = self.task.world
        if world is not None:
            columns = [world.index[item_id] for item_id in self.catalog.item_ids]
            to_world = dict(enumerate(columns))

            def oracle(histories: Sequence[Sequence[int]]) -> np.ndarray:
                return world.oracle_scores([[to_world[i] for i in history] for history in histories])[:, columns]

            self.keep("oracle", "plain", lambda: self.score_answers(oracle, break_score_ties=True))

    def summary(self, ranker: str, n_paths: int) -> dict[str, Any]:
        """All answers under the run folder as one `evaluation.json`."""
        frames: dict[str, dict[str, pl.DataFrame]] = {}
        for file in sorted((self.run_dir / "answers").glob("*.parquet")):
            stage, mode = file.stem.split(".")
            frames.setdefault(stage, {})[mode] = pl.read_parquet(file)
        values = {
            stage: {mode: per_user_metrics(frame["rank"].to_numpy()) for mode, frame in modes.items()}
            for stage, modes in frames.items()
        }
        stages: dict[str, Any] = {}
        for stage, modes in values.items():
            stages[stage] = {}
            for mode, metrics in modes.items():
                table: dict[str, Any] = {
                    name: bootstrap_interval(v, seed=self.seed).as_dict() for name, v in metrics.items()
                }
                top = [row[:10] for row in frames[stage][mode]["top_ids"].to_list()]
                share = coverage(top, len(self.catalog))
                table["coverage@10"] = {"mean": share, "low": None, "high": None, "n": len(top)}
                stages[stage][mode] = table
        summary = {
            "dataset": self.task.args.dataset,
            "split": f"test ({self.task.args.split})",
            "mask_history": self.task.args.mask_history,
            "n_users": len(self.test),
            "n_items": len(self.catalog),
            "ranker": ranker,
            "seed": self.seed,
            "n_paths": n_paths,
            "stages": stages,
            "differences": self._differences(values),
            "slices": self._slices(values),
        }
        truths = {stage: self._true_intents(stage) for stage in ("sft", "grpo") if stage in frames}
        if self.task.world is not None and truths:
            summary["true_intent"] = {stage: share for stage, share in truths.items() if share is not None}
        return summary

    def _differences(self, values: dict[str, dict[str, dict[str, np.ndarray]]]) -> dict[str, Any]:
        """Paired differences over the same users: GRPO − SFT and GRPO − direct."""
        differences: dict[str, Any] = {}
        for a, b in (("grpo", "sft"), ("grpo", "direct")):
            for mode in values.get(a, {}):
                other = values.get(b, {}).get(mode) or values.get(b, {}).get("plain")
                if other is not None:
                    differences.setdefault(f"{a}-{b}", {})[mode] = {
                        name: paired_interval(values[a][mode][name], other[name], seed=self.seed).as_dict()
                        for name in other
                    }
        return differences

    def _slices(self, values: dict[str, dict[str, dict[str, np.ndarray]]]) -> dict[str, Any]:
        """NDCG@10 by cold item, thirds of the target's popularity, and length of the history."""
        counts = fit_popularity(training_sequences(self.task, self.catalog)[0], len(self.catalog)).counts
        target_counts = counts[self.catalog.indices(self.test["target_id"].to_list())]
        edges = np.quantile(target_counts, [1 / 3, 2 / 3])
        lengths = self.test["history"].list.len().to_numpy()
        middle = np.median(lengths)
        cold = self.test["cold_item"].to_numpy()
        masks = {
            "cold_item=true": cold,
            "cold_item=false": ~cold,
            "popularity=tail": target_counts <= edges[0],
            "popularity=middle": (target_counts > edges[0]) & (target_counts <= edges[1]),
            "popularity=head": target_counts > edges[1],
            "history=short": lengths <= middle,
            "history=long": lengths > middle,
        }
        return {
            stage: {
                mode: {
                    name: {"n": int(mask.sum()), "ndcg@10": float(metrics["ndcg@10"][mask].mean())}
                    for name, mask in masks.items()
                    if mask.any()
                }
                for mode, metrics in modes.items()
            }
            for stage, modes in values.items()
        }

    def _true_intents(self, stage: str) -> float | None:
        """Share of greedy reasonings that state the true intent (toy world)."""
        file = self.run_dir / "paths" / f"{stage}.greedy.parquet"
        world = self.task.world
        if world is None or not file.exists():
            return None
        paths = pl.read_parquet(file, columns=["example_id", "user_id", "steps"])
        true = [
            parse_intent(steps) is not None and world.is_true(steps, user, self.task.position(example))
            for example, user, steps in paths.iter_rows()
        ]
        return float(np.mean(true)) if true else None


def training_sequences(task: Task, catalog: Catalog) -> tuple[list[list[int]], tuple[list[list[int]], list[int]]]:
    """What baselines and students train on: each user's train events in order; and validation histories and targets.

    A user's train events go up to the last train target. Pre-made examples (`given`) have no log behind them: there it
    is the history of the last train example and its target.
    """
    last = task.split("train").group_by("user_id", maintain_order=True).last()
    if task.args.split == "given":
        rows = [[*history, target] for history, target in last.select("history", "target_id").iter_rows()]
    else:
        n_events = {
            user: task.position(example) + 1 for user, example in last.select("user_id", "example_id").iter_rows()
        }
        events = task.interactions.frame.group_by("user_id", maintain_order=True).agg("item_id")
        rows = [items[: n_events[user]] for user, items in events.iter_rows() if user in n_events]
    validation = task.split("validation", task.args.max_validation)
    histories = [catalog.indices(history).tolist() for history in validation["history"].to_list()]
    targets = catalog.indices(validation["target_id"].to_list()).tolist()
    return [catalog.indices(items).tolist() for items in rows], (histories, targets)


def _write(frame: pl.DataFrame, file: Path) -> None:
    """Writes a parquet file complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial_file = file.with_suffix(".partial")
    frame.write_parquet(partial_file)
    partial_file.replace(file)
