"""The candidates of a run whose teachers answer about candidates: who names them, fitted as it was chosen, once."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from anyo_rl.data.schema import VALIDATION
from anyo_rl.data.sequences import held_out
from anyo_rl.data.task import Task
from anyo_rl.evidence.lists import EvidenceLists, Lists, RetrieverLists
from anyo_rl.evidence.opened import Evidence
from anyo_rl.evidence.retrievers import KNN, RetrieverSettings, choose_retrievers
from anyo_rl.evidence.reweighing import RetrieverWeights
from anyo_rl.reasoning.kinds.kind import Kind
from anyo_rl.reasoning.kinds.questions import Candidates, LikedQuestions, OrderQuestions, Questions
from anyo_rl.run.files import read_json, readable, write_first
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.evidence import CHOOSE_BY, known_settings

EVIDENCE = "evidence"
FOLDER = "candidates"  # of a run: settings of the retriever


@dataclass(frozen=True)
class Asks:
    """What a run's questions are made of.

    Attributes:
        folder: the run folder.
        task: the data.
        kind: of reasoning.
        evidence: run folder of `recipes/rank_evidence.py`, if any.
        baselines_from: run folder of `recipes/baselines.py`, if any.
        seed: of the run.
        writes: whether SFT teaches whole orders, which are written; else the best candidate's number alone.
    """

    folder: Path
    task: Task
    kind: Kind
    evidence: str | None
    baselines_from: str | None
    seed: int
    writes: bool

    @property
    def source(self) -> str:
        """Who names the candidates.

        Raises:
            UsageError: it is evidence, and none is named.
        """
        assert self.kind.listed is not None, "it is asked about candidates"
        source = self.kind.listed.source or (EVIDENCE if self.evidence else KNN)
        if source == EVIDENCE and not self.evidence:
            raise UsageError("candidates_from is evidence: name the folder of recipes/rank_evidence.py (evidence)")
        return source

    def lists(self) -> Lists:
        """The candidates of any example; all processes call this together.

        Raises:
            UsageError: see `source`; or the evidence is not finished, or of other data.
        """
        if self.source == EVIDENCE:
            return EvidenceLists(Evidence.open(Path(str(self.evidence)), self.task, self.seed, or_first=True))
        return RetrieverLists(
            retriever_weights(self.task, self.source, self.seed, self.folder / FOLDER, self.baselines_from)
        )

    def questions(self) -> Questions | None:
        """What examples are asked; `None` where the kind answers with an item. All processes call this together."""
        if self.kind.listed is None:
            return None
        candidates = Candidates(self.task, self.lists(), self.kind.listed, self.seed)
        if self.kind.liked is not None:
            return LikedQuestions(candidates, self.kind.liked)
        return OrderQuestions(candidates, whole=self.writes)


def retriever_weights(task: Task, by: str, seed: int, folder: Path, baselines_from: str | None) -> RetrieverWeights:
    """A retriever whose settings are chosen on validation once, or taken from a run of baselines.

    All processes call this together.

    Args:
        task: the data.
        by: its name.
        seed: of its folds.
        folder: where the choice is kept.
        baselines_from: run folder of `recipes/baselines.py`, if any.
    """
    start, known = known_settings(RetrieverSettings((by,), seed=seed), baselines_from)
    weights = RetrieverWeights(task, start, seed)
    file, state = folder / f"{by}.json", PartialState()
    if state.is_main_process and not file.is_file():
        validation = held_out(task, task.split(VALIDATION, CHOOSE_BY), weights.index)
        sequences = list(weights.crossed.sequences.values())
        chosen = choose_retrievers(start, sequences, len(weights.index), validation, known)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_first(file, json.dumps(chosen.as_json(), indent=2))
    if torch.distributed.is_initialized():  # not after training, when the main process goes on alone
        state.wait_for_everyone()
    with readable(file):
        settings: Any = read_json(file)
        weights.settings = RetrieverSettings.from_json(settings)
    return weights
