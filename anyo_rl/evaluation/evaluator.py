"""Answers of teachers, baselines and oracles to the same test examples, over the whole catalog, kept once made."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from anyo_rl.data.fingerprint import EVENTS
from anyo_rl.data.schema import DataError
from anyo_rl.data.sequences import held_out
from anyo_rl.data.task import Task
from anyo_rl.data.toy.oracle import break_ties
from anyo_rl.evaluation.summary import COSTS
from anyo_rl.evidence.fusion import SAME_TOP
from anyo_rl.metrics.ranking import CUTOFFS, target_ranks, top_items
from anyo_rl.run.files import read_table, write_table
from anyo_rl.sampling.paths import paths_table
from anyo_rl.search.answers import Answers
from anyo_rl.students.protocol import rows_at_once

logger = logging.getLogger(__name__)

Score = Callable[[Sequence[Sequence[int]], pl.DataFrame], np.ndarray]
TOP_K = max(CUTOFFS)
ANSWERS = "answers"  # the folder
AS_EVIDENCE = tuple(f"same_top{k}" for k in SAME_TOP)  # columns of answers with evidence: whether they are its own
P_YES, LIKED = "p_yes", "liked"  # columns of answers by yes and no: of each item asked about, and whether it is right
MADE_WITH = "made_with"  # the key of a file's metadata

# What baselines depend on; how histories are shown to a teacher is not among it.
SAME_DATA = ("users", EVENTS, "dataset", "split", "split_ratios", "split_seed", "mask_history", "k_core", "toy_dial")

Made = dict[str, Any]  # what answers were made with, ready for JSON
Frames = dict[str, dict[str, pl.DataFrame]]  # stage → mode → a row of an example: its user, the rank, the top items


@dataclass(frozen=True)
class Evaluation:
    """Collects answers under a run folder, one file each, so that what is finished is never done again.

    Attributes:
        run_dir: the run folder.
        task: the data.
        item_ids: of the catalog.
        test: the test examples.
        seed: of baselines, ties and bootstrap draws.
    """

    run_dir: Path
    task: Task
    item_ids: Sequence[str]
    test: pl.DataFrame
    seed: int = 0

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id to its place in the catalog."""
        return {item_id: place for place, item_id in enumerate(self.item_ids)}

    @property
    def data(self) -> Mapping[str, str]:
        """What tells the data from other data; rationales show in weights alone."""
        return {name: value for name, value in self.task.fingerprint.items() if name != "rationales"}

    def file(self, stage: str, mode: str) -> Path:
        """Where the answers of a stage and mode are kept."""
        return self.run_dir / ANSWERS / f"{stage}.{mode}.parquet"

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
        before = read_made_with(file)
        changed = _differing(before, record) if before is not None else []
        needed = before is None or bool(changed)
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
            write_table(paths, self.paths(stage, mode))
        frame = pl.DataFrame(
            {**self.test.select("example_id", "user_id").to_dict(), "rank": answers.ranks_U},
            schema_overrides={"rank": pl.Int64()},
        ).with_columns(pl.Series("top_ids", answers.top_ids_U_K, dtype=pl.List(pl.String)))
        if answers.as_evidence_U_2 is not None:
            same = zip(AS_EVIDENCE, answers.as_evidence_U_2.T, strict=True)
            frame = frame.with_columns(pl.Series(name, column) for name, column in same)
        if answers.judged_U is not None:
            columns = {P_YES: [[p for p, _ in one] for one in answers.judged_U]}
            columns |= {LIKED: [[liked for _, liked in one] for one in answers.judged_U]}
            schema = {P_YES: pl.List(pl.Float64()), LIKED: pl.List(pl.Boolean())}
            frame = frame.with_columns(pl.Series(name, columns[name], dtype=dtype) for name, dtype in schema.items())
        if answers.found_U is not None:
            frame = frame.with_columns(
                pl.Series(name, [getattr(one, name) for one in answers.found_U], dtype=pl.Float64) for name in COSTS
            )
        write_table(frame, file, _metadata(record))

    def _record(self) -> Made:
        """What all answers depend on: the data as it is split and shown, its users, and the seed."""
        users = hashlib.sha256("\n".join(self.test["example_id"]).encode()).hexdigest()[:16]
        data = {name: value for name, value in asdict(self.task.args).items() if name != "data_dir"}
        return {"users": users, "seed": self.seed, **self.data, **data}

    def score_answers(self, score: Score, break_score_ties: bool = False) -> Answers:
        """Answers of anything that scores the whole catalog.

        Args:
            score: gets what users had chosen before, as item indices, and their rows of the test frame, and gives a
                score for each user and item.
            break_score_ties: whether equal items are put in a random order; ties count against the target.
        """
        ranks, top, at_once = [], [], rows_at_once(len(self.item_ids))
        for start in tqdm(range(0, len(self.test), at_once), desc="users", mininterval=5, leave=False):
            rows = self.test[start : start + at_once]
            asked = held_out(self.task, rows, self.index)
            scores = score(asked.histories, rows)
            if break_score_ties:
                scores = break_ties(scores, seed=self.seed + start)
            ranks.append(target_ranks(scores, asked.targets, asked.excluded))
            top += top_items(scores, TOP_K, asked.excluded)[0]
        return Answers(np.concatenate(ranks), [[self.item_ids[i] for i in row] for row in top], [])

    def take_over(self, folder: Path) -> list[str]:
        """Answers of baselines from a finished run of `recipes/baselines.py` on the same data.

        Args:
            folder: its run folder; answers of this seed are taken, and those of its first seed where there are none.

        Returns:
            The names of what was taken.

        Raises:
            DataError: there are none, or they are of other examples or other training data.
        """
        places = [min(folder.glob("seed-*"), default=folder), folder / f"seed-{self.seed}"]
        found_there = {file.name: file for place in places for file in (place / ANSWERS).glob("*.plain.parquet")}
        files = [found_there[name] for name in sorted(found_there)]
        if not files:
            raise DataError(f"no answers in {folder}, expected the folder of a finished run of recipes/baselines.py")
        mine = self._record()
        for file in files:
            found = read_made_with(file) or {}
            if other := [name for name in SAME_DATA if found.get(name) != mine.get(name)]:
                raise DataError(f"{file} was made with another {', '.join(other)}: give baselines of this data")
            write_table(read_table(file), self.run_dir / ANSWERS / file.name, _metadata(mine | {"settings": {}}))
        return [file.stem.partition(".")[0] for file in files]

    def kept(self, n_paths: int | None) -> Frames:
        """All answers of these users in the run folder; those made with other settings are left out, with a word."""
        frames: Frames = {}
        mine = self._record()
        for file in sorted((self.run_dir / ANSWERS).glob("*.parquet")):
            record = read_made_with(file)
            if record is None:
                continue
            settings = record.pop("settings", {})
            other = _differing(record, mine) + (["n_paths"] if settings.get("n_paths", n_paths) != n_paths else [])
            if other:
                logger.warning("%s is left out: it was made with another %s", file, ", ".join(other))
                continue
            stage, mode = file.stem.split(".")
            frame = read_table(file).with_columns(self.test["user_id"])
            frames.setdefault(stage, {})[mode] = frame
        return frames

    def paths(self, stage: str, mode: str) -> Path:
        """Where the paths of a stage and mode are kept, if it has any."""
        return self.run_dir / "paths" / f"{stage}.{mode}.parquet"


def weights_of(teacher: Path | str) -> Made:
    """What tells a teacher's weights from others, cheaply: its name, and size and time of its weight files."""
    files = sorted(Path(teacher).glob("*.safetensors")) if Path(teacher).is_dir() else []
    stats = [(file.name, file.stat()) for file in files]
    return {"teacher": str(teacher), "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]}


def read_made_with(file: Path) -> Made | None:
    """What a file of answers was made with, empty where it does not say; `None` where there is no whole file."""
    try:
        return json.loads(pl.read_parquet_metadata(file).get(MADE_WITH, "{}"))
    except FileNotFoundError:
        return None
    except (pl.exceptions.PolarsError, ValueError):
        logger.warning("%s is no whole file of answers, and is left out until it is made again", file)
        return None


def _metadata(record: Made) -> dict[str, str]:
    return {MADE_WITH: json.dumps(record)}


def _differing(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Names of what differs between two records."""
    return [name for name in expected if found.get(name) != expected[name]]
