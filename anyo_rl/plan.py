"""What a training run needs of a GPU's memory, which launch config it fits, and about how long its steps take.

    python -m anyo_rl.plan --model 8B --gpus 8
    python -m anyo_rl.plan --model path/to/teacher --gpus 1 --gpu_memory_gib 24 --lora_rank 16

The formulas are in docs/launch.md with what was measured of them. Nothing is loaded but a model's config.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30
BF16, FP32 = 2, 4  # bytes
ADAM = 2 * FP32  # two moments a parameter
GPUS_PER_MACHINE = 8
USABLE = 0.9  # of a GPU's memory: the rest is CUDA's context, NCCL's buffers and fragmentation
LIVE_PARAMETERS = 10**9  # DeepSpeed's stage3_max_live_parameters: gathered at a time
BUCKET = 5 * 10**8  # DeepSpeed's reduce_bucket_size and allgather_bucket_size, numbers
TILE_TOKENS, TILE_VOCAB = 4096, 32_768  # of logits that TRL's fused head holds at a time
TILES_ON_CPU = 8  # copies of a tile in the backward pass where there is no Triton
CONFIGS = ("ddp", "zero1", "zero2", "zero3", "zero3_offload")  # in the order in which they are to be preferred

# Assumptions of the times: dense bf16 peak and memory bandwidth of an H100, and the shares of them that are reached.
PEAK_FLOPS, BANDWIDTH = 989e12, 3.35e12
TRAIN_SHARE, FORWARD_SHARE, BANDWIDTH_SHARE = 0.4, 0.4, 0.6


@dataclass(frozen=True)
class Shape:
    """What a decoder with gated feed-forward layers is made of; see `Shape.of` for a config's names."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocab: int
    tied: bool
    qk_norm: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """The shape in a Hugging Face `config.json` (Qwen3, Qwen2, Llama, SmolLM2)."""
        c = dict(config)
        heads = c["num_attention_heads"]
        return cls(
            hidden=c["hidden_size"],
            layers=c["num_hidden_layers"],
            heads=heads,
            kv_heads=c.get("num_key_value_heads") or heads,
            head_dim=c.get("head_dim") or c["hidden_size"] // heads,
            feed_forward=c["intermediate_size"],
            vocab=c["vocab_size"],
            tied=bool(c.get("tie_word_embeddings")),
            qk_norm=c.get("model_type") == "qwen3",
        )

    @property
    def query(self) -> int:
        """Width of all queries of a token in a layer."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all keys of a token in a layer; that of the values is the same."""
        return self.kv_heads * self.head_dim


# Qwen3, and Llama 3 for 70B.
SIZES = {
    "0.6B": Shape(1024, 28, 16, 8, 128, 3072, 151936, True),
    "1.7B": Shape(2048, 28, 16, 8, 128, 6144, 151936, True),
    "4B": Shape(2560, 36, 32, 8, 128, 9728, 151936, True),
    "8B": Shape(4096, 36, 32, 8, 128, 12288, 151936, False),
    "14B": Shape(5120, 40, 40, 8, 128, 17408, 151936, False),
    "32B": Shape(5120, 64, 64, 8, 128, 25600, 151936, False),
    "70B": Shape(8192, 80, 64, 8, 128, 28672, 128256, False, qk_norm=False),
}


def n_parameters(s: Shape) -> int:
    """Embedding, layers (attention, feed-forward, norms), last norm, and a head where it is not the embedding."""
    attention = 2 * s.hidden * s.query + 2 * s.hidden * s.key
    norms = 2 * s.hidden + (2 * s.head_dim if s.qk_norm else 0)
    layer = attention + 3 * s.hidden * s.feed_forward + norms
    return s.vocab * s.hidden * (1 if s.tied else 2) + s.layers * layer + s.hidden


