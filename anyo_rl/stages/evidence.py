"""The evidence of a data set: retrievers chosen on validation, evidence out of fold, a ranker, and what it is worth.

A run folder holds, besides what every run folder holds, the tables of `anyo_rl.evidence.make` and

    evidence.json, vectors.safetensors   what it was made with: `anyo_rl.evidence.opened` opens it
    seed-S/ranker.txt, ranker.json       the ranker, as LightGBM's text
    seed-S/choice.json                   what was tried on validation
    seed-S/worth.json                    what each feature is worth
    seed-S/scores/                       log-scores of the candidates of each table
    seed-S/answers/                      answers to the test examples, and those of baselines
    evaluation.json, evaluation.md       means over seeds with intervals over users
    evidence.md                          recall, what was tried, features
"""

import json
import logging
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anyo_rl.data.schema import TEST, VALIDATION
from anyo_rl.data.sequences import held_out
from anyo_rl.data.task import Task
from anyo_rl.evaluation.baselines import Baseline, evaluate_oracles, keep_baseline
from anyo_rl.evaluation.evaluator import Evaluation
from anyo_rl.evaluation.stages import EVIDENCE
from anyo_rl.evaluation.summarise import write_seeds
from anyo_rl.evaluation.summary import Summary
from anyo_rl.evaluation.table import markdown_cells, markdown_table
from anyo_rl.evidence.features import Gatherer
from anyo_rl.evidence.make import Maker, seed_folder
from anyo_rl.evidence.opened import VECTORS, Evidence, keep_scores, scores_file, write_card
from anyo_rl.evidence.ranker import CARD, EvidenceRanker, Groups, RankerSettings, boosting, choose_ranker, train_ranker
from anyo_rl.evidence.retrievers import (
    EASE,
    KNN,
    NAMES,
    POPULARITY,
    SASREC,
    TEXT,
    VIEWS,
    RetrieverSettings,
    choose_retrievers,
)
from anyo_rl.evidence.worth import Worth, recalls, request_ms, worth
from anyo_rl.run.files import read_json, readable, write_whole
from anyo_rl.run.settings import Bounds, UsageError
from anyo_rl.stages.baselines import RANKER
from anyo_rl.stages.vectors import title_vectors
from anyo_rl.students.ease import EaseSettings
from anyo_rl.students.item_knn import KnnSettings

logger = logging.getLogger(__name__)

RETRIEVERS = "retrievers.json"
MOST_CANDIDATES = 1000
CHOOSE_BY = 5000  # validation examples, at most, that settings of retrievers are chosen by


@dataclass
class EvidenceArguments:
    """Which retrievers, how many candidates, and how the ranker is trained."""

    output_dir: str = field(default="runs/toy-evidence", metadata={"help": "The run folder.", "free": True})
    retrievers: list[str] = field(
        default_factory=lambda: list(RetrieverSettings().names),
        metadata={"help": f"Some of {', '.join(NAMES)}; the first orders what is no candidate."},
    )
    lists: list[str] | None = field(
        default=None,
        metadata={"help": "Retrievers whose top lists are candidates; all but item_knn_last and _long if unset."},
    )
    n_candidates: int = field(
        default=100, metadata={"bounds": Bounds(1, MOST_CANDIDATES), "help": "Most candidates of an example."}
    )
    text: Literal["tfidf", "minilm", "none"] = field(
        default="tfidf",
        metadata={"help": "Vectors of titles: of their words; of all-MiniLM-L6-v2 (the extra minilm); or none."},
    )
    n_folds: int = field(default=5, metadata={"bounds": Bounds(2), "help": "Folds of training users."})
    positions: list[int] = field(
        default_factory=lambda: [3, 5, 10, 20],
        metadata={"bounds": Bounds(1), "help": "Last examples of each training user to learn from: what is tried."},
    )
    leaves: int = field(default=15, metadata={"bounds": Bounds(2), "help": "Leaves of a tree."})
    learning_rate: float = field(default=0.05, metadata={"bounds": Bounds(above=0), "help": "Of boosting."})
    most_rounds: int = field(default=1000, metadata={"bounds": Bounds(1), "help": "Trees, at most."})
    patience: int = field(
        default=50, metadata={"bounds": Bounds(1), "help": "Trees without a gain on validation before it stops."}
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "Seeds of folds and ranker."})
    training_scores: bool = field(
        default=False,
        metadata={
            "help": "Also score training examples, by a ranker for each fold that never saw its users: for fusion and "
            "distillation.",
            "free": True,
        },
    )
    baselines_from: str | None = field(
        default=None,
        metadata={
            "help": "Run folder of recipes/baselines.py on the same data: its answers stand in the table, and its "
            "settings of item-kNN, EASE and SASRec are taken where none are chosen yet.",
            "free": True,
        },
    )

    @property
    def candidate_lists(self) -> tuple[str, ...]:
        """Retrievers whose top lists are candidates."""
        return tuple(self.lists or [name for name in self.retrievers if name not in VIEWS])

    def ranker(self, seed: int) -> RankerSettings:
        """How a seed's ranker is trained."""
        return RankerSettings(self.leaves, self.learning_rate, self.most_rounds, self.patience, seed)

    def __post_init__(self) -> None:
        if not self.retrievers or len(set(self.retrievers)) < len(self.retrievers):
            raise UsageError(f"retrievers is {self.retrievers}; expected one or more, each once")
        if unknown := [name for name in self.retrievers if name not in NAMES]:
            raise UsageError(f"retrievers has {', '.join(unknown)}; expected some of {', '.join(NAMES)}")
        if unknown := [name for name in self.candidate_lists if name not in self.retrievers]:
            raise UsageError(f"lists has {', '.join(unknown)}; expected some of the retrievers")
        if not self.candidate_lists:
            raise UsageError("no retriever gives a list of candidates; name one in lists")
        if self.text == "none" and TEXT in self.retrievers:
            raise UsageError("retrievers has text, and text is none; leave one of the two out")
        if self.training_scores and self.n_folds < 3:
            raise UsageError(
                "training_scores with n_folds 2: what scores a fold learns from evidence without that fold and the "
                "other, and nobody is left; expected 3 folds or more"
            )
        if not self.seeds or not self.positions:
            raise UsageError("seeds or positions is empty; expected one or more of each")
        boosting()


