"""A sampling job: paths of a split's examples, in shards, by whatever engine and however many processes."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from transformers import PreTrainedModel
from trl import ModelConfig

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.catalog.item_tokens import SEMANTIC_IDS, semantic_ids
from anyo_rl.data.schema import DataError
from anyo_rl.data.task import Task
from anyo_rl.evaluation.evaluator import weights_of
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import make_rows
from anyo_rl.run.launch import LaunchError
from anyo_rl.sampling.ranked import ranked_paths, sampling_contexts
from anyo_rl.sampling.ray import RaySampler, connect, has_gpus
from anyo_rl.sampling.shards import Rows, run_shards
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.sampling.vllm.engine import RoundEngine, check_heads
from anyo_rl.stages.arguments import RankArguments, TeacherArguments
from anyo_rl.stages.opening import open_teacher
from anyo_rl.teacher.load import load_teacher, load_tokenizer
from anyo_rl.teacher.tokens import Tokens

logger = logging.getLogger(__name__)


@dataclass
class SampleArguments(RankArguments):
    """What is sampled, and by what."""

    output_dir: str = field(default="runs/paths", metadata={"help": "The job's folder; processes may share it."})
    sample_split: Literal["train", "validation", "test"] = field(
        default="train", metadata={"help": "The examples that paths are sampled of."}
    )
    max_examples: int | None = field(default=None, metadata={"help": "Most examples, drawn by split_seed."})
    n_samples: int = field(default=8, metadata={"help": "Paths of each example."})
    temperature: float = field(default=1.0, metadata={"help": "At which they are sampled; 0 is greedy."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus, above 0 and up to 1."})
    seed: int = field(default=0, metadata={"help": "Of the draws, which belong to the examples."})
    n_shards: int = field(default=16, metadata={"help": "Parts that the work comes in; a kill costs one."})
    engine: Literal["hf", "vllm", "ray"] = field(
        default="hf",
        metadata={"help": "transformers, a vLLM engine in each process, or vLLM engines in a Ray cluster."},
    )
    n_engines: int = field(default=1, metadata={"help": "vLLM engines in the Ray cluster."})
    gpu_memory_utilization: float = field(
        default=0.6,
        metadata={"help": "Share of a GPU's memory for a vLLM engine; the model that ranks needs its own."},
    )
    log_probs: bool = field(default=False, metadata={"help": "Keep the log-probability of each token."})
    rank: bool = field(default=True, metadata={"help": "Rank the target after each path; if not, ranks are null."})
    policy: str | None = field(
        default=None, metadata={"help": "Name of the weights in the table; their path if unset."}
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "What the chat template is told, as in training (in YAML)."}
    )


def sample_job(task: Task, model_args: ModelConfig, teacher_args: TeacherArguments, args: SampleArguments) -> None:
    """Does what is left of a job, and returns when all of it is done, here or by other processes.

    Args:
        task: the data.
        model_args: the teacher, and how it is loaded.
        teacher_args: the marker and the length of a reasoning.
        args: the rest.

    Raises:
        DataError: the teacher cannot be sampled from with this engine.
        LaunchError: the processes would fight for a GPU.
        JobError: the folder is of another job.
    """
    folder, teacher = Path(args.output_dir), model_args.model_name_or_path
    if not teacher:
        raise DataError("no model_name_or_path: name the teacher's folder, such as runs/toy/sft/teacher")
    if args.n_engines != 1 and args.engine != "ray":
        raise DataError(
            f"n_engines is {args.n_engines} and engine {args.engine}: only ray has several in one job. Start more "
            "processes on the same output_dir, or set engine to ray"
        )
    with_engine = args.engine != "hf"
    model = None
    if args.rank or not with_engine:
        open_it = partial(open_teacher, folder, task, teacher, model_args, teacher_args, args.seed)
        opened = open_it(args.chat_template_kwargs)
        model, tokens, catalog = opened.model, opened.tokens, opened.catalog
    else:
        tokens = Tokens.of(load_tokenizer(model_args), teacher_args.marker_token, args.chat_template_kwargs)
        ids = semantic_ids(folder, task, teacher_args, teacher, partial(load_teacher, model_args), args.seed)
        catalog = build_catalog(task.interactions.items, tokens, ids)
    if with_engine:
        check_engine(teacher, teacher_args)
    rows = make_rows(task, task.split(args.sample_split, args.max_examples), catalog, tokens)
    asked: dict[str, Any] = {
        "n": args.n_samples,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "max_new_tokens": teacher_args.max_reasoning_tokens,
        "seed": args.seed,
    }
    ranker = path_ranker(catalog, model, args) if model is not None and args.rank else catalog
    engine = JobEngine(
        args.engine,
        teacher,
        model,
        tokens,
        asked,
        dtype=model_args.dtype,
        gpu_memory_utilization=args.gpu_memory_utilization,
        n_engines=args.n_engines,
        log_probs=args.log_probs,
    )
    sample_in_shards(
        rows,
        folder,
        engine,
        ranker,
        tokens,
        asked,
        mask_history=task.args.mask_history,
        n_shards=args.n_shards,
        split=args.sample_split,
        policy=args.policy or teacher,
        model=teacher,
        arguments={
            # Draws of Ray's engines are those of vLLM's in each process.
            "engine": "vllm" if with_engine else "hf",
            "log_probs": args.log_probs,
            "dtype": model_args.dtype,
            "marker": tokens.marker_id,
            "item_tokens": catalog.tree.fingerprint,
            "weights": weights_of(teacher),
            "split": args.sample_split,
        },
    )


def path_ranker(catalog: Catalog, model: PreTrainedModel, args: RankArguments) -> LikelihoodRanker:
    """The engine for paths. Their ranks are kept as they are, so no node is read for the sake of a band."""
    cap, budget = args.rank_cap or None, args.rank_node_budget or None
    return LikelihoodRanker(catalog, model, cap=cap, node_budget=budget, tie_band=0.0)


def sample_in_shards(
    rows: Rows,
    folder: Path,
    engine: "JobEngine",
    ranker: LikelihoodRanker | Catalog,
    tokens: Tokens,
    asked: Mapping[str, Any],
    *,
    mask_history: bool,
    n_shards: int,
    split: str,
    policy: str,
    model: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Samples and ranks what is left of a job, whose work all processes share; `read_paths` reads what it made.

    Args:
        rows: the examples (`anyo_rl.reasoning.rows.make_rows`).
        folder: of the job.
        engine: samples; it is closed here.
        ranker: ranks the target after each path; a catalog alone leaves items and ranks out.
        tokens: the teacher's tokenizer and marker.
        asked: n, temperature, top_p, max_new_tokens and seed.
        mask_history: whether items of the history are left out of the ranking.
        n_shards: parts of the work.
        split: of the rows, for the table.
        policy: name of the weights, for the table.
        model: the teacher, for the table.
        arguments: what else the job belongs to.

    Raises:
        JobError: the folder is of another job.
    """

    def make_paths(part: Rows) -> list[dict[str, Any]]:
        paths = ranked_paths(part, engine.sampler, ranker, tokens, mask_history=mask_history, **asked)
        return [{**path, "split": split, "model": model} for path in paths]

    ranks: dict[str, Any] = {}
    if not isinstance(ranker, Catalog):
        ranks = {"mask_history": mask_history, "rank_cap": ranker.cap, "rank_node_budget": ranker.node_budget}
    try:
        run_shards(
            rows,
            folder,
            n_shards=n_shards,
            n_samples=asked["n"],
            policy=policy,
            arguments={**asked, **ranks, **(arguments or {})},
            make_paths=make_paths,
            begin=engine.begin,
        )
    finally:
        engine.close()