def n_lora(s: Shape, rank: int) -> int:
    """Numbers of LoRA adapters on all linear layers: rank · (inputs + outputs) each."""
    attention = 2 * (s.hidden + s.query) + 2 * (s.hidden + s.key)
    return s.layers * rank * (attention + 3 * (s.hidden + s.feed_forward))


def state_bytes(config: str, n_trained: int, n_frozen: int, gpus: int) -> dict[str, float]:
    """Bytes on one GPU of weights, gradients and optimizer.

    Args:
        config: a name of accelerate_configs/, or `cpu` (one process in float32).
        n_trained: parameters that are trained.
        n_frozen: the others, in bf16.
        gpus: processes that share, 1 or more.

    Returns:
        `weights`, `gradients`, `optimizer`, `buffers`, `host` (on the CPU's memory, not the GPU's).

    DDP trains float32 weights under bf16 autocast and copies gradients into buckets. DeepSpeed holds weights and
    gradients in bf16, and the optimizer float32 weights and two moments: 12 bytes.
    """
    if config in ("cpu", "ddp"):
        buffers = FP32 * n_trained if gpus > 1 else 0
        found = {"weights": FP32 * n_trained, "gradients": FP32 * n_trained, "optimizer": ADAM * n_trained}
        frozen = FP32 if config == "cpu" else BF16
        return {**found, "weights": found["weights"] + frozen * n_frozen, "buffers": buffers, "host": 0}
    stage = int(config.removeprefix("zero")[0])
    n = n_trained + n_frozen
    weights, gradients, optimizer = float(BF16 * n), float(BF16 * n_trained), (FP32 + ADAM) * n_trained / gpus
    buffers = 2 * BF16 * min(n_trained, BUCKET)
    if stage >= 2:
        gradients /= gpus
    if stage == 3:
        weights /= gpus
        buffers += BF16 * min(n, LIVE_PARAMETERS)
    if config == "zero3_offload":
        host = weights + gradients + optimizer
        return {"weights": 0, "gradients": 0, "optimizer": 0, "buffers": buffers, "host": host}
    return {"weights": weights, "gradients": gradients, "optimizer": optimizer, "buffers": buffers, "host": 0}


def activation_bytes(s: Shape, tokens: int, checkpointing: bool = True, width: int = BF16) -> float:
    """Bytes kept for the backward pass of so many tokens (all sequences of a process's batch).

    A layer keeps for each token the inputs and outputs of its norms, with a float32 copy, the residuals, queries,
    keys, values, the attention's output and four feed-forward tensors. With checkpointing each layer keeps its input
    alone, and one layer at a time all of it. Attention is taken to be memory-efficient (SDPA, flash).
    """
    layer = tokens * (width * (6 * s.hidden + 4 * s.query + 4 * s.key + 4 * s.feed_forward) + 2 * FP32 * s.hidden)
    if checkpointing:
        return layer + s.layers * tokens * width * s.hidden
    return s.layers * layer


def head_bytes(s: Shape, tokens: int, head_is_trained: bool = True, on_cpu: bool = False) -> float:
    """Bytes of logits: TRL's fused head works off a tile at a time, and sums its gradients in float32.

    This holds for SFT, GRPO and DPO; on the CPU, in float32, a tile has copies.
    """
    tile = min(tokens, TILE_TOKENS) * min(s.vocab, TILE_VOCAB)
    sums = tokens * s.hidden + (s.vocab * s.hidden if head_is_trained else 0)
    return tile * (TILES_ON_CPU * FP32 if on_cpu else BF16) + FP32 * sums


def cache_bytes(s: Shape, tokens: int, width: int = BF16) -> int:
    """Bytes of keys and values of so many tokens."""
    return 2 * s.layers * s.key * width * tokens


