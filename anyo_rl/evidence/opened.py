"""Finished evidence, opened: candidates and log-scores of any example, and scores of any history.

evidence = Evidence.open(Path("runs/office/evidence"), task)
evidence.candidates(example_ids)    # (R, K) item indices
evidence.log_scores(example_ids)    # (R, K): of a training example by retrievers and rankers that never saw its user
evidence.scores(histories)          # (B, N): of any history, the whole catalog
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import load_file

from anyo_rl.data.schema import EXAMPLE_ID
from anyo_rl.data.sequences import HeldOut, held_out
from anyo_rl.data.task import Task
from anyo_rl.evidence.candidates import NONE, Items, over_catalog, places, ranks_at
from anyo_rl.evidence.features import Block, Gatherer, gather
from anyo_rl.evidence.make import DATA, Maker, held_out_folders, seed_folder, train_folder
from anyo_rl.evidence.ranker import EvidenceRanker
from anyo_rl.evidence.retrievers import RetrieverSettings
from anyo_rl.evidence.tables import Table, open_table
from anyo_rl.metrics.ranking import target_ranks
from anyo_rl.run.files import read_json, readable, whole_file, write_whole
from anyo_rl.run.settings import UsageError
from anyo_rl.students.protocol import Histories, rows_at_once

CARD, VECTORS = "evidence.json", "vectors.safetensors"


@dataclass(frozen=True)
class Evidence:
    """The evidence of a run folder, with the ranker of a seed.

    Attributes:
        maker: what it was made with.
        seed: of folds and ranker.
        ranker: learned from all training users; for those who are none of them, or whose targets it has not seen.
    """

    maker: Maker
    seed: int
    ranker: EvidenceRanker

    @classmethod
    def open(cls, folder: Path, task: Task, seed: int | None = None, *, or_first: bool = False) -> "Evidence":
        """Opens the run folder of `recipes/rank_evidence.py`.

        Args:
            folder: the run folder.
            task: the same data.
            seed: which; the folder's first if `None`.
            or_first: take the folder's first where it has not that seed.

        Raises:
            UsageError: it is not finished, or was made of other data.
        """
        maker, seeds = read_card(folder, task)
        seed = seeds[0] if seed is None or (or_first and seed not in seeds) else seed
        if seed not in seeds:
            raise UsageError(f"{folder} has evidence of the seeds {seeds}, and not of {seed}")
        return cls(maker, seed, EvidenceRanker.load(seed_folder(folder, seed)))

    @property
    def n_items(self) -> int:
        """Size N of the catalog."""
        return len(self.maker.index)

    @cached_property
    def _tables(self) -> list[tuple[Table, Path]]:
        """All tables, and where the scores of each are."""
        folder = self.maker.folder
        places = held_out_folders(folder)
        places |= {f"fold-{fold}": train_folder(folder, self.seed, fold) for fold in range(self.maker.n_folds)}
        return [(open_table(place), scores_file(folder, self.seed, name)) for name, place in places.items()]

    @cached_property
    def _place(self) -> dict[str, tuple[int, int]]:
        """Example id → number of its table, and its row there."""
        tables = enumerate(self._tables)
        return {example: (number, row) for number, (table, _) in tables for example, row in table.rows.items()}

    @cached_property
    def _scores(self) -> dict[int, NDArray[np.float32]]:
        """Number of a table → its scores, as a memory map; those of training examples may not be there."""
        files = enumerate(file for _, file in self._tables)
        return {number: np.load(file, mmap_mode="r", allow_pickle=False) for number, file in files if file.is_file()}

    def candidates(self, example_ids: Sequence[str]) -> Items:
        """(R, K) int32 item indices of the candidates of each example, `NONE` where there are fewer.

        Raises:
            UsageError: an example is not of this data.
        """
        places = self._places(example_ids)
        found = [self._tables[number][0].candidates_R_K[row] for number, row in places]
        return np.stack(found) if found else np.empty((0, self.maker.how.n_candidates), dtype=np.int32)

    def log_scores(self, example_ids: Sequence[str]) -> NDArray[np.float32]:
        """(R, K) float32: log-probabilities over each example's candidates, -inf where there is none.

        They are softened as makes validation's targets the likeliest (`anyo_rl.evidence.softening`). Training
        examples have those of their fold's own ranker.

        Raises:
            UsageError: an example is not of this data, or those of training examples were not made.
        """
        places = self._places(example_ids)
        if any(number not in self._scores for number, _ in places):
            self.check_training()
        found = [self._scores[number][row] for number, row in places]
        return np.stack(found) if found else np.empty((0, self.maker.how.n_candidates), dtype=np.float32)

    def check_training(self) -> None:
        """Refuses evidence that training examples cannot be scored by.

        Raises:
            UsageError: says what to run.
        """
        files = [scores_file(self.maker.folder, self.seed, f"fold-{fold}") for fold in range(self.maker.n_folds)]
        if missing := [file for file in files if not file.is_file()]:
            raise UsageError(
                f"{self.maker.folder} has no scores of training examples ({missing[0]} is not there): run the command "
                "that made it again, with --training_scores true"
            )

    def gather(self, histories: Histories, excluded: Sequence[Sequence[int]] | None = None) -> Block:
        """Candidates and features of any histories, by retrievers of all training users.

        Args:
            histories: item indices, oldest first.
            excluded: what each ranking leaves out; by default the history, where the task masks it.
        """
        past = [list(history) for history in histories]
        if excluded is None:
            excluded = past if self.maker.task.args.mask_history else [[] for _ in past]
        asked = HeldOut(past, [0] * len(past), [list(items) for items in excluded])
        return gather(asked, self.maker.full, self.maker.how)

    def scores(self, histories: Histories, excluded: Sequence[Sequence[int]] | None = None) -> NDArray[np.float64]:
        """Scores (B, N): candidates by the ranker, all others behind them as the first retriever has them.

        Args:
            histories: item indices, oldest first.
            excluded: as in `gather`.
        """
        block = self.gather(histories, excluded)
        scores_B_K = self.ranker.log_scores(block.candidates_R_K, block.features_R_K_X)  # as they are kept: same ties
        first_B_N = np.asarray(self.maker.full.first.scores(histories))
        return over_catalog(first_B_N, block.candidates_R_K, scores_B_K)

    def example_scores(self, example_ids: Sequence[str], histories: Histories) -> NDArray[np.float64]:
        """The same of held-out examples, from what was made of them: (B, N).

        Args:
            example_ids: of validation or test.
            histories: theirs.
        """
        first_B_N = np.asarray(self.maker.full.first.scores(histories))
        return over_catalog(first_B_N, self.candidates(example_ids), self.log_scores(example_ids))

    def scores_of_rows(self, histories: Histories, rows: pl.DataFrame) -> NDArray[np.float64]:
        """The same of rows of the examples frame, as an evaluation asks for them."""
        return self.example_scores(rows[EXAMPLE_ID].to_list(), histories)

    def target_ranks(self, example_ids: Sequence[str]) -> NDArray[np.int64]:
        """1-based ranks (R,) of the examples' targets by the evidence alone, among the whole catalog.

        A training example whose target is no candidate has the last rank: retrievers of all training users, which
        order what is none, have seen what it chose.
        """
        if not len(example_ids):
            return np.zeros(0, dtype=np.int64)
        n_held_out = len(held_out_folders(self.maker.folder))
        training_R = np.array([number for number, _ in self._places(example_ids)]) >= n_held_out
        asked = held_out(self.maker.task, self._rows(example_ids), self.maker.index)
        place_R = places(self.candidates(example_ids), np.array(asked.targets))
        ranks = ranks_at(self.log_scores(example_ids), place_R)
        for row in np.flatnonzero((place_R == NONE) & training_R):
            ranks[row] = self.n_items - len(set(asked.excluded[row]) - {asked.targets[row]})
        beyond = np.flatnonzero((place_R == NONE) & ~training_R)
        for start in range(0, len(beyond), rows_at_once(self.n_items)):
            block = beyond[start : start + rows_at_once(self.n_items)]
            scores_B_N = self.example_scores([example_ids[i] for i in block], [asked.histories[i] for i in block])
            targets, excluded = ([column[i] for i in block] for column in (asked.targets, asked.excluded))
            ranks[block] = target_ranks(scores_B_N, targets, excluded)
        return ranks

    def _rows(self, example_ids: Sequence[str]) -> pl.DataFrame:
        """Rows of the examples frame, in the order asked for."""
        asked = pl.DataFrame({EXAMPLE_ID: list(example_ids)}, schema={EXAMPLE_ID: pl.String})
        return asked.join(self.maker.task.examples, on=EXAMPLE_ID, how="left", maintain_order="left")

    def _places(self, example_ids: Sequence[str]) -> list[tuple[int, int]]:
        if missing := next((example for example in example_ids if example not in self._place), None):
            raise UsageError(f"{self.maker.folder} has no evidence of {missing!r}: make it of the same examples")
        return [self._place[example] for example in example_ids]


def scores_file(folder: Path, seed: int, name: str) -> Path:
    """Where the log-scores of a table are: `validation`, `test` or `fold-F`."""
    return seed_folder(folder, seed) / "scores" / f"{name}.npy"


def keep_scores(file: Path, table: Table, ranker: EvidenceRanker) -> None:
    """Keeps the log-scores of a table's candidates."""
    file.parent.mkdir(parents=True, exist_ok=True)
    found = ranker.log_scores(table.candidates_R_K, table.features_R_K_X)
    with whole_file(file) as opened:
        np.save(opened, found, allow_pickle=False)


