"""What labels of steps cost: forced answers against Monte Carlo with 4, 8 and 16 reasonings from each state.

python benchmarks/step_labels.py --json step_labels.json                 a tiny teacher, trained here on rationales
python benchmarks/step_labels.py --model_name_or_path PATH --examples 100

All label the same sampled paths of the toy world; states that paths have in common are valued once. `tokens` were
sampled, `contexts` ranked, `nodes` read by the engine for them; `times` is the time in forced answers' own. `agree` is
the rank correlation of the labels with Monte Carlo of `--reference` reasonings and other draws.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch
from report import report
from scipy.stats import spearmanr
from trl import ModelConfig

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.protocol import Ranking
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.sampling.protocol import Sample, Sampling
from anyo_rl.sampling.transformers import TransformersSampler
from anyo_rl.teacher.load import load_teacher
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens
from anyo_rl.training.sft import sft_dataset
from anyo_rl.values.step_values import forced_answer_values, monte_carlo_values


class CountingRanker(LikelihoodRanker):
    """Counts what it ranks and reads."""

    contexts = nodes = 0

    def rank(self, contexts_B: Any, *args: Any, **kwargs: Any) -> Ranking:
        ranking = super().rank(contexts_B, *args, **kwargs)
        assert ranking.n_nodes_B is not None
        self.contexts, self.nodes = self.contexts + len(contexts_B), self.nodes + int(ranking.n_nodes_B.sum())
        return ranking


class CountingSampler(TransformersSampler):
    """Counts the tokens that it samples."""

    tokens_sampled = 0

    def sample(self, *args: Any, **kwargs: Any) -> list[list[Sample]]:
        samples_B_G = super().sample(*args, **kwargs)
        self.tokens_sampled += sum(len(sample.token_ids) for samples in samples_B_G for sample in samples)
        return samples_B_G


def train(model: torch.nn.Module, task: Task, catalog: Catalog, tokens: Tokens, steps: int, lr: float) -> None:
    """Plain next-token training on rationales, half of them answered early too."""
    rows = make_rows(task, task.split("train"), catalog, tokens)
    data = list(sft_dataset(rows, catalog, tokens, task.rationales, early_share=0.5))
    rng, optimizer = np.random.default_rng(0), torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for _ in range(steps):
        batch = [data[int(i)] for i in rng.integers(len(data), size=16)]
        width = max(len(row["input_ids"]) for row in batch)
        ids, labels = torch.zeros(16, width, dtype=torch.long), torch.full((16, width), -100)
        for b, row in enumerate(batch):
            ids[b, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            labels[b, : len(row["labels"])] = torch.tensor(row["labels"])
            labels[b, row["item_start"] : len(row["labels"])] = torch.tensor(row["input_ids"][row["item_start"] :])
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


def main() -> None:
    """Samples paths, labels them by each source, and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="a tiny Qwen3 trained here, if unset")
    parser.add_argument("--marker_token", help="the token that stands for the marker, where it is not ->")
    parser.add_argument("--examples", type=int, default=50, help="training examples")
    parser.add_argument("--paths", type=int, default=4, help="paths of each")
    parser.add_argument("--continuations", type=int, nargs="+", default=[4, 8, 16], help="of Monte Carlo")
    parser.add_argument("--reference", type=int, default=32, help="reasonings of what labels are compared with")
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--train_steps", type=int, default=300, help="of 16 rationales each")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()

    task = load_task(DataArguments())
    if args.model_name_or_path:
        model, tokenizer = load_teacher(ModelConfig(args.model_name_or_path, dtype="float32"))
    else:
        tokenizer = train_tokenizer(sample_texts(task), 600)
        model = make_tiny_teacher(tokenizer, hidden_size=96, n_layers=3)
    tokens = Tokens.of(tokenizer, args.marker_token)
    catalog = build_catalog(task.interactions.items, tokens)
    if not args.model_name_or_path:
        train(model, task, catalog, tokens, args.train_steps, args.lr)
    rows = make_rows(task, task.split("train", args.examples), catalog, tokens)
    contexts = [tokens.context_ids(row.prompt) for row in rows]
    samples_B_G = TransformersSampler(model, tokens).sample(
        contexts,
        Sampling(n=args.paths, max_new_tokens=args.max_new_tokens),
        keys_B=[row.example_id for row in rows],
    )
    of_paths = [row for row, samples in zip(rows, samples_B_G, strict=True) for _ in samples]
    completions = [list(sample.token_ids) for samples in samples_B_G for sample in samples]

    def measure(name: str, sampling: Sampling | None = None) -> tuple[dict[str, Any], np.ndarray]:
        """Monte Carlo with these reasonings from each state; forced answers without any."""
        ranker, sampler = CountingRanker(catalog, model, tie_band=0.0), CountingSampler(model, tokens)
        began = time.perf_counter()
        if sampling is None:
            values_B = forced_answer_values(of_paths, completions, ranker, tokens)
        else:
            values_B = monte_carlo_values(of_paths, completions, sampler, ranker, tokens, sampling)
        values = np.concatenate(values_B)
        counts = {"tokens": sampler.tokens_sampled, "contexts": ranker.contexts, "nodes": ranker.nodes}
        return {"name": name, **counts, "seconds": round(time.perf_counter() - began, 2)}, values

    found = [measure("forced answer")]
    for k in args.continuations:
        found.append(measure(f"Monte Carlo, k = {k}", Sampling(n=k, max_new_tokens=args.max_new_tokens)))
    _, reference = measure("reference", Sampling(n=args.reference, max_new_tokens=args.max_new_tokens, seed=1))
    table = [
        row
        | {
            "times": round(row["seconds"] / max(found[0][0]["seconds"], 0.01), 1),
            "agree": round(float(spearmanr(values, reference).statistic), 3),
        }
        for row, values in found
    ]
    marked = np.mean([tokens.marker_id in ids for ids in completions])
    notes = [
        f"{len(rows)} examples, {len(completions)} paths ({marked:.0%} with a marker), {len(reference)} labels before "
        f"steps of {found[0][0]['contexts']} different states; {torch.get_num_threads()} threads"
    ]
    report(table, args.json, notes)


if __name__ == "__main__":
    main()