def rank_by_evidence(task: Task, args: EvidenceArguments) -> Summary:
    """Makes the evidence, learns to rank it and evaluates; what is finished is not done again.

    Args:
        task: the data.
        args: what to do, and where.

    Returns:
        The means over seeds, as `evaluation.json` has them.
    """
    folder = Path(args.output_dir)
    maker = _maker(task, args)
    item_ids = list(maker.index)
    test = task.split(TEST, task.args.max_test)
    evaluations = {seed: Evaluation(seed_folder(folder, seed), task, item_ids, test, seed) for seed in args.seeds}
    held = {split: maker.held_out(split) for split in (VALIDATION, TEST)}
    write_card(maker, args.seeds)
    for seed, evaluation in evaluations.items():
        ranker = _ranker(maker, args, seed)
        for split, table in held.items():
            if not scores_file(folder, seed, split).is_file():
                keep_scores(scores_file(folder, seed, split), table, ranker)
        if args.training_scores:
            _score_training(maker, ranker, seed)
        evidence = Evidence(maker, seed, ranker)

        evaluation.keep(EVIDENCE.name, "plain", partial(evaluation.score_answers, evidence.scores_of_rows))
        if args.baselines_from is not None:
            evaluation.take_over(Path(args.baselines_from))
        else:
            keep_baseline(evaluation, POPULARITY, lambda: maker.full.popularity)
            if KNN in maker.settings.names:
                keep_baseline(evaluation, KNN, lambda: maker.full.scorers[KNN])
        evaluate_oracles(evaluation)
    summary = write_seeds(folder, evaluations, RANKER)
    write_whole(folder / "evaluation.md", markdown_table(summary))
    write_whole(folder / "evidence.md", _report(maker, args))
    return summary


def _maker(task: Task, args: EvidenceArguments) -> Maker:
    """The maker of a run's evidence; retrievers are chosen, and titles read, once."""
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    vectors = None if args.text == "none" else title_vectors(folder / VECTORS, task, args.text)
    how = Gatherer(args.n_candidates, args.candidate_lists, vectors)
    maker = Maker(folder, task, RetrieverSettings(tuple(args.retrievers)), how, args.text, args.n_folds)
    file = folder / RETRIEVERS
    if not file.is_file():
        start, known = known_settings(maker.settings, args.baselines_from)
        validation = held_out(task, task.split(VALIDATION, CHOOSE_BY), maker.index)
        sequences = list(maker.sequences.values())
        chosen = choose_retrievers(start, sequences, len(maker.index), validation, known)
        write_whole(file, json.dumps(chosen.as_json(), indent=2))
    with readable(file):
        return replace(maker, settings=RetrieverSettings.from_json(read_json(file)))


