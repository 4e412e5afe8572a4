"""Peak memory of one SFT step on the CPU, in float32, against the formula of `anyo_rl.plan`.

OMP_NUM_THREADS=2 python benchmarks/plan_memory.py --json plan_memory.json

Each row trains a random Qwen3-architecture model with TRL's SFT trainer in a process of its own; what counts is how
far the peak of its resident memory lies above what it was before the model was made.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from report import report

from anyo_rl.plan import FP32, Shape, activation_bytes, head_bytes, n_parameters, state_bytes

MB = 1e6
BOUND = 0.15  # by which formula and peak may differ


def expected_bytes(shape: Shape, tokens: int, checkpointing: bool) -> float:
    """What the formula says of a backward pass with the optimizer's state in memory."""
    n = n_parameters(shape)
    state = state_bytes("cpu", n, 0, 1)
    update = activation_bytes(shape, tokens, checkpointing, FP32) + head_bytes(shape, tokens, on_cpu=True)
    return state["weights"] + state["gradients"] + state["optimizer"] + update


def measure(shape: Shape, tokens: int, checkpointing: bool) -> dict[str, float]:
    """Trains two steps and returns the bytes that they took; for a process of its own."""
    import resource

    import torch
    from datasets import Dataset
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trl import SFTConfig, SFTTrainer

    from anyo_rl.teacher.make import train_tokenizer

    tokenizer = train_tokenizer([" a b c"], 300)
    length = 256
    rows = Dataset.from_dict({"input_ids": torch.randint(0, shape.vocab, (2 * tokens // length, length)).tolist()})
    status = Path("/proc/self/status").read_text()
    before = int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024
    config = Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=shape.tied,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            folder,
            max_steps=2,  # in the second the optimizer's state is there during the backward pass
            per_device_train_batch_size=tokens // length,
            gradient_checkpointing=checkpointing,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        SFTTrainer(Qwen3ForCausalLM(config), settings, train_dataset=rows, processing_class=tokenizer).train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": peak - before, "n_parameters": n_parameters(shape)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=640)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 2048], help="of a step; multiples of 256")
    parser.add_argument("--checkpointing", nargs="+", choices=("true", "false"), default=["true", "false"])
    parser.add_argument("--json", help="also write the numbers to this file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = Shape(
        args.hidden, args.layers, args.hidden // 64, args.hidden // 64, 64, 3 * args.hidden, args.vocab, True
    )
    if args.measure:
        tokens, checkpointing = json.loads(args.measure)
        print(json.dumps(measure(shape, tokens, checkpointing)))
        return
    rows = []
    for tokens in args.tokens:
        for checkpointing in [word == "true" for word in args.checkpointing]:
            flags = [
                flag for name in ("hidden", "layers", "vocab") for flag in (f"--{name}", str(getattr(args, name)))
            ]
            command = [sys.executable, __file__, *flags, "--measure", json.dumps([tokens, checkpointing])]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            peak = json.loads(done.stdout.splitlines()[-1])["peak"]
            expected = expected_bytes(shape, tokens, checkpointing)
            name = f"{tokens} tokens, checkpointing {'on' if checkpointing else 'off'}: formula, peak in MB"
            row = {"name": name, "ours": round(expected / MB), "peer": round(peak / MB)}
            ratio = expected / peak
            rows.append(row | {"ratio": round(ratio, 2), "agree": abs(ratio - 1) < BOUND})
    report(rows, args.json, [f"{n_parameters(shape) / 1e6:.0f}M parameters in float32"])
    if not all(row["agree"] for row in rows):
        sys.exit(f"formula and peak differ by more than {BOUND:.0%}")


if __name__ == "__main__":
    main()
