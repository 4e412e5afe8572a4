"""One evaluator for teachers, baselines and oracles: whole catalog, held-out users, intervals, paired differences."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.sequences import training_sequences
from anyo_rl.data.task import Task
from anyo_rl.data.toy.oracle import break_ties
from anyo_rl.data.toy.world import parse_intent
from anyo_rl.evaluation.stages import DIRECT, INTENT_ORACLE, ORACLE, RANK_TRAINED, SFT
from anyo_rl.metrics.intervals import bootstrap_interval, paired_interval
from anyo_rl.metrics.ranking import CUTOFFS, coverage, per_user_metrics, target_ranks, top_items
from anyo_rl.run.files import write_table
from anyo_rl.sampling.paths import paths_table
from anyo_rl.search.answers import Answers
from anyo_rl.students.choice import choose_on_validation
from anyo_rl.students.fit import fit_student
from anyo_rl.students.item_knn import KNN_GRID, ItemKNN, KnnSettings, fit_item_knn
from anyo_rl.students.popularity import fit_popularity
from anyo_rl.students.sasrec import SASRec

logger = logging.getLogger(__name__)

Score = Callable[[Sequence[Sequence[int]], pl.DataFrame], np.ndarray]
TOP_K = max(CUTOFFS)
MADE_WITH = "made_with"  # the key of a file's metadata


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

    def keep(
        self,
        stage: str,
        mode: str,
        make: Callable[[], Answers],
        made_with: Mapping[str, Any] | None = None,
        *,
        together: bool = False,
    ) -> None:
        """Makes and keeps the answers of a stage and mode, with their paths, unless the very same are there.

        Args:
            stage: the stage.
            mode: how it is asked.
            make: makes the answers.
            made_with: what they depend on besides data, users and seed, ready for JSON: the teacher's weights
                (`weights_of`), the number of paths, the length of a reasoning. Kept with the answers; they are made
                again where anything differs.
            together: all processes call this, and `make` with one another; the main process keeps the answers.
        """
        file = self.file(stage, mode)
        record = json.loads(json.dumps(self._record() | {"settings": dict(made_with or {})}))
        there = file.exists()
        changed = _differing(_read_record(file), record) if there else []
        needed = not there or bool(changed)
        if together:
            (needed,) = broadcast_object_list([needed])  # the main process may be the only one that sees its files
        if not needed:
            return
        if changed:
            logger.info("%s was made with another %s: made again", file, ", ".join(changed))
        logger.info("evaluating %s (%s) on %d users", stage, mode, len(self.test))
        answers = make()
        if together and not PartialState().is_main_process:
            return
        if answers.paths:
            paths = paths_table([replace(path, policy=stage, split="test", model=stage) for path in answers.paths])
            write_table(paths, self.run_dir / "paths" / f"{stage}.{mode}.parquet")
        frame = pl.DataFrame(
            {"example_id": self.test["example_id"], "rank": answers.ranks_U},
            schema_overrides={"rank": pl.Int64()},
        ).with_columns(pl.Series("top_ids", answers.top_ids_U_K, dtype=pl.List(pl.String)))
        write_table(frame, file, {MADE_WITH: json.dumps(record)})

    def _record(self) -> dict[str, Any]:
        """What all answers depend on: the data as it is split and shown, its users, and the seed."""
        users = hashlib.sha256("\n".join(self.test["example_id"]).encode()).hexdigest()[:16]
        data = {name: value for name, value in asdict(self.task.args).items() if name != "data_dir"}
        return {"users": users, "seed": self.seed, **data}

    def score_answers(self, score: Score, break_score_ties: bool = False) -> Answers:
        """Answers of anything that scores the whole catalog.

        Args:
            score: gets histories of item indices and their rows of the test frame, and gives a score for each history
                and item.
            break_score_ties: whether equal items are put in a random order; ties count against the target.
        """
        histories = [self.catalog.indices(history).tolist() for history in self.test["history"].to_list()]
        targets = self.catalog.indices(self.test["target_id"].to_list())
        ranks, top = [], []
        for start in tqdm(range(0, len(histories), 512), desc="users", mininterval=5, leave=False):
            batch = histories[start : start + 512]
            scores = score(batch, self.test[start : start + 512])
            if break_score_ties:
                scores = break_ties(scores, seed=self.seed + start)
            excluded = batch if self.task.args.mask_history else None
            ranks.append(target_ranks(scores, targets[start : start + 512], excluded))
            top += top_items(scores, TOP_K, excluded)[0]
        return Answers(np.concatenate(ranks), [[self.catalog.item_ids[i] for i in row] for row in top], [])

    def baselines(self) -> None:
        """Popularity, item-kNN with settings chosen on validation, SASRec, and the toy world's two oracles.

        `oracle` sees the history as the others do, cut to `max_history` events, and knows the world: that some events
        are noise, and where in the user's life the history begins. No ranker of that history is better on average.
        `intent_oracle` knows the user's routine and favourite style instead, and leaves the history alone.
        """
        n = len(self.catalog)
        sequences, validation = training_sequences(self.task, self.catalog.index)
        popular = fit_popularity(sequences, n)
        self.keep("popularity", "plain", lambda: self.score_answers(lambda histories, _: popular.scores(histories)))

        def item_knn() -> Answers:
            def fit(**chosen: Any) -> ItemKNN:
                return fit_item_knn(sequences, n, KnnSettings(**chosen))

            choice = choose_on_validation(fit, KNN_GRID, validation, mask_history=self.task.args.mask_history)
            logger.info("item-kNN: %s chosen on validation", choice.settings)
            knn = fit(**choice.settings)
            return self.score_answers(lambda histories, _: knn.scores(histories))

        def sasrec() -> Answers:
            mask = self.task.args.mask_history
            model = fit_student(SASRec, sequences, n, validation=validation, mask_history=mask, seed=self.seed)
            return self.score_answers(lambda histories, _: model.scores(histories).numpy())

        self.keep("item_knn", "plain", item_knn)
        self.keep("sasrec", "plain", sasrec)
        world = self.task.world
        if world is not None:
            columns = [world.index[item_id] for item_id in self.catalog.item_ids]

            def oracle(histories: Sequence[Sequence[int]], rows: pl.DataFrame) -> np.ndarray:
                seen = [[columns[item] for item in history] for history in histories]
                starts = [
                    self.task.position(example) - len(history)
                    for example, history in zip(rows["example_id"], seen, strict=True)
                ]
                return world.oracle_scores(seen, starts)[:, columns]

            def intent_oracle(_: Sequence[Sequence[int]], rows: pl.DataFrame) -> np.ndarray:
                positions = [self.task.position(example) for example in rows["example_id"]]
                return world.intent_scores(rows["user_id"].to_list(), positions)[:, columns]

            self.keep(ORACLE, "plain", lambda: self.score_answers(oracle, break_score_ties=True))
            self.keep(INTENT_ORACLE, "plain", lambda: self.score_answers(intent_oracle, break_score_ties=True))

    def summary(self, ranker: str, n_paths: int) -> dict[str, Any]:
        """All answers of these users under the run folder as one `evaluation.json`; others are left out."""
        frames: dict[str, dict[str, pl.DataFrame]] = {}
        mine = self._record()
        for file in sorted((self.run_dir / "answers").glob("*.parquet")):
            record = _read_record(file)
            settings = record.pop("settings", {})
            other = _differing(record, mine) + (["n_paths"] if settings.get("n_paths", n_paths) != n_paths else [])
            if other:
                logger.warning("%s is left out: it was made with another %s", file, ", ".join(other))
                continue
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
        if self.task.world is not None:
            truths = {stage: self._true_intents(stage) for stage, modes in frames.items() if "greedy" in modes}
            summary["stated_intent"] = {stage: stated for stage, (stated, _) in truths.items()}
            summary["true_intent"] = {stage: true for stage, (_, true) in truths.items() if true is not None}
        return summary

    def _differences(self, values: dict[str, dict[str, dict[str, np.ndarray]]]) -> dict[str, Any]:
        """Paired differences over the same users: each stage that learned from ranks − SFT, and − direct."""
        differences: dict[str, Any] = {}
        for a, b in product(RANK_TRAINED, (SFT.name, DIRECT.name)):
            for mode in values.get(a, {}):
                other = values.get(b, {}).get(mode) or values.get(b, {}).get("plain")
                if other is not None:
                    differences.setdefault(f"{a}-{b}", {})[mode] = {
                        name: paired_interval(values[a][mode][name], other[name], seed=self.seed).as_dict()
                        for name in other
                    }
        return differences

    def _slices(self, values: dict[str, dict[str, dict[str, np.ndarray]]]) -> dict[str, Any]:
        """NDCG@10 and HR@10 by cold item, thirds of the target's popularity, and length of the history."""
        counts = fit_popularity(training_sequences(self.task, self.catalog.index)[0], len(self.catalog)).counts
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
                    name: {"n": int(mask.sum())}
                    | {
                        metric: bootstrap_interval(metrics[metric][mask], seed=self.seed).as_dict()
                        for metric in ("ndcg@10", "hr@10")
                    }
                    for name, mask in masks.items()
                    if mask.any()
                }
                for mode, metrics in modes.items()
            }
            for stage, modes in values.items()
        }

    def _true_intents(self, stage: str) -> tuple[float, float | None]:
        """Share of greedy reasonings that state an intent (toy world), and of these, those that state the true one."""
        world = self.task.world
        assert world is not None
        file = self.run_dir / "paths" / f"{stage}.greedy.parquet"
        paths = pl.read_parquet(file, columns=["example_id", "user_id", "steps"])
        true = [
            world.is_true(steps, user, self.task.position(example))
            for example, user, steps in paths.iter_rows()
            if parse_intent(steps) is not None
        ]
        return len(true) / len(paths), float(np.mean(true)) if true else None


def weights_of(teacher: Path | str) -> dict[str, Any]:
    """What tells a teacher's weights from others, cheaply: its name, and size and time of its weight files."""
    files = sorted(Path(teacher).glob("*.safetensors")) if Path(teacher).is_dir() else []
    stats = [(file.name, file.stat()) for file in files]
    return {"teacher": str(teacher), "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]}


def _read_record(file: Path) -> dict[str, Any]:
    """What a file of answers was made with; empty where it does not say."""
    return json.loads(pl.read_parquet_metadata(file).get(MADE_WITH, "{}"))


def _differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Names of what differs between two records."""
    return [name for name in expected if found.get(name) != expected[name]]
