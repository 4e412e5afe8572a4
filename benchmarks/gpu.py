"""What each part of a run takes on a GPU, against what `anyo_rl.plan` predicts. Not yet run on a GPU.

python benchmarks/gpu.py --json gpu.json     random weights in the shapes of Qwen3-0.6B and of an 8B, bf16, LoRA
python benchmarks/gpu.py --dry_run           the same with tiny shapes, on the CPU too: shows that it works, no more

`ours` is measured, `peer` predicted, and `ratio` is ours / peer. The predictions assume an H100. SFT, GRPO and the
evaluation are the recipes themselves on the toy world, and their own logs are read; the first two steps are left out.
Sampling and ranking are called directly, on contexts of random tokens. Ranking has Office where ANYO_RL_DATA names its
folder, and made-up items. FlashAttention is tried where it is installed; ZeRO-2 and FSDP2 where there is a GPU, with
one process. A part that fails is named at the end, and the others go on.
"""

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_scale import make_catalog
from report import report
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import is_flash_attn_2_available

from anyo_rl import plan
from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import sample_texts
from anyo_rl.sampling.protocol import Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.teacher.make import train_tokenizer
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.loop.throughput import peak_memory

ROOT = Path(__file__).parents[1]
TINY = plan.Shape(32, 2, 4, 2, 8, 64, 1024, True)
PARTS = ("sampling", "ranking", "sft", "grpo")
LORA_RANK, CAP, WARM_UP = 16, 1000, 2
Row = dict[str, object]


@dataclass(frozen=True)
class Scale:
    """How much is measured: items that are made up, a batch, tokens of context and reasoning, steps, test users."""

    items: int = 1_000_000
    batch: int = 32
    context: int = 512
    completion: int = 256
    steps: int = 6
    users: int = 100


SMALL = Scale(items=2_000, batch=4, context=16, completion=8, steps=3, users=4)


def row(name: str, ours: float, peer: float | None) -> Row:
    """A line of the table; `peer` is `None` where nothing is predicted."""
    ratio = None if not peer else round(ours / peer, 2)
    return {"name": name, "ours": round(ours, 3), "peer": None if peer is None else round(peer, 3), "ratio": ratio}