def known_settings(settings: RetrieverSettings, baselines_from: str | None) -> tuple[RetrieverSettings, list[str]]:
    """Settings that a run of baselines chose on the same validation examples, and whose they are."""
    found, known = settings, []
    for name in (KNN, EASE, SASREC) if baselines_from is not None else ():
        file = Path(str(baselines_from)) / "chosen" / f"{name}.json"
        if not file.is_file():
            continue
        with readable(file):
            chosen: Any = Baseline(**read_json(file)).settings
            if name == KNN:
                found = replace(found, item_knn=KnnSettings(**chosen))
            elif name == EASE:
                found = replace(found, ease=EaseSettings(**chosen))
            else:
                found = replace(found, sasrec=replace(found.sasrec, **chosen))
        known.append(name)
    return found, known


def _ranker(maker: Maker, args: EvidenceArguments, seed: int) -> EvidenceRanker:
    """The ranker of a seed, made with what it tells of its features where it is not there."""
    folder = seed_folder(maker.folder, seed)
    if not (folder / "worth.json").is_file():
        train, validation = maker.training(seed), maker.held_out(VALIDATION)
        if not (folder / CARD).is_file():
            logger.info("seed %d: learning to rank %d candidates each", seed, args.n_candidates)
            chosen, trials = choose_ranker(maker.learned(train, seed), validation, args.positions, args.ranker(seed))
            write_whole(folder / "choice.json", json.dumps(trials))
            chosen.save(folder)
        told = worth(maker, EvidenceRanker.load(folder), validation, train, maker.drift(seed))
        write_whole(folder / "worth.json", json.dumps([asdict(one) for one in told], indent=2))
    return EvidenceRanker.load(folder)


def _score_training(maker: Maker, ranker: EvidenceRanker, seed: int) -> None:
    """Scores training examples of each fold by a ranker of its own, with what was chosen for that of all users."""
    for fold, table in enumerate(maker.training(seed)):
        file = scores_file(maker.folder, seed, f"fold-{fold}")
        if not file.is_file():
            learned = maker.without_fold(seed, fold, ranker.positions)
            groups = Groups.of([(one, later_R < ranker.positions) for one, later_R in learned], seed)
            own = train_ranker(groups, ranker.names, ranker.settings, rounds=ranker.rounds)
            keep_scores(file, table, replace(own, softening=ranker.softening))


def _report(maker: Maker, args: EvidenceArguments) -> str:
    """Recall, what was tried and what features are worth, as Markdown."""
    file = maker.folder / "recall.json"
    ks = sorted({k for k in (10, 20, 50, 100, 200, 500) if k < args.n_candidates} | {args.n_candidates})
    test = held_out(maker.task, maker.task.split(TEST, maker.task.args.max_test), maker.index)
    if not file.is_file():
        write_whole(file, json.dumps({"recall": recalls(maker, test, ks), "request_ms": request_ms(maker, test)}))
    found = read_json(file)
    rows = [[name, *(f"{value:.4f}" for value in of_k)] for name, of_k in found["recall"].items()]
    parts = ["Recall on test:", "\n".join(markdown_cells(["", *(f"@{k}" for k in ks)], rows))]
    trials = [
        [f"{seed}", f"{n}", f"{rounds}", f"{value:.4f}"]
        for seed in args.seeds
        for n, rounds, value in read_json(seed_folder(maker.folder, seed) / "choice.json")
    ]
    parts += ["Tried:", "\n".join(markdown_cells(["Seed", "Positions", "Rounds", "Validation NDCG@10"], trials))]
    worths = [[Worth(**one) for one in read_json(seed_folder(maker.folder, s) / "worth.json")] for s in args.seeds]
    cells = []
    for of_seeds in zip(*worths, strict=True):
        values = [[one.gain, one.permuted, one.drift, one.fold_drift] for one in of_seeds]
        gain, permuted, drift, fold_drift = np.mean(values, axis=0)
        shares = [f"{gain:.1%}", f"{permuted:.1%}", f"{drift:.3f}", f"{fold_drift:.3f}"]
        cells.append([of_seeds[0].name, of_seeds[0].meaning, of_seeds[0].cost, *shares])
    header = ["Feature", "What it is", "Cost", "Gain", "Lost without", "Drift", "Of it by folds"]
    parts += ["Features, means over seeds:", "\n".join(markdown_cells(header, cells))]
    median, most = found["request_ms"]
    parts.append(f"The features of one request take {median:.1f} ms, at most {most:.1f} ms in 95 of 100.")
    return "\n\n".join(parts) + "\n"