@dataclass(frozen=True)
class Job:
    """What is trained, per GPU.

    Attributes:
        prompt: tokens of a context.
        completion: tokens of a reasoning.
        batch: sequences of one forward and backward.
        sampled: sequences that are sampled at a time.
        nodes: tree nodes that the ranking reads for each.
        tokens_per_forward: most tokens that the ranking engine holds in its cache.
        sampling_tokens: most tokens that sampling for validation and evaluation holds in its cache.
        lora_rank: 0 for full weights.
        checkpointing: of activations.
        vllm_share: of the GPU's memory that a colocated vLLM takes (`vllm_gpu_memory_utilization`); 0 for none.
    """

    prompt: int = 512
    completion: int = 512
    batch: int = 4
    sampled: int = 32
    nodes: int = 400
    tokens_per_forward: int = 32_768
    sampling_tokens: int = 32_768
    lora_rank: int = 0
    checkpointing: bool = True
    vllm_share: float = 0.0


def memory(s: Shape, job: Job, config: str, gpus: int, gpu_bytes: float) -> dict[str, float]:
    """Bytes on one GPU by part, and their `total`: state, and the larger of the update, sampling and ranking.

    Under ZeRO-3 sampling (TRL's `ds3_gather_for_generation`) and ranking have all weights on each GPU.
    """
    n = n_parameters(s)
    trained = n_lora(s, job.lora_rank) if job.lora_rank else n
    parts = state_bytes(config, trained, n if job.lora_rank else 0, gpus)
    length = job.prompt + job.completion
    parts["activations"] = activation_bytes(s, job.batch * length, job.checkpointing)
    parts["logits"] = head_bytes(s, job.batch * length, not job.lora_rank)
    parts["vllm"] = job.vllm_share * gpu_bytes
    # Under autocast caches hold what the float32 weights of norms and rotations made float32.
    width = FP32 if config == "cpu" or (config == "ddp" and not job.lora_rank) else BF16
    sampling = cache_bytes(s, job.sampled * length, width) + FP32 * job.sampled * s.vocab
    parts["sampling cache"] = 0 if job.vllm_share else sampling
    parts["validation cache"] = cache_bytes(s, job.sampling_tokens, width)
    ranked = min(job.tokens_per_forward, job.sampled * (length + job.nodes))
    parts["ranking cache"] = cache_bytes(s, ranked, width)
    parts["gathered"] = BF16 * (n + (trained if job.lora_rank else 0)) if config.startswith("zero3") else 0
    # The update comes after sampling, validation and ranking, whose caches are gone by then.
    update = parts["activations"] + parts["logits"]
    phase = max(
        update, parts["gathered"] + max(parts[f"{name} cache"] for name in ("sampling", "validation", "ranking"))
    )
    held = sum(parts[name] for name in ("weights", "gradients", "optimizer", "buffers", "vllm"))
    return {**parts, "total": held + phase}


def step_seconds(s: Shape, job: Job) -> dict[str, float]:
    """Rough seconds of a GRPO step's parts, with each GPU's `sampled` sequences; see the assumptions above.

    A parameter costs two operations a token forwards and four backwards (two where it is frozen), and two more where
    activations are computed again. Sampling reads all weights once a token for the whole batch, or computes, whatever
    takes longer. Communication is left out.
    """
    n = n_parameters(s)
    length = job.prompt + job.completion
    operations = 2 + (2 if job.lora_rank else 4) + (2 if job.checkpointing else 0)
    read = job.completion * BF16 * n / (BANDWIDTH * BANDWIDTH_SHARE)
    compute = 2 * n * job.sampled * length / (PEAK_FLOPS * FORWARD_SHARE)
    return {
        "sampling": max(read, compute),
        "ranking": 2 * n * job.sampled * (length + job.nodes) / (PEAK_FLOPS * FORWARD_SHARE),
        "update": operations * n * job.sampled * length / (PEAK_FLOPS * TRAIN_SHARE),
    }


def choose(s: Shape, job: Job, gpus: int, gpu_bytes: float) -> str | None:
    """The first of CONFIGS that fits; None where none does."""
    configs = CONFIGS if gpus > 1 else ("ddp", "zero3_offload")
    return next((c for c in configs if memory(s, job, c, gpus, gpu_bytes)["total"] <= USABLE * gpu_bytes), None)


