"""Sampled completions as rows of the paths table: what was written, and where it puts the target."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.completion import parse
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker
from anyo_rl.ranking.protocol import Ranking
from anyo_rl.sampling.protocol import Sample, Sampler
from anyo_rl.sampling.seeds import request_seed
from anyo_rl.teacher.tokens import Tokens

ROWS_AT_ONCE = 256
Rows = Sequence[Mapping[str, Any]]


def path_rows(
    rows: Rows,
    samples_B_G: Sequence[Sequence[Sample]],
    ranking: Ranking | None,
    tokens: Tokens,
    catalog: Catalog,
    *,
    seed: int,
    cap: int | None = None,
) -> list[dict[str, Any]]:
    """Paths as rows of the paths table, without what the caller knows better: policy, split and model.

    Args:
        rows: B examples (`anyo_rl.reasoning.rows.make_rows`).
        samples_B_G: what was sampled for each.
        ranking: where each sample puts the target, B·G in a row, with the best item at least; `None` leaves that out.
        tokens: the teacher's tokenizer and marker.
        catalog: the catalog.
        seed: of the sampling call.
        cap: ranks were told apart up to here.
    """
    titles = dict(zip(catalog.item_ids, catalog.titles, strict=True))
    paths: list[dict[str, Any]] = []
    for row, samples in zip(rows, samples_B_G, strict=True):
        for index, sample in enumerate(samples):
            completion = tokens.decode(sample.token_ids)
            ranked = {} if ranking is None else _ranked(ranking, len(paths), titles, cap)
            paths.append(
                {
                    "example_id": row["example_id"],
                    "sample_index": index,
                    "user_id": row["user_id"],
                    "history": [titles[item_id] for item_id in row["history"]],
                    "prompt": row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"],
                    "completion": completion,
                    "token_ids": list(sample.token_ids),
                    "token_log_probs": list(sample.log_probs) if sample.log_probs is not None else None,
                    "steps": list(parse(completion).steps),
                    "target_id": row["target_id"],
                    "target_title": titles[row["target_id"]],
                    "finish_reason": sample.finish_reason,
                    "seed": request_seed(seed, row["example_id"]),
                    **ranked,
                }
            )
    return paths


def _ranked(ranking: Ranking, place: int, titles: Mapping[str, str], cap: int | None) -> dict[str, Any]:
    item, rank = ranking.top_ids_B_K[place][0], int(ranking.ranks_B[place])
    return {
        "item_id": item,
        "item_title": titles[item],
        "rank": rank,
        "ranker": LikelihoodRanker.kind,
        "cap": cap,
        "rewards": json.dumps({"gain": float(ndcg(rank))}),
    }


def ranked_paths(
    rows: Rows,
    sampler: Sampler,
    ranker: LikelihoodRanker | Catalog,
    tokens: Tokens,
    *,
    n: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 64,
    seed: int = 0,
    mask_history: bool = False,
) -> list[dict[str, Any]]:
    """Samples n reasonings of each example and ranks its target after each: what `run_shards` makes shards of.

    Args:
        rows: examples (`anyo_rl.reasoning.rows.make_rows`), with a `hinted_prompt` where they are sampled from another
            prompt than they are ranked under and kept with.
        sampler: a sampler of the teacher.
        ranker: the engine on the same weights; a catalog alone leaves items and ranks out.
        tokens: its tokenizer and marker.
        n: paths of each example.
        temperature: 0 is greedy.
        top_p: nucleus, in (0, 1].
        max_new_tokens: longest reasoning, the marker included.
        seed: of the draws, which belong to the examples.
        mask_history: whether items of the history are left out of the ranking (never the target).

    Returns:
        `path_rows`; a reasoning that never reached the marker is made to answer where it ends.
    """
    paths: list[dict[str, Any]] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = rows[start : start + ROWS_AT_ONCE]
        samples = sampler.sample(
            sampling_contexts(batch, tokens),
            n=n,
            temperature=temperature,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
            keys_B=[row["example_id"] for row in batch],
        )
        if isinstance(ranker, Catalog):
            paths += path_rows(batch, samples, None, tokens, ranker, seed=seed)
            continue
        contexts = [tokens.context_ids(row["prompt"]) for row in batch]
        ranking = rank_each(ranker, batch, contexts, samples, tokens, mask_history=mask_history)
        paths += path_rows(batch, samples, ranking, tokens, ranker.catalog, seed=seed, cap=ranker.cap)
    return paths


def sampling_contexts(rows: Rows, tokens: Tokens) -> list[list[int]]:
    """What paths of the rows are sampled from."""
    return [tokens.context_ids(row.get("hinted_prompt", row["prompt"])) for row in rows]


def rank_each(
    ranker: LikelihoodRanker,
    rows: Rows,
    contexts_B: Sequence[Sequence[int]],
    samples_B_G: Sequence[Sequence[Sample]],
    tokens: Tokens,
    *,
    mask_history: bool,
) -> Ranking:
    """Ranks the target after each sample alone, B·G in a row, with the best item."""
    marked, targets, excluded = [], [], []
    for row, context, samples in zip(rows, contexts_B, samples_B_G, strict=True):
        marked += [tokens.marked_context(context, sample.token_ids) for sample in samples]
        targets += [row["target_id"]] * len(samples)
        excluded += [row["history"]] * len(samples)
    return ranker.rank(marked, targets, top_k=1, excluded_B=excluded if mask_history else None)