def check_engine(teacher: Path | str, teacher_args: TeacherArguments) -> None:
    """Refuses what vLLM cannot do here.

    Raises:
        DataError: the teacher has not the tokens that it is to answer with.
        LaunchError: the processes would fight for a GPU.
    """
    if teacher_args.item_tokens == "semantic_id" and not (Path(teacher) / SEMANTIC_IDS).is_file():
        raise DataError(f"{teacher} has no {SEMANTIC_IDS}, and vLLM cannot add their tokens: train it on them first")
    if torch.cuda.is_available() and PartialState().num_processes > 1:
        raise LaunchError(
            "processes of one launch would start their vLLM engines on the same GPU: start plain processes of "
            "recipes/sample_paths.py on one output_dir, each with its own CUDA_VISIBLE_DEVICES, or take its engine ray"
        )


class JobEngine:
    """The sampler of a job, which is started once there is something to do.

    Args:
        kind: `hf`, `vllm` or `ray`.
        teacher: its folder, or a model id.
        model: the teacher in hand, which `hf` samples from.
        tokens: its tokenizer and marker.
        asked: n, temperature, top_p, max_new_tokens and seed, as samplers take them.
        dtype: of the weights in vLLM; `None` and `auto` leave it to `engine_settings`.
        gpu_memory_utilization: share of a GPU's memory for each vLLM engine.
        n_engines: of Ray.
        log_probs: whether samples carry the log-probability of their tokens.
    """

    def __init__(
        self,
        kind: str,
        teacher: Path | str,
        model: Any,
        tokens: Tokens,
        asked: Mapping[str, Any],
        *,
        dtype: str | None = None,
        gpu_memory_utilization: float = 0.6,
        n_engines: int = 1,
        log_probs: bool = False,
    ) -> None:
        self.kind, self.teacher, self.model, self.tokens, self.asked = kind, teacher, model, tokens, asked
        self.settings: dict[str, Any] = {"dtype": None if dtype == "auto" else dtype}
        if log_probs and asked["temperature"] not in (0, 1):
            self.settings["logprobs_mode"] = "processed_logprobs"
        self.share = {"gpu_memory_utilization": gpu_memory_utilization}
        self.n_engines, self.log_probs = n_engines, log_probs
        self.sampler: Any = None
        self._engine: RoundEngine | None = None

    def begin(self, rows: Rows) -> None:
        """Starts it for the rows that are left."""
        if self.kind == "hf":
            self.sampler = TransformersSampler(self.model, self.tokens, with_log_probs=self.log_probs)
            return
        contexts = sampling_contexts(rows, self.tokens)
        length = max(map(len, contexts), default=0) + self.asked["max_new_tokens"]
        if self.kind == "ray":
            connect(n_cpus=self.n_engines + 1)
        on_gpu = has_gpus(self.n_engines) if self.kind == "ray" else torch.cuda.is_available()
        settings = self.settings | (self.share if on_gpu else {})
        if not on_gpu:
            check_heads(self.teacher)
        if self.kind == "vllm":
            self._engine = RoundEngine(max_model_len=length, on_gpu=on_gpu, **settings)
            self.sampler = self._engine.sampler_for(self.teacher, self.tokens, with_log_probs=self.log_probs)
            return
        self.sampler = RaySampler(
            self.teacher,
            self.tokens,
            n_engines=self.n_engines,
            max_model_len=length,
            on_gpu=on_gpu,
            with_log_probs=self.log_probs,
            settings=settings,
        )
        self.sampler.ahead(contexts, keys_B=[row["example_id"] for row in rows], **self.asked)

    def close(self) -> None:
        """Stops what runs beside this process."""
        if self._engine is not None:
            self._engine.close()
        if isinstance(self.sampler, RaySampler):
            self.sampler.close()
