"""The ranking engine against scoring every item with plain batched transformers, on the titles of Office.

Both peers give the same log-probabilities, item by item: `plain` runs context and title of each item, `cached` runs
the titles over a context that was read once. The engine is the bounded search (`bounded`, ranks up to the cap) and the
whole distribution (`whole`). A teacher is measured before and after some steps of training on answers.

ANYO_RL_DATA=data python benchmarks/rank_engine.py --json rank_engine.json
ANYO_RL_DATA=data python benchmarks/rank_engine.py --model_name_or_path PATH --marker_token "<filename>" \
    --contexts 4 --peer_items 64 --train_steps 20 --lr 1e-4

One row sets the bounded search beside itself for a model that cannot attend over a tree (`ContextPaths`).
With `--peer_items` the peers score an even sample of the catalog, and their time is scaled up by tokens. Notes say how
well the constrained order (forced tokens cost nothing) agrees with that of the plain sequence log-likelihood.
"""

import argparse
import copy
import time
from typing import Any
from unittest import mock

import numpy as np
import torch
from report import report
from scipy.stats import spearmanr
from transformers import DynamicCache, PreTrainedModel
from trl import ModelConfig

from anyo_rl.catalog.catalog import Catalog, build_catalog
from anyo_rl.data.task import DataArguments, Task, load_task
from anyo_rl.ranking.distribution import DistributionRanker, rank_scores
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.reasoning.rows import make_rows, sample_texts
from anyo_rl.teacher.load import load_teacher
from anyo_rl.teacher.make import make_tiny_teacher, train_tokenizer
from anyo_rl.teacher.tokens import Tokens

TOLERANCE = 1e-3  # of a log-probability, fp32, between engine and peers


