"""A sampling job: paths of a split's examples, in shards, by whatever engine and however many processes."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.catalog.item_tokens import SEMANTIC_IDS
from anyo_rl.data.schema import DataError
from anyo_rl.evaluation.evaluator import weights_of
from anyo_rl.evidence.fusion import Engine, FusedRanker, Fusion
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import Row
from anyo_rl.run.launch import LaunchError
from anyo_rl.run.settings import Bounds
from anyo_rl.sampling.paths import SampledPath
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.ranked import ranked_paths
from anyo_rl.sampling.ray import RaySampler, connect, has_gpus
from anyo_rl.sampling.shards import ShardedJob, run_shards
from anyo_rl.sampling.transformers import CACHE_TOKENS, TransformersSampler
from anyo_rl.sampling.vllm.engine import RoundEngine, check_heads, engine_settings
from anyo_rl.stages.arguments import RankArguments, TeacherArguments
from anyo_rl.stages.candidates import items_only
from anyo_rl.stages.job import Job
from anyo_rl.teacher.tokens import Tokens

logger = logging.getLogger(__name__)


@dataclass
class SampleArguments(RankArguments):
    """What is sampled, and by what."""

    output_dir: str = field(default="runs/paths", metadata={"help": "The job's folder; processes may share it."})
    sample_split: Literal["train", "validation", "test"] = field(
        default="train", metadata={"help": "The examples that paths are sampled of."}
    )
    max_examples: int | None = field(
        default=None, metadata={"bounds": Bounds(1), "help": "Most examples, drawn by split_seed."}
    )
    n_samples: int = field(default=8, metadata={"bounds": Bounds(1), "help": "Paths of each example."})
    temperature: float = field(
        default=1.0, metadata={"bounds": Bounds(0, 100), "help": "At which they are sampled; 0 is greedy."}
    )
    top_p: float = field(
        default=1.0, metadata={"bounds": Bounds(above=0, most=1), "help": "Nucleus, above 0 and up to 1."}
    )
    seed: int = field(default=0, metadata={"help": "Of the draws, which belong to the examples."})
    n_shards: int = field(
        default=16, metadata={"bounds": Bounds(1), "help": "Parts that the work comes in; a kill costs one."}
    )
    engine: Literal["hf", "vllm", "ray"] = field(
        default="hf",
        metadata={"help": "transformers, a vLLM engine in each process, or vLLM engines in a Ray cluster."},
    )
    n_engines: int = field(default=1, metadata={"bounds": Bounds(1), "help": "vLLM engines in the Ray cluster."})
    gpu_memory_utilization: float = field(
        default=0.6,
        metadata={
            "bounds": Bounds(above=0, most=1),
            "help": "Share of a GPU's memory for a vLLM engine; the model that ranks needs its own.",
        },
    )
    log_probs: bool = field(default=False, metadata={"help": "Keep the log-probability of each token."})
    rank: bool = field(default=True, metadata={"help": "Rank the target after each path; if not, ranks are null."})
    policy: str | None = field(
        default=None, metadata={"help": "Name of the weights in the table; their path if unset."}
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Settings of the chat template, as in training (in YAML)."}
    )


def sample_job(job: Job, args: SampleArguments) -> None:
    """Does what is left of a sampling job, and returns when all of it is done, here or by other processes.

    Args:
        job: whose teacher is sampled from (the path in its `model_args`), into whose folder.
        args: the rest.

    Raises:
        DataError: the teacher cannot be sampled from with this engine.
        LaunchError: the processes would fight for a GPU.
        JobError: the folder is of another job.
    """
    items_only(job.asking.kind, "sampling of paths")
    path = job.model_args.model_name_or_path
    if not path:
        raise DataError("no model_name_or_path: name the teacher's folder, such as runs/toy/sft/teacher")
    if args.n_engines != 1 and args.engine != "ray":
        raise DataError(
            f"n_engines is {args.n_engines} and engine {args.engine}: only ray has several in one job. Start more "
            "processes on the same output_dir, or set engine to ray"
        )
    with_engine = args.engine != "hf"
    with ExitStack() as stack:
        if args.rank or not with_engine:
            teacher = stack.enter_context(job.opened(path))
            model, tokens, catalog = teacher.model, teacher.tokens, teacher.catalog
        else:
            model, (tokens, catalog) = None, job.opening.catalog(path)
        if with_engine:
            check_engine(path, job.teacher_args)
        places = job.task.places(args.sample_split, args.max_examples)
        sampling = Sampling(args.n_samples, args.temperature, args.top_p, job.max_reasoning_tokens, args.seed)
        sample_in_shards(
            job.rows_at(places, (tokens, catalog)),
            ShardedJob(
                Path(args.output_dir),
                sampling,
                policy=args.policy or path,
                n_shards=args.n_shards,
                split=args.sample_split,
                model=path,
                arguments={
                    # Draws of Ray's engines are those of vLLM's in each process.
                    "engine": "vllm" if with_engine else "hf",
                    "log_probs": args.log_probs,
                    "dtype": job.model_args.dtype,
                    "marker": tokens.marker_id,
                    "item_tokens": catalog.tree.fingerprint,
                    "weights": weights_of(path),
                    "split": args.sample_split,
                    **job.teacher_args.made_with_kind,
                },
            ),
            JobEngine(
                EngineChoice(
                    args.engine,
                    dtype=job.model_args.dtype,
                    gpu_memory_utilization=args.gpu_memory_utilization,
                    n_engines=args.n_engines,
                    log_probs=args.log_probs,
                    cache_tokens=job.teacher_args.sampling_tokens,
                ),
                path,
                model,
                tokens,
                sampling,
            ),
            catalog,
            ranker=path_ranker(catalog, model, args) if model is not None and args.rank else None,
        )


def path_ranker(catalog: Catalog, model: PreTrainedModel, args: RankArguments, fusion: Fusion | None = None) -> Engine:
    """The engine for paths. Their ranks are kept as they are, so no node is read for the sake of a band."""
    cap, budget = args.rank_cap or None, args.rank_node_budget or None
    engine = LikelihoodRanker(catalog, model, cap=cap, node_budget=budget, tie_band=0.0)
    return engine if fusion is None else fusion.of(engine)


def sample_in_shards(
    rows: Sequence[Row],
    job: ShardedJob,
    engine: "JobEngine",
    catalog: Catalog,
    *,
    ranker: Engine | None,
) -> None:
    """Samples and ranks what is left of a job, whose work all processes share; `read_paths` reads what it made.

    Args:
        rows: the examples.
        job: what is asked for.
        engine: samples; it is closed here.
        catalog: gives items their titles.
        ranker: ranks the target after each path; `None` leaves items and ranks out.

    Raises:
        JobError: the folder is of another job.
    """

    def make_paths(part: Sequence[Row]) -> list[SampledPath]:
        return ranked_paths(part, engine.sampler, engine.tokens, catalog, job.sampling, ranker=ranker)

    if ranker is not None:
        masked = any(row.excluded for row in rows)
        ranks: dict[str, object] = {
            "mask_history": masked,
            "rank_cap": ranker.cap,
            "rank_node_budget": ranker.node_budget,
        }
        if isinstance(ranker, FusedRanker):
            ranks |= {"evidence": str(ranker.evidence.maker.folder), "alpha": ranker.alpha}
        job = replace(job, arguments={**ranks, **job.arguments})
    try:
        run_shards(rows, job, make_paths, begin=engine.begin)
    finally:
        engine.close()


def check_engine(teacher: Path | str, teacher_args: TeacherArguments) -> None:
    """Refuses what vLLM cannot do here.

    Raises:
        DataError: the teacher has not the tokens that it is to answer with.
        LaunchError: the processes would fight for a GPU.
    """
    if teacher_args.item_tokens != "title" and not (Path(teacher) / SEMANTIC_IDS).is_file():
        raise DataError(f"{teacher} has no {SEMANTIC_IDS}, and vLLM cannot add their tokens: train it on them first")
    if torch.cuda.is_available() and PartialState().num_processes > 1:
        raise LaunchError(
            "processes of one launch would start their vLLM engines on the same GPU: start plain processes of "
            "recipes/sample_paths.py on one output_dir, each with its own CUDA_VISIBLE_DEVICES, or take its engine ray"
        )


@dataclass(frozen=True)
class EngineChoice:
    """What samples in a job.

    Attributes:
        kind: `hf`, `vllm` or `ray`.
        dtype: of the weights in vLLM; `None` and `auto` leave it to `engine_settings`.
        gpu_memory_utilization: share of a GPU's memory for each vLLM engine.
        n_engines: of Ray.
        log_probs: whether samples carry the log-probability of their tokens.
        cache_tokens: of transformers; see `TransformersSampler`.
    """

    kind: Literal["hf", "vllm", "ray"] = "hf"
    dtype: str | None = None
    gpu_memory_utilization: float = 0.6
    n_engines: int = 1
    log_probs: bool = False
    cache_tokens: int = CACHE_TOKENS


class JobEngine:
    """The sampler of a job, which is started once there is something to do.

    Args:
        choice: what it is.
        path: the teacher's folder, or a model id.
        model: the teacher in hand, which `hf` samples from.
        tokens: its tokenizer and marker.
        sampling: how it will be asked.
    """

    def __init__(
        self, choice: EngineChoice, path: Path | str, model: PreTrainedModel | None, tokens: Tokens, sampling: Sampling
    ) -> None:
        self.choice, self.path, self.model, self.tokens, self.sampling = choice, path, model, tokens, sampling
        self.sampler: Any = None
        self._engine: RoundEngine | None = None

    def begin(self, rows: Iterable[Row]) -> None:
        """Starts it for the rows that are left."""
        choice, tokens = self.choice, self.tokens
        if choice.kind == "hf":
            assert self.model is not None, "the teacher is in hand"
            self.sampler = TransformersSampler(self.model, tokens, choice.cache_tokens, choice.log_probs)
            return
        contexts = {row.example_id: tokens.context_ids(row.sampled_prompt) for row in rows}
        length = max(map(len, contexts.values()), default=0) + self.sampling.max_new_tokens
        if choice.kind == "ray":
            connect(n_cpus=choice.n_engines + 1)
        on_gpu = has_gpus(choice.n_engines) if choice.kind == "ray" else torch.cuda.is_available()
        settings: dict[str, Any] = {"dtype": None if choice.dtype == "auto" else choice.dtype}
        if choice.log_probs and self.sampling.temperature not in (0, 1):
            settings["logprobs_mode"] = "processed_logprobs"
        if on_gpu:
            settings["gpu_memory_utilization"] = choice.gpu_memory_utilization
        else:
            check_heads(self.path)
        if choice.kind == "vllm":
            self._engine = RoundEngine(max_model_len=length, on_gpu=on_gpu, **settings)
            self.sampler = self._engine.sampler_for(self.path, tokens, with_log_probs=choice.log_probs)
            return
        self.sampler = RaySampler(
            self.path,
            tokens,
            engine_settings(max_model_len=length, on_gpu=on_gpu, **settings),
            n_engines=choice.n_engines,
            on_gpu=on_gpu,
            with_log_probs=choice.log_probs,
        )
        self.sampler.ahead(list(contexts.values()), self.sampling, keys_B=list(contexts))

    def close(self) -> None:
        """Stops what runs beside this process, and lets go of the teacher."""
        if self._engine is not None:
            self._engine.close()
        if isinstance(self.sampler, RaySampler):
            self.sampler.close()
        self.sampler = self.model = None