@dataclass
class Bench:
    """One shape: its random teacher in a folder, and what is measured of it."""

    size: str
    shape: plan.Shape
    scale: Scale
    folder: Path
    dry_run: bool

    @property
    def device(self) -> torch.device:
        """The GPU where there is one."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def make(self) -> tuple[Qwen3ForCausalLM, Tokens]:
        """The teacher, saved once, with a tokenizer of the toy world: its vocabulary is larger than that needs."""
        tokenizer = train_tokenizer(sample_texts(load_task(DataArguments(toy_users=120))), 1000)
        s = self.shape
        config = Qwen3Config(
            vocab_size=s.vocab,
            hidden_size=s.hidden,
            intermediate_size=s.feed_forward,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            num_key_value_heads=s.kv_heads,
            head_dim=s.head_dim,
            tie_word_embeddings=s.tied,
            max_position_embeddings=4096,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32 if self.dry_run else torch.bfloat16)
        try:
            with self.device:
                model = Qwen3ForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(before)
        save_teacher(model, tokenizer, self.folder / "random")
        return model, Tokens.of(tokenizer, None)

    def measured(self, work: Callable[[], Any]) -> tuple[Any, float, float]:
        """What some work gives, its seconds, and GiB at its peak (of the whole process without a GPU)."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        found = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return found, time.perf_counter() - began, peak_memory(self.device)["memory/peak_gib"]

    def job(self, prompt: float, completion: float, nodes: float = 0) -> plan.Job:
        """What the plan is asked about."""
        return plan.Job(
            *(round(prompt), round(completion), self.scale.batch, self.scale.batch, round(nodes)), lora_rank=LORA_RANK
        )

    def contexts(self, tokens: Tokens) -> list[list[int]]:
        """Random tokens that end with the marker."""
        drawn = np.random.default_rng(0).integers(2, 256, (self.scale.batch, self.scale.context - 1))
        return [[*ids, tokens.marker_id] for ids in drawn.tolist()]

    def sampling(self, model: Qwen3ForCausalLM, tokens: Tokens) -> Iterator[Row]:
        """Completions of as many contexts as a batch has."""
        sampler = TransformersSampler(model, tokens)
        contexts = [ids[:-1] for ids in self.contexts(tokens)]
        sampler.sample(contexts[:1], Sampling(max_new_tokens=4))  # what is set up at the first call
        asked = Sampling(max_new_tokens=self.scale.completion)
        samples, seconds, peak = self.measured(lambda: sampler.sample(contexts, asked))
        written = max(len(sample.token_ids) for of_one in samples for sample in of_one)
        job = self.job(self.scale.context, written)
        yield row(f"{self.size}: sampling, s", seconds, plan.step_seconds(self.shape, job)["sampling"])
        cache = plan.cache_bytes(self.shape, self.scale.batch * (self.scale.context + written))
        yield row(f"{self.size}: sampling, GiB", peak, self.weights_gib() + cache / plan.GIB)

    def weights_gib(self) -> float:
        """Of a frozen teacher."""
        return plan.BF16 * plan.n_parameters(self.shape) / plan.GIB

    def catalogs(self, tokens: Tokens) -> Iterator[tuple[str, Catalog]]:
        """Office where it is there, and made-up items."""
        if not self.dry_run and os.environ.get("ANYO_RL_DATA"):
            task = load_task(DataArguments(dataset="office", split="given"))
            yield "Office", build_catalog(task.interactions.items, tokens)
        yield f"{self.scale.items:,} items", make_catalog(self.scale.items)

    def ranking(self, model: Qwen3ForCausalLM, tokens: Tokens) -> Iterator[Row]:
        """Ranks of a batch, to the cap of GRPO; random weights are the flat policy of docs/ranking.md."""
        for name, catalog in self.catalogs(tokens):
            contexts, targets = self.contexts(tokens), list(catalog.item_ids[: self.scale.batch])
            ranker = LikelihoodRanker(catalog, model, cap=CAP, node_budget=4096, tie_band=0)
            ranker.rank(contexts[:1], targets[:1])
            found, seconds, peak = self.measured(
                lambda ranker=ranker, contexts=contexts, targets=targets: ranker.rank(contexts, targets)
            )
            nodes = float(found.n_nodes_B.mean())
            job = self.job(self.scale.context, 0, nodes)
            label = f"{self.size}: ranking {name}, {nodes:.0f} nodes"
            yield row(f"{label}, s", seconds, plan.step_seconds(self.shape, job)["ranking"])
            held = min(ranker.tokens_per_forward, round(self.scale.batch * (self.scale.context + nodes)))
            cache = plan.cache_bytes(self.shape, held) / plan.GIB
            yield row(f"{label}, GiB", peak, self.weights_gib() + cache)

    def recipe(self, recipe: str, out: Path, config: str | None, *flags: object) -> list[dict[str, float]]:
        """Runs a recipe from the random teacher and returns its log of training steps, the first ones left out."""
        launch = [sys.executable, "-m", "accelerate.commands.launch"]
        launch += ["--config_file", f"accelerate_configs/{config}.yaml", "--num_processes", "1"] if config else []
        half, steps, batch = ("false" if self.dry_run else "true"), self.scale.steps, self.scale.batch
        told: dict[str, object] = {
            "dataset": "toy", "toy_users": 400, "max_validation": 4, "max_test": self.scale.users, "n_paths": 2,
            "max_reasoning_tokens": self.scale.completion, "model_name_or_path": self.folder / "random",
            "dtype": "float32" if self.dry_run else "bfloat16", "bf16": half, "gradient_checkpointing": half,
            "use_peft": "true", "lora_r": LORA_RANK, "lora_target_modules": "all-linear",
            "max_steps": steps, "eval_steps": steps, "save_steps": steps, "logging_steps": 1, "warmup_steps": 0,
            "per_device_train_batch_size": batch, "save_total_limit": 1, "output_dir": out,
        }  # fmt: skip
        command = [*launch, f"recipes/{recipe}.py"]
        command += [str(word) for name, value in told.items() for word in (f"--{name}", value)]
        done = subprocess.run([*command, *map(str, flags)], cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{recipe}, {config or 'one process'}: {done.stderr[-2000:] or done.stdout[-2000:]}")
        lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [found for found in map(json.loads, lines) if "throughput/samples_per_second" in found]
        return rows[min(WARM_UP, len(rows) - 1) :]

    def sft(self) -> Iterator[Row]:
        """SFT's step under each launch, and the evaluation of its test users after the first."""
        runs: list[tuple[str, str | None, tuple[object, ...]]] = [("sdpa", None, ())]
        if self.device.type == "cuda":
            if is_flash_attn_2_available():
                runs.append(("FlashAttention 2", None, ("--attn_implementation", "flash_attention_2")))
            runs += [("ZeRO-2", "zero2", ()), ("FSDP2", "fsdp2", ())]
        for place, (name, config, flags) in enumerate(runs):
            out = self.folder / "sft"
            users = () if place == 0 else ("--max_test", 2)
            yield from self.sft_rows(name, config, self.recipe("sft_teacher", out, config, *flags, *users))
            if place == 0:
                # The folder itself changes once more, when its card is written.
                saved = max(file.stat().st_mtime for file in (out / "sft" / "teacher").glob("*.safetensors"))
                seconds = (out / "evaluation.json").stat().st_mtime - saved
                yield row(f"{self.size}: evaluation of {self.scale.users} users, loading included, s", seconds, None)
            shutil.rmtree(out)  # an 8B takes 16 GB

    def sft_rows(self, name: str, config: str | None, log: list[dict[str, float]]) -> Iterator[Row]:
        """Seconds and memory of a step; FSDP2 is predicted as ZeRO-3, whose shares are the same."""
        per_sample = np.mean([1 / found["throughput/samples_per_second"] for found in log])
        length = np.mean([f["throughput/tokens_per_second"] / f["throughput/samples_per_second"] for f in log])
        job = self.job(float(length), 0)
        seconds = plan.step_seconds(self.shape, job)["update"]
        yield row(f"{self.size}: SFT step, {name}, s", float(per_sample) * self.scale.batch, seconds)
        like = {"zero2": "zero2", "fsdp2": "zero3"}.get(config or "", "ddp")
        trained = plan.n_lora(self.shape, LORA_RANK)
        state = plan.state_bytes(like, trained, plan.n_parameters(self.shape), 1)
        n_tokens = round(self.scale.batch * float(length))
        update = plan.activation_bytes(self.shape, n_tokens) + plan.head_bytes(self.shape, n_tokens, False)
        held = sum(value for part, value in state.items() if part != "host")
        peak = max(found["memory/peak_gib"] for found in log)
        yield row(f"{self.size}: SFT step, {name}, GiB", peak, (held + update) / plan.GIB)

    def grpo(self) -> Iterator[Row]:
        """GRPO's step and its parts."""
        out, batch = self.folder / "grpo", self.scale.batch
        flags = ("--sft_config", "", "--train_direct", "false", "--baselines", "false", "--eval_on_start", "false")
        log = self.recipe("grpo_teacher", out, None, *flags, "--num_generations", min(8, batch), "--max_test", 2)
        shutil.rmtree(out)
        seconds = batch / np.mean([found["throughput/samples_per_second"] for found in log])
        length = np.mean([f["throughput/tokens_per_second"] / f["throughput/samples_per_second"] for f in log])
        written = np.mean([found["completions/mean_length"] for found in log])
        nodes = np.mean([found["rank/nodes"] for found in log])
        job = self.job(float(length - written), float(written), float(nodes))
        expected = plan.step_seconds(self.shape, job)
        yield row(f"{self.size}: GRPO step, s", float(seconds), sum(expected.values()))
        for part, of_plan in (("sampling", "sampling"), ("ranking", "ranking"), ("training", "update")):
            share = np.mean([found.get(f"time_share/{part}", 0.0) for found in log])
            yield row(f"{self.size}: GRPO step, {part}, s", float(share * seconds), expected[of_plan])
        peak = max(found["memory/peak_gib"] for found in log)
        job = replace(job, sampling_tokens=min(job.sampling_tokens, round(4 * length)))
        yield row(f"{self.size}: GRPO step, GiB", peak, plan.memory(self.shape, job, "ddp", 1, 0)["total"] / plan.GIB)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(plan.SIZES), default=["0.6B", "8B"])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dry_run", action="store_true", help="tiny shapes; runs without a GPU")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("found no GPU: --dry_run shows on the CPU that it works")
    shapes = {"tiny": TINY} if args.dry_run else {size: plan.SIZES[size] for size in args.sizes}
    rows: list[Row] = []
    failed: list[str] = []
    for size, shape in shapes.items():
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(size, shape, SMALL if args.dry_run else Scale(), Path(folder), args.dry_run)
            model, tokens = bench.make()
            in_hand = {"sampling": bench.sampling, "ranking": bench.ranking}
            for part in args.parts:
                if part not in in_hand and model is not None:  # recipes load their own
                    model = None
                    gc.collect()
                    torch.cuda.empty_cache()
                try:
                    for found in in_hand[part](model, tokens) if part in in_hand else getattr(bench, part)():
                        print(found, flush=True)
                        rows.append(found)
                except Exception as error:
                    failed.append(f"{size}, {part}: {error}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    notes = [f"{device}; torch {torch.__version__}; LoRA of rank {LORA_RANK}, {'float32' if args.dry_run else 'bf16'}"]
    if not args.dry_run and not is_flash_attn_2_available():
        notes.append("FlashAttention is not installed")
    if rows:
        report([dict(one) for one in rows], args.json, notes + [f"failed: {one.splitlines()[0]}" for one in failed])
    if failed:
        sys.exit("\n\n".join(failed))


if __name__ == "__main__":
    main()