def write_card(maker: Maker, seeds: Sequence[int]) -> None:
    """Writes what a folder's evidence is made with; the vectors of titles lie beside it."""
    card = {
        "data": {name: maker.task.fingerprint[name] for name in DATA},
        "retrievers": maker.settings.as_json(),
        "n_candidates": maker.how.n_candidates,
        "lists": list(maker.how.lists),
        "text": maker.text,
        "n_folds": maker.n_folds,
        "seeds": list(seeds),
    }
    write_whole(maker.folder / CARD, json.dumps(card, indent=2))


def read_card(folder: Path, task: Task) -> tuple[Maker, list[int]]:
    """What `write_card` wrote, for the same data.

    Raises:
        UsageError: there is none, it is damaged, or of other data.
    """
    if not (folder / CARD).is_file():
        raise UsageError(f"found no evidence in {folder}: expected a finished run of recipes/rank_evidence.py")
    with readable(folder / CARD):
        card = read_json(folder / CARD)
        changed = [name for name, value in card["data"].items() if task.fingerprint[name] != value]
    if changed:
        raise UsageError(f"the evidence in {folder} was made of other {', '.join(changed)}: make it of this data")
    with readable(folder / CARD):
        vectors = load_file(folder / VECTORS)["titles"] if (folder / VECTORS).is_file() else None
        how = Gatherer(card["n_candidates"], tuple(card["lists"]), vectors)
        settings = RetrieverSettings.from_json(card["retrievers"])
        return Maker(folder, task, settings, how, card["text"], card["n_folds"]), card["seeds"]
