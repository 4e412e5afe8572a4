"""Sampled completions as paths: what was written, and where it puts the target."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.completion import parse
from anyo_rl.evidence.fusion import Engine
from anyo_rl.metrics.gains import ndcg
from anyo_rl.ranking.protocol import Ranking
from anyo_rl.reasoning.rows import Row
from anyo_rl.sampling.paths import SampledPath
from anyo_rl.sampling.protocol import Sample, Sampler, Sampling
from anyo_rl.sampling.seeds import request_seed
from anyo_rl.teacher.tokens import Tokens

ROWS_AT_ONCE = 256


def as_paths(
    rows: Sequence[Row],
    samples_B_G: Sequence[Sequence[Sample]],
    ranking: Ranking | None,
    tokens: Tokens,
    catalog: Catalog,
    *,
    seed: int,
    ranker: Engine | None = None,
) -> list[SampledPath]:
    """Samples as paths, without what the caller knows better: policy, split and model.

    Args:
        rows: B examples.
        samples_B_G: what was sampled for each.
        ranking: where each sample puts the target, B·G in a row, with the best item at least; `None` leaves that out.
        tokens: the teacher's tokenizer and marker.
        catalog: gives items their titles.
        seed: of the sampling call.
        ranker: whose ranking it is.
    """
    titles = dict(zip(catalog.item_ids, catalog.titles, strict=True))
    paths: list[SampledPath] = []
    for row, samples in zip(rows, samples_B_G, strict=True):
        for index, sample in enumerate(samples):
            completion = tokens.decode(sample.token_ids)
            path = SampledPath(
                example_id=row.example_id,
                sample_index=index,
                user_id=row.user_id,
                history=[titles[item_id] for item_id in row.history],
                prompt=row.prompt_text,
                completion=completion,
                token_ids=list(sample.token_ids),
                token_log_probs=list(sample.log_probs) if sample.log_probs is not None else None,
                steps=list(parse(completion).steps),
                target_id=row.named(row.target_id),
                target_title=titles.get(row.named(row.target_id)),
                finish_reason=sample.finish_reason,
                seed=request_seed(seed, row.example_id),
            )
            if ranking is not None:
                top = next(iter(ranking.top_ids_B_K[len(paths)]), None)  # with evidence there may be no candidate
                item = None if top is None else row.named(top)
                path = _ranked(path, item, int(ranking.ranks_B[len(paths)]), titles, ranker)
            paths.append(path)
    return paths


def _ranked(
    path: SampledPath, item: str | None, rank: int, titles: Mapping[str, str], ranker: Engine | None
) -> SampledPath:
    """The path with what its ranking says."""
    return replace(
        path,
        item_id=item,
        item_title=None if item is None else titles.get(item),
        rank=rank,
        ranker=None if ranker is None else ranker.kind,
        cap=None if ranker is None else ranker.cap,
        rewards=json.dumps({"gain": float(ndcg(rank))}),
    )


def ranked_paths(
    rows: Sequence[Row],
    sampler: Sampler,
    tokens: Tokens,
    catalog: Catalog,
    sampling: Sampling,
    *,
    ranker: Engine | None = None,
) -> list[SampledPath]:
    """Samples reasonings of each example and ranks its target after each: what `run_shards` makes shards of.

    Args:
        rows: examples; those with a hinted prompt are sampled from it, and ranked under and kept with the other.
        sampler: a sampler of the teacher.
        tokens: its tokenizer and marker.
        catalog: gives items their titles.
        sampling: how; the draws belong to the examples.
        ranker: the engine on the same weights; `None` leaves items and ranks out.

    Returns:
        `as_paths`; a reasoning that never reached the marker is made to answer where it ends.
    """
    paths: list[SampledPath] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = list(rows[start : start + ROWS_AT_ONCE])
        samples = sampler.sample(sampling_contexts(batch, tokens), sampling, keys_B=[row.example_id for row in batch])
        ranking = None
        if ranker is not None:
            contexts = [tokens.context_ids(row.prompt) for row in batch]
            ranking = rank_each(ranker, batch, contexts, samples, tokens)
        paths += as_paths(batch, samples, ranking, tokens, catalog, seed=sampling.seed, ranker=ranker)
    return paths


def sampling_contexts(rows: Sequence[Row], tokens: Tokens) -> list[list[int]]:
    """What paths of the rows are sampled from."""
    return [tokens.context_ids(row.sampled_prompt) for row in rows]


def rank_each(
    ranker: Engine,
    rows: Sequence[Row],
    contexts_B: Sequence[Sequence[int]],
    samples_B_G: Sequence[Sequence[Sample]],
    tokens: Tokens,
) -> Ranking:
    """Ranks the target after each sample alone, B·G in a row, with the best item."""
    marked, targets, excluded, ids = [], [], [], []
    for row, context, samples in zip(rows, contexts_B, samples_B_G, strict=True):
        marked += [tokens.marked_context(context, sample.token_ids) for sample in samples]
        targets += [row.target_id] * len(samples)
        excluded += [row.excluded] * len(samples)
        ids += [row.example_id] * len(samples)
    return ranker.rank(marked, targets, top_k=1, excluded_B=excluded, example_ids_B=ids)
