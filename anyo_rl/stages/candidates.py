"""The candidates of a run whose teachers answer about candidates: who names them, fitted as it was chosen, once."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from anyo_rl.data.schema import VALIDATION
from anyo_rl.data.sequences import held_out
from anyo_rl.data.task import Task
from anyo_rl.evidence.lists import EvidenceLists, Lists, RetrieverLists
from anyo_rl.evidence.opened import CARD, Evidence
from anyo_rl.evidence.retrievers import KNN, RetrieverSettings, choose_retrievers
from anyo_rl.evidence.reweighing import RetrieverWeights
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.orders import OrderRanker
from anyo_rl.reasoning.kinds.kind import Kind
from anyo_rl.reasoning.kinds.questions import Candidates, LikedQuestions, OrderQuestions, Questions
from anyo_rl.run.files import read_json, readable, write_first
from anyo_rl.run.settings import UsageError
from anyo_rl.stages.evidence import CHOOSE_BY, known_settings

EVIDENCE = "evidence"
ANSWERS = {"item": "an item", "order": "an order", "yes_no": "yes or no", "items": "items"}
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
        source = self.kind.listed.candidates_from or (EVIDENCE if self.evidence else KNN)
        if source == EVIDENCE and not self.evidence:
            raise UsageError("candidates_from is evidence: name the folder of recipes/rank_evidence.py (evidence)")
        return source

    def made_with(self) -> dict[str, object]:
        """What answers depend on besides the teacher, ready for JSON."""
        found: dict[str, object] = {"reasoning_kind": self.kind.name, "candidates_from": self.source}
        for name in ("listed", "liked"):
            settings = getattr(self.kind, name)
            found[name] = None if settings is None else asdict(settings)
        of_retriever = self.folder / FOLDER / f"{self.source}.json"
        file = Path(str(self.evidence)) / CARD if self.source == EVIDENCE else of_retriever
        if file.is_file():
            found["named_by"] = read_json(file)
        return found

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


def check_candidates(kind: Kind, ranker: str, fusion_alpha: float | None = None) -> None:
    """Refuses settings that do not go with the type of a kind's answer.

    Args:
        kind: of reasoning.
        ranker: of the reward.
        fusion_alpha: weight of a teacher beside evidence, where it is given.

    Raises:
        UsageError: they do not.
    """
    if ranker == OrderRanker.kind and kind.answer != "order":
        raise UsageError(
            f"ranker is {ranker}, and reasoning_kind {kind.name} answers with {ANSWERS[kind.answer]}: set "
            "reasoning_kind to listwise, or ranker to likelihood"
        )
    if kind.listed is None:
        return
    fitting = [LikelihoodRanker.kind, *([OrderRanker.kind] if kind.answer == "order" else [])]
    if ranker not in fitting:
        raise UsageError(
            f"ranker is {ranker}, and reasoning_kind {kind.name} answers with {ANSWERS[kind.answer]}: set ranker to "
            f"{' or '.join(fitting)}"
        )
    if fusion_alpha is not None:
        raise UsageError(
            f"fusion_alpha is set, and reasoning_kind {kind.name} reads evidence as candidates: leave it out"
        )


def items_only(kind: Kind, what: str) -> None:
    """Refuses a stage that is made for answers that are items, where a kind answers about candidates.

    Raises:
        UsageError: it does.
    """
    if kind.listed is not None:
        raise UsageError(
            f"{what} takes teachers that answer with an item, and reasoning_kind {kind.name} answers with "
            f"{ANSWERS[kind.answer]}: SFT, GRPO, evaluation and the teacher cache take it"
        )


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
