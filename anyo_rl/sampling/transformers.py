"""Sampling with transformers' `generate`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from anyo_rl.catalog.tree import PrefixTree
from anyo_rl.run.settings import UsageError
from anyo_rl.sampling.constrained.constraint import CatalogConstraint, constrained_log_probs
from anyo_rl.sampling.protocol import Sample, Sampling
from anyo_rl.sampling.seeds import OwnDraws, OwnEnds, keys_of, request_seed, uniforms
from anyo_rl.teacher.policy import attends_over_trees, causal_lm, inference
from anyo_rl.teacher.tokens import Tokens

CACHE_TOKENS = 32_768  # 4.8 GB for a teacher of 8B in bfloat16
LOGITS_AT_ONCE = 2**26  # logits held at once for log-probabilities: 256 MB in fp32


def left_padded(
    contexts_B: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, W) token ids, padded on the left, and (B, W) their attention mask."""
    width = max(map(len, contexts_B))
    ids = torch.tensor([[pad_id] * (width - len(c)) + list(c) for c in contexts_B], device=device)
    mask = torch.tensor([[0] * (width - len(c)) + [1] * len(c) for c in contexts_B], device=device)
    return ids, mask


@contextmanager
def own_settings_aside(model: PreTrainedModel) -> Iterator[None]:
    """Puts the checkpoint's generation config aside meanwhile.

    What a config given to `generate` leaves out would be taken from it (top_k, repetition_penalty, beams).
    """
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class TransformersSampler:
    """Samples with the model in hand.

    The draws belong to the contexts' keys and not to the batch: only the float noise of another batch can turn one
    that stood on an edge.

    Completions stop at the marker; with a tree they go on to an item of the catalog and nothing else, each of them:
    the marker is forced where the reasoning has reached `max_new_tokens`, and the item comes on top of these.

    Args:
        model: the teacher; wrappers are seen through, weights are read at each call.
        tokens: its tokenizer and marker.
        cache_tokens: tokens of contexts and completions in the cache at once, at most, in so far as one sequence fits;
            bounds memory.
        with_log_probs: whether samples carry the log-probability of their tokens (under the same constraint).
        tree: the catalog's prefix tree, where items are to be written.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: Tokens,
        cache_tokens: int = CACHE_TOKENS,
        with_log_probs: bool = False,
        tree: PrefixTree | None = None,
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.cache_tokens = cache_tokens
        self.with_log_probs = with_log_probs
        self.tree = tree
        self.stops = [tokens.eos_id] if tree is not None else [tokens.eos_id, tokens.marker_id]

    def sample(
        self,
        contexts_B: Sequence[Sequence[int]],
        sampling: Sampling = Sampling(),
        *,
        keys_B: Sequence[str] | None = None,
    ) -> list[list[Sample]]:
        """See `anyo_rl.sampling.protocol.Sampler`."""
        n = sampling.n
        most = sampling.max_new_tokens + (int(self.tree.depth.max()) if self.tree is not None else 0)
        keys = keys_of(contexts_B, keys_B)
        draws = [
            _Draw(list(context), key, g, most) for context, key in zip(contexts_B, keys, strict=True) for g in range(n)
        ]
        found = self._sample(draws, sampling, self.stops)
        return [found[b * n : (b + 1) * n] for b in range(len(contexts_B))]

    def sample_lines(
        self, contexts_B: Sequence[Sequence[int]], sampling: Sampling, limits_B: Sequence[int], keys_B: Sequence[str]
    ) -> list[Sample]:
        """See `anyo_rl.sampling.protocol.LineSampler`.

        Raises:
            UsageError: the sampler writes items, which are no lines of a reasoning.
        """
        if self.tree is not None:
            raise UsageError("a sampler with a tree writes items: take one without to sample reasonings line by line")
        draws = [
            _Draw(list(context), key, 0, limit)
            for context, key, limit in zip(contexts_B, keys_of(contexts_B, keys_B), limits_B, strict=True)
        ]
        return self._sample(draws, sampling, [*self.stops, *self.tokens.break_ids])

    def _sample(self, draws: Sequence["_Draw"], sampling: Sampling, stops: Sequence[int]) -> list[Sample]:
        """A completion of each draw, in order, ended by any of the stops."""
        samples: dict[int, Sample] = {}
        most = max((draw.limit for draw in draws), default=0)
        with inference(self.model):
            for batch in self._batches([len(draw.context) for draw in draws], most):
                found = self._generate([draws[place] for place in batch], sampling, stops)
                samples.update(zip(batch, found, strict=True))
        return [samples[place] for place in range(len(draws))]

    def _batches(self, lengths: Sequence[int], most: int) -> Iterator[list[int]]:
        """Places of contexts in batches that fit the cache, shortest first, so that there is little padding."""
        batch: list[int] = []
        for place in sorted(range(len(lengths)), key=lengths.__getitem__):
            if batch and (len(batch) + 1) * (lengths[place] + most) > self.cache_tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def constraint(self, prompt_width: int, max_new_tokens: int) -> CatalogConstraint | None:
        """What holds one call of `generate` to the catalog; `None` without a tree. Training masks by the same."""
        if self.tree is None:
            return None
        return CatalogConstraint(self.tree, self.tokens, prompt_width, max_new_tokens - 1)

    def _log_probs(
        self, sequences_B_W: torch.Tensor, context_mask: torch.Tensor, scale: float, max_new_tokens: int
    ) -> torch.Tensor:
        """(B, T) log-probabilities of the new tokens: the policy's own numbers at this temperature, fp32.

        By a forward of their own, a few rows at a time: kept while generating, the logits of all steps would be
        gigabytes.
        """
        model = causal_lm(self.model)
        new = sequences_B_W[:, context_mask.shape[1] :]
        mask_B_W = torch.cat([context_mask, torch.ones_like(new)], 1)
        positions_B_W = (mask_B_W.cumsum(1) - 1).clamp(min=0)
        n_new = new.shape[1]
        n_rows = max(1, LOGITS_AT_ONCE // (n_new * model.config.get_text_config().vocab_size))
        chunks = []
        for start in range(0, len(new), n_rows):
            rows = slice(start, start + n_rows)
            logits = model(
                input_ids=sequences_B_W[rows],
                attention_mask=mask_B_W[rows],
                position_ids=positions_B_W[rows],
                logits_to_keep=n_new + 1,
                use_cache=False,
            ).logits[:, :-1]
            constraint = self.constraint(context_mask.shape[1], max_new_tokens)
            if constraint is not None:
                chunks.append(constrained_log_probs(logits, sequences_B_W[rows], constraint, scale)[0])
                continue
            logits = logits.float() / scale
            chosen = logits.gather(2, new[rows, :, None])[..., 0]
            chunks.append(chosen - logits.logsumexp(2))
        return torch.cat(chunks)

    def _read(self, draws: Sequence["_Draw"]) -> DynamicCache | None:
        """A cache with a row for each draw, which holds all but the last token of contexts that several draws share.

        `None` for models whose layers keep more than keys and values.
        """
        model = causal_lm(self.model)
        if not attends_over_trees(model):
            return None
        cache = DynamicCache(config=model.config)
        unique = list(dict.fromkeys(tuple(draw.context) for draw in draws))
        ids, mask = left_padded(unique, self.tokens.tokenizer.pad_token_id, model.device)
        if len(unique) == len(draws) or ids.shape[1] == 1:
            return cache
        model(
            input_ids=ids[:, :-1],
            attention_mask=mask[:, :-1],
            position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        rows = [unique.index(tuple(draw.context)) for draw in draws]
        cache.batch_select_indices(torch.tensor(rows, device=model.device))
        return cache

    def _generate(self, draws: Sequence["_Draw"], sampling: Sampling, stops: Sequence[int]) -> list[Sample]:
        pad_id, device = self.tokens.tokenizer.pad_token_id, causal_lm(self.model).device
        ids, mask = left_padded([draw.context for draw in draws], pad_id, device)
        written_B = self._write(draws, ids, mask, sampling, stops)
        log_probs = None
        if self.with_log_probs:
            scale = sampling.temperature if sampling.temperature > 0 else 1.0
            new, _ = left_padded([written[::-1] for written in written_B], pad_id, device)
            sequences = torch.cat([ids, new.flip(1)], 1)
            log_probs = self._log_probs(sequences, mask, scale, sampling.max_new_tokens).tolist()
        samples, ends = [], set(stops)
        for row, written in enumerate(written_B):
            end = next((t + 1 for t, token in enumerate(written) if token in ends), None)
            kept = tuple(written[:end])
            samples.append(
                Sample(
                    kept,
                    tuple(log_probs[row][: len(kept)]) if log_probs is not None else None,
                    "length" if end is None else "stop",
                )
            )
        return samples

    def _write(
        self,
        draws: Sequence["_Draw"],
        ids: torch.Tensor,
        mask: torch.Tensor,
        sampling: Sampling,
        stops: Sequence[int],
    ) -> list[list[int]]:
        """New tokens of each draw, to its end and at times beyond.

        Each time that half of the rows have ended, the others go on without them.
        """
        model, width, cache = causal_lm(self.model), ids.shape[1], self._read(draws)
        constraint = self.constraint(width, sampling.max_new_tokens)
        written: dict[int, list[int]] = {}
        waiting = list(range(len(draws)))
        while waiting:
            limits = [draws[place].limit for place in waiting]
            processors = LogitsProcessorList([constraint] if constraint else [])
            if sampling.temperature > 0:
                processors.extend(self._own_draws([draws[place] for place in waiting], sampling, width))
            ends = OwnEnds(stops, limits, width, model.device, halves=cache is not None)
            config = GenerationConfig(
                do_sample=False,  # the draws are a processor's
                max_new_tokens=max(limits) - (ids.shape[1] - width),
                eos_token_id=list(stops),
                pad_token_id=self.tokens.tokenizer.pad_token_id,
            )
            with own_settings_aside(model):
                ids = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=config,
                    logits_processor=processors,
                    stopping_criteria=StoppingCriteriaList([ends]),
                    **({} if cache is None else {"past_key_values": cache}),
                )
            for row in ends.ended_B.nonzero()[:, 0].tolist():
                written[waiting[row]] = ids[row, width:].tolist()[: limits[row]]
            on = (~ends.ended_B).nonzero()[:, 0]
            waiting = [waiting[row] for row in on.tolist()]
            if waiting and cache is not None:
                cache.batch_select_indices(on)
                ids = ids[on]
                mask = torch.cat([mask[on], mask.new_ones(len(on), ids.shape[1] - mask.shape[1])], 1)
        return [written[place] for place in range(len(draws))]

    def _own_draws(self, draws: Sequence["_Draw"], sampling: Sampling, prompt_width: int) -> Iterator[LogitsProcessor]:
        """What draws each row's next token."""
        most = max(draw.limit for draw in draws)
        numbers = [uniforms(request_seed(sampling.seed, draw.key), draw.index, most) for draw in draws]
        yield TemperatureLogitsWarper(float(sampling.temperature))
        if sampling.top_p < 1:
            yield TopPLogitsWarper(sampling.top_p)
        yield OwnDraws(np.stack(numbers), prompt_width, causal_lm(self.model).device)


@dataclass(frozen=True)
class _Draw:
    """One completion to be sampled: after what, by which draws (a key and an index), and its most tokens."""

    context: list[int]
    key: str
    index: int
    limit: int