def train(model: PreTrainedModel, task: Task, catalog: Catalog, tokens: Tokens, steps: int, lr: float) -> None:
    """Plain next-token training on the answers of random training users."""
    examples = task.split("train")
    rows = make_rows(task, examples.sample(min(len(examples), 16 * steps), seed=0), catalog, tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    model.train()
    for start in range(0, 16 * steps, 16):
        batch = [rows[i % len(rows)] for i in range(start, start + 16)]
        pairs = [(tokens.marked_context(tokens.context_ids(row.prompt), []), row.target_id) for row in batch]
        sequences = [(context, list(catalog.paths[catalog.index[target]])) for context, target in pairs]
        width = max(len(context) + len(path) for context, path in sequences)
        ids = torch.zeros(16, width, dtype=torch.long)
        labels, mask = torch.full((16, width), -100), torch.zeros(16, width, dtype=torch.long)
        for b, (context, path) in enumerate(sequences):
            end = len(context) + len(path)
            ids[b, :end] = torch.tensor([*context, *path])
            labels[b, len(context) : end] = torch.tensor(path)
            mask[b, :end] = 1
        optimizer.zero_grad()
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()


@torch.no_grad()
def score_items(
    model: PreTrainedModel, catalog: Catalog, context: list[int], items: list[int], batch_size: int, cached: bool
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Log-probabilities of items one by one, constrained and plain, the seconds that this took, and the tokens read.

    The clock counts the forwards and the sequence log-likelihood, as a plain scorer would; it stops while the numbers
    are renormalised over the tree's children.
    """
    tree, log_p, plain = catalog.tree, np.zeros(len(items)), np.zeros(len(items))
    order = sorted(range(len(items)), key=lambda i: len(catalog.paths[items[i]]))
    began = time.perf_counter()
    n_tokens = len(context) if cached else 0
    cache = DynamicCache(config=model.config)
    if cached:
        first = model(input_ids=torch.tensor([context]), past_key_values=cache, logits_to_keep=1).logits
    seconds = time.perf_counter() - began
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        began = time.perf_counter()
        paths = [catalog.paths[items[i]] for i in part]
        width = max(map(len, paths))
        ids = torch.tensor([[*path, *[0] * (width - len(path))] for path in paths])
        if cached:
            shared = copy.deepcopy(cache)
            shared.batch_repeat_interleave(len(part))
            logits = model(input_ids=ids, past_key_values=shared).logits[:, :-1]
            logits = torch.cat([first.expand(len(part), -1, -1), logits], dim=1)
        else:
            whole = torch.cat([torch.tensor([context]).expand(len(part), -1), ids], dim=1)
            logits = model(input_ids=whole, logits_to_keep=width + 1).logits[:, :-1]
        of_tokens = logits.float().log_softmax(-1).gather(2, ids[..., None])[..., 0]
        plain[part] = [float(row[: len(path)].sum()) for row, path in zip(of_tokens, paths, strict=True)]
        seconds += time.perf_counter() - began
        n_tokens += sum(map(len, paths)) + (0 if cached else len(part) * len(context))
        for row, i in enumerate(part):
            node = int(tree.leaf[items[i]])
            while node:
                children, parent = tree.children(int(tree.parent[node])), int(tree.parent[node])
                of_children = logits[row, tree.depth[parent], tree.token[children].tolist()].double()
                log_p[i] += float(of_children.log_softmax(0)[node - children.start])
                node = parent
    return log_p, plain, seconds, n_tokens


def order_note(name: str, constrained_B_N: np.ndarray, plain_B_N: np.ndarray) -> str:
    """How alike the two orders of the scored items are, on average over contexts."""
    pairs = list(zip(constrained_B_N, plain_B_N, strict=True))
    rho = np.mean([spearmanr(a, b).statistic for a, b in pairs])
    same_top = np.mean([len(set(np.argsort(-a)[:10]) & set(np.argsort(-b)[:10])) for a, b in pairs])
    return (
        f"{name}: constrained order against plain sequence log-likelihood, {len(pairs)} contexts, "
        f"{constrained_B_N.shape[1]} items: Spearman {rho:.3f}, {same_top:.1f} of 10 top items are the same"
    )


def compare(
    model: PreTrainedModel, name: str, catalog: Catalog, contexts: list[list[int]], targets: list[str], args: Any
) -> tuple[list[dict[str, Any]], list[str]]:
    """One teacher: seconds and tokens per context of the engine's two forms and of the two peers, and notes."""
    engines: dict[str, tuple[float, float]] = {}
    began = time.perf_counter()
    bounded = LikelihoodRanker(catalog, model, cap=args.cap).rank(contexts, targets, top_k=10)
    context_tokens = np.mean([len(context) for context in contexts])
    engines["bounded"] = (time.perf_counter() - began) / len(contexts), context_tokens + bounded.n_nodes_B.mean()
    began = time.perf_counter()
    ranker = DistributionRanker(catalog, model)
    table = ranker.log_probs(contexts).numpy()
    engines["whole"] = (time.perf_counter() - began) / len(contexts), context_tokens + ranker.n_nodes_evaluated
    expected = rank_scores(catalog, table, targets)
    same = (bounded.lowest_B <= expected.ranks_B).all() and (expected.ranks_B <= bounded.highest_B).all()
    notes = [
        f"{name}: median rank {np.median(expected.ranks_B):.0f} of {len(catalog)}, exact for "
        f"{(bounded.lowest_B == bounded.highest_B).mean():.0%}, nodes {bounded.n_nodes_B.mean():.0f} on average and "
        f"{bounded.n_nodes_B.max()} at most, of {ranker.n_nodes_evaluated}"
    ]
    assert same, "a bracket of the bounded search does not hold the rank"

    found = [paths_row(model, name, catalog, contexts, targets, args.cap, engines["bounded"][0])]
    items = np.linspace(0, len(catalog) - 1, args.peer_items or len(catalog)).round().astype(int).tolist()
    path_tokens = sum(map(len, catalog.paths))
    plain_B_N = np.zeros((args.peer_contexts, len(items)))
    for peer in ("plain", "cached"):
        seconds = n_tokens = worst = 0.0
        for b in range(args.peer_contexts):
            log_p, plain_B_N[b], took, read = score_items(
                model, catalog, contexts[b], items, args.batch_size, peer == "cached"
            )
            length, n = len(contexts[b]), len(catalog)
            whole = path_tokens + length * (1 if peer == "cached" else n)
            seconds, n_tokens = seconds + took * whole / read, n_tokens + whole
            worst = max(worst, float(np.abs(log_p - table[b, items]).max()))
        assert worst < TOLERANCE, f"{name}, {peer}: log-probabilities differ by {worst:.2e}"
        for engine, (own_seconds, own_tokens) in engines.items():
            for unit, ours, theirs in (
                ("s", own_seconds, seconds / args.peer_contexts),
                ("tokens", own_tokens, n_tokens / args.peer_contexts),
            ):
                label = f"{name}, {engine} against {peer}, {unit} per context"
                row = {"name": label, "ours": round(ours, 4), "peer": round(theirs, 2)}
                found.append(row | {"ratio": round(theirs / ours, 1), "agree": bool(worst < TOLERANCE)})
    notes.append(order_note(name, table[: args.peer_contexts, items], plain_B_N))
    return found, notes


def paths_row(
    model: PreTrainedModel,
    name: str,
    catalog: Catalog,
    contexts: list[list[int]],
    targets: list[str],
    cap: int,
    by_tree_s: float,
) -> dict[str, object]:
    """What ranks cost a model of which layers have a window: it reads each path anew, and here answers the same."""
    expected = LikelihoodRanker(catalog, model, cap=cap).rank(contexts, targets)
    with mock.patch("anyo_rl.ranking.engine.context.attends_over_trees", return_value=False):
        began = time.perf_counter()
        found = LikelihoodRanker(catalog, model, cap=cap).rank(contexts, targets)
        seconds = (time.perf_counter() - began) / len(contexts)
    same = np.allclose(found.log_probs_B, expected.log_probs_B, atol=TOLERANCE)
    row = {"name": f"{name}, bounded by the tree against paths read anew, s per context", "ours": round(by_tree_s, 4)}
    return row | {"peer": round(seconds, 4), "ratio": round(seconds / by_tree_s, 1), "agree": bool(same)}


def main() -> None:
    """Builds the teacher and prints one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="a tiny Qwen3 made for the titles, if unset")
    parser.add_argument("--marker_token", help="the token that stands for the marker, where it is not ->")
    parser.add_argument("--contexts", type=int, default=32, help="contexts that the engine ranks together")
    parser.add_argument("--peer_contexts", type=int, default=1, help="how many of them the peers score")
    parser.add_argument("--peer_items", type=int, help="items that the peers score; all if unset")
    parser.add_argument("--batch_size", type=int, default=64, help="of the peers")
    parser.add_argument("--cap", type=int, default=1000)
    parser.add_argument("--train_steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()

    task = load_task(DataArguments(dataset="office", split="given", max_history=10, history_tokens=200))
    if args.model_name_or_path:
        config = ModelConfig(model_name_or_path=args.model_name_or_path, dtype="float32")
        model, tokenizer = load_teacher(config)
    else:
        tokenizer = train_tokenizer(sample_texts(task), 4000)
        model = make_tiny_teacher(tokenizer, hidden_size=96, n_layers=3)
    tokens = Tokens.of(tokenizer, args.marker_token)
    catalog = build_catalog(task.interactions.items, tokens)
    rows = make_rows(task, task.split("test", args.contexts), catalog, tokens)
    contexts = [tokens.marked_context(tokens.context_ids(row.prompt), []) for row in rows]
    targets = [row.target_id for row in rows]
    size = sum(parameter.numel() for parameter in model.parameters())
    notes = [f"{size / 1e6:.1f}M parameters, fp32, {torch.get_num_threads()} threads, {len(catalog)} items"]
    model.eval()
    found, of_teacher = compare(model, "untrained", catalog, contexts, targets, args)
    notes += of_teacher
    if args.train_steps:
        train(model, task, catalog, tokens, args.train_steps, args.lr)
        of_trained, of_teacher = compare(model, f"{args.train_steps} steps", catalog, contexts, targets, args)
        found, notes = found + of_trained, notes + of_teacher
    report(found, args.json, notes)


if __name__ == "__main__":
    main()