def command(config: str, gpus: int) -> str:
    """The launch command of a choice."""
    if config == "ddp" and gpus == 1:
        return "accelerate launch recipes/grpo_teacher.py"
    machines = -(-gpus // GPUS_PER_MACHINE)
    several = machines > 1
    name = "zero3_nodes" if several and config == "zero3" else config
    more = f" --num_machines {machines} --machine_rank R --main_process_ip IP --main_process_port 29500"
    launch = f"accelerate launch --config_file accelerate_configs/{name}.yaml --num_processes {gpus}"
    return f"{launch}{more if several else ''} recipes/grpo_teacher.py"


def load_shape(model: str) -> Shape:
    """A size of SIZES, or the config of a model's folder or name.

    Raises:
        ValueError: neither.
    """
    if model in SIZES:
        return SIZES[model]
    if (file := Path(model) / "config.json").is_file():
        return Shape.of(json.loads(file.read_text(encoding="utf-8")))
    try:
        from transformers import AutoConfig

        return Shape.of(AutoConfig.from_pretrained(model).to_dict())
    except (OSError, KeyError) as error:
        raise ValueError(f"{model!r} is neither a size ({', '.join(SIZES)}) nor a model: {error}") from error


def main() -> None:
    """Prints the parts by config, what fits, and the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help=f"a size ({', '.join(SIZES)}), or a model's path or name")
    parser.add_argument("--gpus", type=int, required=True, help="in all machines together")
    parser.add_argument("--gpu_memory_gib", type=float, default=80)
    for name, default in vars(Job()).items():
        kind = {"type": type(default)} if not isinstance(default, bool) else {"type": lambda word: word == "true"}
        parser.add_argument(f"--{name}", default=default, **kind)
    args = parser.parse_args()
    if args.gpus < 1:
        parser.error(f"--gpus {args.gpus}, expected 1 or more")
    try:
        shape = load_shape(args.model)
    except ValueError as error:
        parser.error(str(error))
    job = Job(**{name: getattr(args, name) for name in vars(Job())})
    gpu_bytes = args.gpu_memory_gib * GIB
    tables = {config: memory(shape, job, config, args.gpus, gpu_bytes) for config in CONFIGS}
    print(f"{n_parameters(shape) / 1e9:.2f}B parameters, {args.gpus} GPUs; {job}\n\nGiB on each GPU")
    print("| | " + " | ".join(tables) + " |\n|---|" + "---:|" * len(tables))
    for part in next(iter(tables.values())):
        print(f"| {part} | " + " | ".join(f"{table[part] / GIB:.1f}" for table in tables.values()) + " |")
    fits = ["yes" if table["total"] <= USABLE * gpu_bytes else "no" for table in tables.values()]
    print(f"| fits ({USABLE:.0%} of {args.gpu_memory_gib:g}) | " + " | ".join(fits) + " |")
    config = choose(shape, job, args.gpus, gpu_bytes)
    least = min(tables.values(), key=lambda table: table["total"])
    most = max((part for part in least if part not in ("total", "host")), key=lambda part: least[part])
    lack = f"none fits; in the smallest {most} takes {least[most] / GIB:.0f} GiB"
    lack += ": more GPUs, a --lora_rank, or less of --sampled and --batch"
    print("\n" + (command(config, args.gpus) if config else lack))
    print(
        f"\nAssumed, not measured: {PEAK_FLOPS / 1e12:.0f} TFLOP/s at {TRAIN_SHARE:.0%}, {BANDWIDTH / 1e12:g} TB/s at "
        f"{BANDWIDTH_SHARE:.0%}, no time for communication"
    )
    tokens = args.gpus * job.sampled * (job.prompt + job.completion)
    for part, seconds in step_seconds(shape, job).items():
        print(f"{part}: {seconds:.1f} s a step, {tokens / seconds:,.0f} tokens/s on all GPUs")


if __name__ == "__main__":
    main()
