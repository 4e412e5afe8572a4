"""What sampling with vLLM costs: our sampler against the bare engine, and against transformers.

python benchmarks/sampling.py --json sampling.json                       a tiny teacher made here
python benchmarks/sampling.py --model_name_or_path PATH --marker_token "<file_sep>" --contexts 16 --n 4

All write completions of the same contexts, prompts of the toy world, by the same parameters. They take turns for
`--repeats` rounds, each first as often as the others, the prefix cache empty at the start of each run. Numbers are
medians of new tokens a second. `ratio` is the median of ours over the peer's in the same round, so that other work on
the machine meets both, and `low` and `high` are its 95% interval by order statistics, which takes 6 rounds or more.
The last notes say which share of our sampler's time is spent in the engine: the two ask it for the same, so this is
what the ratio would be without noise. `agree` says for the bare engine that it wrote the very same tokens, and for
transformers which share of greedy completions is the same.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from report import report
from transformers import PreTrainedModel
from trl import ModelConfig

from anyo_rl.catalog.catalog import build_catalog
from anyo_rl.data.task import DataArguments, load_task
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.sampling.protocol import Sample, Sampling
from anyo_rl.sampling.transformers import CACHE_TOKENS, TransformersSampler
from anyo_rl.sampling.vllm.engine import make_engine, stop_engine
from anyo_rl.sampling.vllm.sampler import VllmSampler
from anyo_rl.teacher.load import load_teacher
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.save import save_teacher
from anyo_rl.teacher.tokens import Tokens


def load(args: argparse.Namespace, folder: Path) -> tuple[PreTrainedModel, Tokens, str, list[list[int]]]:
    """The teacher in hand, its tokens, the folder that vLLM loads it from, and contexts."""
    task = load_task(DataArguments())
    path = args.model_name_or_path
    if path:
        model, tokenizer = load_teacher(ModelConfig(model_name_or_path=path, dtype="float32"))
    else:
        tokenizer = train_tokenizer(sample_texts(task), 2000)
        model = make_tiny_teacher(tokenizer)
        path = str(folder / "teacher")
        save_teacher(model, tokenizer, Path(path))
    tokens = Tokens.of(tokenizer, args.marker_token)
    rows = make_rows(task, task.split("test", args.contexts), build_catalog(task.interactions.items, tokens), tokens)
    return model.eval(), tokens, path, [tokens.context_ids(row.prompt) for row in rows]


def speeds(
    repeats: int, reset: Callable[[], Any], *runs: Callable[[], list[list[tuple[int, ...]]]]
) -> tuple[NDArray[np.float64], list[Any]]:
    """New tokens a second by run and round, and what each run wrote last."""
    found, written = np.zeros((len(runs), repeats)), [None] * len(runs)
    for repeat in range(repeats):
        for place in range(len(runs)):
            i = (place + repeat) % len(runs)
            reset()
            began = time.perf_counter()
            written[i] = completions = runs[i]()
            seconds = time.perf_counter() - began
            found[i, repeat] = sum(len(ids) for row in completions for ids in row) / seconds
    return found, written


def median_interval(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """The narrowest pair of order statistics, equally far from both ends, that holds the median in 95% of cases."""
    n, place, outside = len(values), -1, 0.0
    while place + 1 < n / 2 and outside + 2 * math.comb(n, place + 1) / 2**n <= 0.05:
        place += 1
        outside += 2 * math.comb(n, place) / 2**n
    ordered = np.sort(values)
    return (float(ordered[place]), float(ordered[n - 1 - place])) if place >= 0 else (None, None)


class Timed:
    """An engine, and the seconds that it was at work."""

    def __init__(self, llm: Any) -> None:
        self.llm, self.llm_engine, self.seconds = llm, llm.llm_engine, 0.0

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """What the engine's own gives."""
        began = time.perf_counter()
        outputs = self.llm.generate(*args, **kwargs)
        self.seconds += time.perf_counter() - began
        return outputs


