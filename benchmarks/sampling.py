"""What sampling with vLLM costs: our sampler against the bare engine, and against transformers.

python benchmarks/sampling.py --json sampling.json                       a tiny teacher made here
python benchmarks/sampling.py --model_name_or_path PATH --marker_token "<file_sep>" --contexts 16 --n 4

All write completions of the same contexts: prompts of the toy world. Numbers are new tokens a second, the best of
`--repeats` rounds that take turns, the prefix cache empty at the start of each; `ratio` is ours over the peer's.
`agree` says for the bare engine that it wrote the very same tokens, and for transformers which share of greedy
completions is the same.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from report import report
from transformers import PreTrainedModel
from trl import ModelConfig

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.sampling.protocol import Sample
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.sampling.vllm_sampler import VllmSampler
from anyo_rl.task import DataArguments, load_task
from anyo_rl.teacher import load_teacher, make_tiny_teacher, save_teacher, train_tokenizer
from anyo_rl.tokens import Tokens


def load(args: argparse.Namespace, folder: Path) -> tuple[PreTrainedModel, Tokens, str, list[list[int]]]:
    """The teacher in hand, its tokens, the folder that vLLM loads it from, and contexts."""
    task = load_task(DataArguments())
    path = args.model_name_or_path
    if path:
        model, tokenizer = load_teacher(ModelConfig(model_name_or_path=path, dtype="float32"))
    else:
        tokenizer = train_tokenizer(task.texts(), 2000)
        model = make_tiny_teacher(tokenizer)
        path = str(folder / "teacher")
        save_teacher(model, tokenizer, Path(path))
    tokens = Tokens.of(tokenizer, args.marker_token)
    rows = task.rows(task.split("test", args.contexts), build_catalog(task.interactions.items, tokens), tokens)
    return model.eval(), tokens, path, [tokens.context_ids(row["prompt"]) for row in rows]


def best(
    repeats: int, reset: Callable[[], Any], *runs: Callable[[], list[list[tuple[int, ...]]]]
) -> list[tuple[float, Any]]:
    """For each run the most new tokens a second, and what it wrote; they take turns."""
    found: list[tuple[float, Any]] = [(0.0, None)] * len(runs)
    for _ in range(repeats):
        for i, run in enumerate(runs):
            reset()
            began = time.perf_counter()
            written = run()
            seconds = time.perf_counter() - began
            found[i] = max(found[i][0], sum(len(ids) for row in written for ids in row) / seconds), written
    return found


def ids_of(samples_B_G: list[list[Sample]]) -> list[list[tuple[int, ...]]]:
    return [[sample.token_ids for sample in row] for row in samples_B_G]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="a tiny Qwen3 made for the toy world, if unset")
    parser.add_argument("--marker_token", help="the token that stands for the marker, where it is not ->")
    parser.add_argument("--contexts", type=int, default=64)
    parser.add_argument("--n", type=int, default=8, help="completions of each")
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=256, help="completions at once, of transformers")
    parser.add_argument("--max_num_seqs", type=int, default=256, help="completions at once, of vLLM")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    for name, value in {
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_CI_ENV": "1",
        "TORCH_COMPILE_DISABLE": "1",  # compiling takes longer than what is measured
    }.items():
        os.environ.setdefault(name, value)
    from vllm import LLM

    with tempfile.TemporaryDirectory() as folder:
        model, tokens, path, contexts = load(args, Path(folder))
        llm = LLM(
            path,
            dtype="float32",
            max_model_len=max(map(len, contexts)) + args.max_new_tokens,
            max_num_seqs=args.max_num_seqs,
            block_size=32,
            enforce_eager=True,
            enable_chunked_prefill=torch.cuda.is_available(),  # see VllmSampler
            disable_log_stats=True,
        )
    if torch.cuda.is_available():
        model.cuda()
    asked: dict[str, Any] = {"n": args.n, "temperature": 1.0, "max_new_tokens": args.max_new_tokens, "seed": 0}
    size = sum(parameter.numel() for parameter in model.parameters())
    notes = [
        f"{size / 1e6:.1f}M parameters, fp32, {torch.get_num_threads()} threads; {len(contexts)} contexts of "
        f"{sum(map(len, contexts)) / len(contexts):.0f} tokens on average, {args.n} completions each of up to "
        f"{args.max_new_tokens} tokens, best of {args.repeats}"
    ]
    rows = []
    for with_log_probs in (False, True):
        ours = VllmSampler(llm, tokens, with_log_probs=with_log_probs)
        prompts = [{"prompt_token_ids": context} for context in contexts]
        keys = [str(i) for i in range(len(contexts))]
        params = [ours.params(**{**asked, "top_p": 1.0, "key": key}) for key in keys]

        def bare(params: list[Any] = params, prompts: list[Any] = prompts) -> list[list[tuple[int, ...]]]:
            outputs = llm.generate(prompts, params, use_tqdm=False)
            return [[tuple(found.token_ids) for found in output.outputs] for output in outputs]

        in_hand = TransformersSampler(model, tokens, args.batch_size, with_log_probs)
        ours.sample(contexts[:4], **asked)  # whatever is set up at the first call
        in_hand.sample(contexts[:1], **asked)
        (own, written), (engine, expected), (plain, _) = best(
            args.repeats,
            llm.reset_prefix_cache,
            lambda ours=ours, keys=keys: ids_of(ours.sample(contexts, keys_B=keys, **asked)),
            bare,
            lambda in_hand=in_hand: ids_of(in_hand.sample(contexts, **asked)),
        )
        greedy = {"temperature": 0.0, "max_new_tokens": args.max_new_tokens}
        pairs = zip(ids_of(ours.sample(contexts, **greedy)), ids_of(in_hand.sample(contexts, **greedy)), strict=True)
        same = sum(a == b for a, b in pairs) / len(contexts)
        unit = f"tokens/s{' with log-probs' if with_log_probs else ''}"
        for peer, value, agree in (("bare engine", engine, written == expected), ("transformers", plain, same)):
            row = {"name": f"vLLM sampler against {peer}, {unit}", "ours": round(own, 1), "peer": round(value, 1)}
            rows.append(row | {"ratio": round(own / value, 2), "agree": agree})
    llm.llm_engine.engine_core.shutdown()
    report(rows, args.json, notes)


if __name__ == "__main__":
    main()
