"""The teacher cache of a data set: who answers its training histories, and everything that says so in the card.

Besides the cache (`anyo_rl.distill.cache`) its folder has `choice-….json`: what was chosen on validation, so that a
killed run goes on with it.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
from accelerate.utils import broadcast_object_list

from anyo_rl.catalog.opening import Teacher
from anyo_rl.data.schema import VALIDATION
from anyo_rl.data.sequences import held_out, training_positions
from anyo_rl.data.task import Task
from anyo_rl.distill.cache import Card, Labels, TeacherCache, data_of, write_cache
from anyo_rl.distill.reasoner import Encoder, Reasoner
from anyo_rl.distill.scorers import CHOOSE_BY, Candidates, CrossFitted, hash_of_files
from anyo_rl.encoders.hidden_states import minilm_encoder, teacher_encoder
from anyo_rl.evidence.fusion import AlphaChoice, FusedRanker
from anyo_rl.evidence.opened import Evidence
from anyo_rl.evidence.retrievers import RetrieverSettings, choose_retrievers
from anyo_rl.evidence.softening import Softening
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.run.files import read_json, readable, write_first
from anyo_rl.run.launch import whole_weights
from anyo_rl.run.settings import Bounds, UsageError
from anyo_rl.run.shards import hash_of
from anyo_rl.search.answers import Mode
from anyo_rl.stages.evidence import known_settings
from anyo_rl.stages.fusion import alpha_of, made_with_evidence, open_evidence
from anyo_rl.stages.job import Job
from anyo_rl.stages.reranked import reranker
from anyo_rl.stages.written import trained_ranker, writing_of

logger = logging.getLogger(__name__)

EVIDENCE, TEACHER = "evidence", "teacher"
WEIGHTS = ("*.safetensors", "config.json", "adapter_config.json")
TOKEN_BYTES = 8  # of the text of a token: twice what English has on average
Source = Literal["item_knn", "ease", "sasrec", "popularity", "evidence", "teacher"]
Label = Callable[[pl.DataFrame], Labels]


@dataclass
class CacheArguments:
    """Who answers which histories."""

    output_dir: str = field(
        default="runs/toy/cache", metadata={"help": "The cache's folder; processes may share it.", "free": True}
    )
    source: Source = field(
        default="item_knn",
        metadata={
            "help": "Who answers: a baseline, fitted without the fold of users that asks; the evidence of --evidence; "
            "or the teacher of a run, together with the evidence where that is named."
        },
    )
    top_k: int = field(default=100, metadata={"bounds": Bounds(1), "help": "Items kept of each answer."})
    last_positions: int | None = field(
        default=None, metadata={"bounds": Bounds(1), "help": "Latest histories of each user; all if unset."}
    )
    n_folds: int = field(default=5, metadata={"bounds": Bounds(2), "help": "Folds of training users, for baselines."})
    seed: int = field(
        default=0,
        metadata={"bounds": Bounds(0, 2**32 - 1), "help": "Of folds, or of sampled reasonings (the run's if unset)."},
    )
    run_dir: str | None = field(default=None, metadata={"help": "Run folder of the teacher that answers."})
    stage: str = field(
        default="grpo", metadata={"help": "Which of its teachers: the one in <run_dir>/<stage>/teacher."}
    )
    mode: Mode = field(
        default="greedy",
        metadata={
            "help": "How the teacher answers: plain, at once; greedy, after one reasoning; mixture, of several."
        },
    )
    rank_cap: int = field(
        default=1000,
        metadata={"bounds": Bounds(0), "help": "A teacher's ranks beyond it are not told apart; 0 for no cap."},
    )
    states: bool = field(default=True, metadata={"help": "Keep the teacher's decision states."})
    reasoning_vectors: Literal["teacher", "minilm", "none"] = field(
        default="teacher",
        metadata={
            "help": "Keep a vector of each reasoning's text: the mean of the teacher's own states over it; of "
            "all-MiniLM-L6-v2 (the extra minilm); or none."
        },
    )
    plan: bool = field(default=False, metadata={"help": "Say how large the cache will be, and end.", "free": True})


def cache_of_scores(task: Task, args: CacheArguments, evidence: str | None, baselines_from: str | None) -> None:
    """Caches the answers of a baseline, or of evidence; what is there is not made again.

    Args:
        task: the data.
        args: who, how many, where to.
        evidence: run folder of `recipes/rank_evidence.py`.
        baselines_from: run folder of `recipes/baselines.py`, whose settings are taken.

    Raises:
        UsageError: the evidence is not there, not finished or of other data; the folder is of another cache.
    """
    index = {item: place for place, item in enumerate(task.interactions.items["item_id"].to_list())}
    k = min(args.top_k, len(index))
    histories = training_positions(task, index, args.last_positions)
    if args.source == EVIDENCE:
        if evidence is None:
            raise UsageError("source is evidence; name its run folder: --evidence runs/…/evidence")
        candidates = Candidates(Evidence.open(Path(evidence), task, args.seed, or_first=True))
        card, label = _of_evidence(candidates, data_of(task), k)
    else:
        card, label, histories = _of_baseline(task, args, baselines_from, histories)
    write(args, card, histories, label)


def cache_of_teacher(job: Job, args: CacheArguments) -> None:
    """Caches the answers of a run's teacher, with the evidence where the job names it; all processes call this.

    Args:
        job: of the teacher's run.
        args: which teacher, how it is asked, where to.

    Raises:
        UsageError: there is no such teacher, or its evidence does not fit; the folder is of another cache.
    """
    path = job.teacher_folder(args.stage)
    if not path.is_dir():
        raise UsageError(f"found no teacher in {path}: run_dir and stage are to name a finished one")
    evidence = open_evidence(job)
    with job.opened(path) as teacher, whole_weights():
        tokens, catalog, model = teacher.tokens, teacher.catalog, teacher.model
        how = job.how(args.mode, seed=args.seed, top_k=min(args.top_k, len(catalog)))
        encoder = _encoder(args, teacher) if args.mode != "plain" else None
        engine = LikelihoodRanker(catalog, model, cap=args.rank_cap or None)
        asked = Reasoner(job.task, teacher, engine, job.sampler(model, tokens), how, args.states, encoder, job.asking)
        card = Card(
            TEACHER,
            how.top_k,
            hash_of_files([file for pattern in WEIGHTS for file in sorted(path.glob(pattern))]),
            data_of(job.task, shown=True),
            settings=_of_teacher(job, args, asked),
            state_dim=asked.dim if args.states else 0,
            vector_dim=0 if encoder is None else encoder([" ok"]).shape[1],
            text_bytes=TOKEN_BYTES * how.own_sampling.max_new_tokens if asked.reasons else 0,
        )
        if job.asking.questions is not None:
            asked, card = _about_candidates(asked, card, job, Path(args.output_dir))
        elif evidence is not None:
            asked, card = _with_evidence(asked, card, evidence, job, Path(args.output_dir))
        write(args, card, training_positions(job.task, catalog.index, args.last_positions), asked.label)


def write(args: CacheArguments, card: Card, histories: pl.DataFrame, label: Label) -> None:
    """Says how large the cache is going to be, and makes what is left of it unless that was all that was asked."""
    if histories.is_empty():
        raise UsageError("there is no training history: every training example is its user's first event")
    logger.info("%s", card.told(len(histories)))
    if not args.plan:
        write_cache(Path(args.output_dir), card, histories, label)


def chosen_once(folder: Path, asked: Mapping[str, object], choose: Callable[[], Mapping[str, object]]) -> Any:
    """What was chosen on validation, kept where it was asked for with the very same.

    Args:
        folder: of the cache.
        asked: what the choice depends on, ready for JSON.
        choose: makes it, ready for JSON.
    """
    file = folder / f"choice-{hash_of(asked)[:8]}.json"
    (there,) = broadcast_object_list([file.is_file()])  # processes of one launch choose together
    if not there:
        made = choose()
        folder.mkdir(parents=True, exist_ok=True)
        write_first(file, json.dumps(made, indent=2))
    return read_json(file)


def _of_evidence(candidates: Candidates, data: Mapping[str, str], k: int) -> tuple[Card, Label]:
    softening = candidates.evidence.ranker.softening
    settings = {**made_with_evidence(candidates.evidence), "by_spread": softening.by_spread}
    card = Card(EVIDENCE, k, candidates.fingerprint(), data, softening.temperature, settings)
    return card, lambda histories: candidates.label(histories, k)


def _of_baseline(
    task: Task, args: CacheArguments, baselines_from: str | None, histories: pl.DataFrame
) -> tuple[Card, Label, pl.DataFrame]:
    start, known = known_settings(RetrieverSettings((args.source,)), baselines_from)
    asked = {"source": args.source, "start": start.as_json(), "known": known, "top_k": args.top_k}
    asked |= {"data": data_of(task), "n_folds": args.n_folds, "seed": args.seed}
    baseline = CrossFitted(task, start, args.n_folds, args.seed)
    k = min(args.top_k, len(baseline.index))

    def choose() -> Mapping[str, object]:
        validation = held_out(task, task.split(VALIDATION, CHOOSE_BY), baseline.index)
        sequences = list(baseline.crossed.sequences.values())
        baseline.settings = choose_retrievers(start, sequences, len(baseline.index), validation, known)
        return {"retriever": baseline.settings.as_json(), "softening": asdict(baseline.choose_softening(k))}

    raw = chosen_once(Path(args.output_dir), asked, choose)
    with readable(Path(args.output_dir)):
        baseline.settings, softening = RetrieverSettings.from_json(raw["retriever"]), Softening(**raw["softening"])
    own = baseline.settings.as_json()
    settings = {"settings": own.get(args.source, {}), "by_spread": softening.by_spread}
    settings |= {"n_folds": args.n_folds, "seed": args.seed}
    card = Card(args.source, k, None, data_of(task), softening.temperature, settings)
    return card, lambda rows: baseline.label(rows, k, softening), baseline.in_order(histories)


def _of_teacher(job: Job, args: CacheArguments, asked: Reasoner) -> dict[str, object]:
    """What the answers of a teacher depend on besides its weights and the data."""
    found: dict[str, object] = {
        "stage": args.stage,
        "mode": args.mode,
        "marker": asked.teacher.tokens.marker_id,
        "item_tokens": asked.teacher.catalog.tree.fingerprint,
        "chat_template_kwargs": dict(job.chat_template_kwargs or {}),
        "prompt_style": job.task.args.prompt_style,
        "history_tokens": job.task.args.history_tokens,
        "history_as": job.task.args.history_as,
        "dtype": job.model_args.dtype,
        "rank_cap": args.rank_cap,
        **job.teacher_args.made_with_kind,
    }
    if asked.reasons:
        found |= {"sampling": asdict(asked.how.own_sampling), "reasoning_vectors": args.reasoning_vectors}
    return found


def _with_evidence(asked: Reasoner, card: Card, evidence: Evidence, job: Job, folder: Path) -> tuple[Reasoner, Card]:
    """The same teacher fused with evidence; its weight is chosen on validation, and all processes call this."""
    assert isinstance(asked.ranker, LikelihoodRanker), "it was by itself"
    engine, teacher = asked.ranker, asked.teacher
    settings = {**card.settings, **made_with_evidence(evidence), "scores": Candidates(evidence).fingerprint()}

    def choose() -> Mapping[str, object]:
        return asdict(alpha_of(job, teacher, evidence, asked.how))

    raw = chosen_once(folder, {"weights": card.weights, "data": dict(card.data), **settings}, choose)
    with readable(folder):
        alpha = AlphaChoice(**raw).alpha
    fused = replace(asked, ranker=FusedRanker(engine, evidence, alpha))
    return fused, replace(card, settings={**settings, "alpha": alpha})


def _about_candidates(asked: Reasoner, card: Card, job: Job, folder: Path) -> tuple[Reasoner, Card]:
    """The same teacher asked about candidates; a temperature for places is chosen on validation."""
    writes = writing_of(job.teacher_args, trained_ranker(job)) != "none"
    how = replace(asked.how, keep_paths=False)
    asked = replace(asked, reranker=reranker(job, asked.teacher, how, writes=writes))
    settings = {**card.settings, **job.asks.made_with(), "written": writes}

    def choose() -> Mapping[str, object]:
        return asdict(asked.choose_softening(job.task.places(VALIDATION, job.task.args.max_validation)))

    raw = chosen_once(folder, {"weights": card.weights, "data": dict(card.data), **settings}, choose)
    with readable(folder):
        softening = Softening(**raw)
    card = replace(card, settings={**settings, "by_spread": softening.by_spread}, temperature=softening.temperature)
    return replace(asked, softening=softening), card


def _encoder(args: CacheArguments, teacher: Teacher) -> Encoder | None:
    if args.reasoning_vectors == "none":
        return None
    if args.reasoning_vectors == "teacher":
        return teacher_encoder(teacher.model, teacher.tokens.tokenizer, pooling="mean")
    try:
        return minilm_encoder(teacher.model.device)
    except ModuleNotFoundError as error:
        raise UsageError(str(error)) from error


def told(cache: TeacherCache) -> str:
    """What a finished cache holds, in a line."""
    first, ten = ((cache.rank_B <= most).mean() for most in (1, 10))
    return (
        f"{len(cache):,} histories of {cache.card.source}, {cache.card.top_k} items each, temperature "
        f"{cache.card.temperature:.3g}; target first in {first:.1%}, in the first ten in {ten:.1%}"
    )