def ids_of(samples_B_G: list[list[Sample]]) -> list[list[tuple[int, ...]]]:
    return [[sample.token_ids for sample in row] for row in samples_B_G]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="a tiny Qwen3 made for the toy world, if unset")
    parser.add_argument("--marker_token", help="the token that stands for the marker, where it is not ->")
    parser.add_argument("--contexts", type=int, default=64)
    parser.add_argument("--n", type=int, default=8, help="completions of each")
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=9, help="rounds in which each has its turn")
    parser.add_argument("--cache_tokens", type=int, default=CACHE_TOKENS, help="tokens at once, of transformers")
    parser.add_argument("--max_num_seqs", type=int, default=256, help="completions at once, of vLLM")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model, tokens, path, contexts = load(args, Path(folder))
        length = max(map(len, contexts)) + args.max_new_tokens
        llm = make_engine(path, max_model_len=length, max_num_seqs=args.max_num_seqs, dtype="float32")
    if torch.cuda.is_available():
        model.cuda()
    asked = Sampling(n=args.n, max_new_tokens=args.max_new_tokens)
    size = sum(parameter.numel() for parameter in model.parameters())
    notes = [
        f"{size / 1e6:.1f}M parameters, fp32, {torch.get_num_threads()} threads; {len(contexts)} contexts of "
        f"{sum(map(len, contexts)) / len(contexts):.0f} tokens on average, {args.n} completions each of up to "
        f"{args.max_new_tokens} tokens, {args.repeats} rounds"
    ]
    rows = []
    for with_log_probs in (False, True):
        timed, seconds = Timed(llm), 0.0
        ours = VllmSampler(timed, tokens, with_log_probs=with_log_probs)
        prompts = [{"prompt_token_ids": context} for context in contexts]
        keys = [str(i) for i in range(len(contexts))]
        params = [ours.params(asked, key) for key in keys]

        def bare(params: list[Any] = params, prompts: list[Any] = prompts) -> list[list[tuple[int, ...]]]:
            outputs = llm.generate(prompts, params, use_tqdm=False)
            return [[tuple(found.token_ids) for found in output.outputs] for output in outputs]

        def mine(ours: VllmSampler = ours, keys: list[str] = keys) -> list[list[tuple[int, ...]]]:
            nonlocal seconds
            began = time.perf_counter()
            samples = ours.sample(contexts, asked, keys_B=keys)
            seconds += time.perf_counter() - began
            return ids_of(samples)

        in_hand = TransformersSampler(model, tokens, args.cache_tokens, with_log_probs)
        ours.sample(contexts[:4], asked)  # whatever is set up at the first call
        in_hand.sample(contexts[:1], asked)
        timed.seconds = 0.0
        found, (written, expected, _) = speeds(
            args.repeats,
            llm.reset_prefix_cache,
            mine,
            bare,
            lambda in_hand=in_hand: ids_of(in_hand.sample(contexts, asked)),
        )
        unit = f"tokens/s{' with log-probs' if with_log_probs else ''}"
        notes.append(f"{timed.seconds / seconds:.2%} of our sampler's time is the engine's, {unit}")
        pairs = zip(
            ids_of(ours.sample(contexts, asked.greedy())),
            ids_of(in_hand.sample(contexts, asked.greedy())),
            strict=True,
        )
        same = sum(a == b for a, b in pairs) / len(contexts)
        for peer, speed, agree in (("bare engine", found[1], written == expected), ("transformers", found[2], same)):
            row = {"name": f"vLLM sampler against {peer}, {unit}", "ours": round(float(np.median(found[0])), 1)}
            ratios = found[0] / speed
            low, high = (value if value is None else round(value, 3) for value in median_interval(ratios))
            row |= {"peer": round(float(np.median(speed)), 1), "ratio": round(float(np.median(ratios)), 3)}
            rows.append(row | {"low": low, "high": high, "agree": agree})
    stop_engine(llm)
    report(rows, args.json, notes)


if __name__ == "__main__":
    main()
