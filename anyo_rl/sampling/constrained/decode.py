"""Constrained decoding: items of the catalog and nothing else, greedily, sampled or by beams."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers import GenerationConfig, LogitsProcessorList

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.sampling.constrained.constraint import CatalogConstraint
from anyo_rl.sampling.constrained.mask import check_fit, items_written
from anyo_rl.sampling.transformers import left_padded, own_settings_aside
from anyo_rl.teacher.policy import causal_lm, inference
from anyo_rl.teacher.tokens import Tokens


@dataclass(frozen=True)
class Decoding:
    """How items are written.

    Attributes:
        mode: `greedy` takes the best token at each node, `sample` draws from the constrained policy, `beam` keeps the
            `n_beams` best beginnings, by their log-probability with no length penalty. Neither greedy nor narrow
            beams are sure to find the best item: a `DistributionRanker` is.
        n: items of each context: draws, or the best beams. Greedy gives one.
        n_beams: width of the beam, at least n; n when left out.
        temperature: of the draws, above 0.
        seed: of the draws, which also depend on how contexts fall into batches.

    Raises:
        ValueError: n, n_beams and temperature do not fit the mode.
    """

    mode: Literal["greedy", "sample", "beam"]
    n: int = 1
    n_beams: int | None = None
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("greedy", "sample", "beam") or self.n < 1 or self.temperature <= 0:
            raise ValueError(
                f"mode {self.mode!r}, n {self.n}, temperature {self.temperature}: expected greedy, sample or beam, "
                f"and above 0"
            )
        if (self.mode == "greedy" and self.n > 1) or (self.mode == "beam" and self.n > self.width):
            raise ValueError(
                f"{self.mode} cannot give {self.n} items with {self.width} beams; take more beams, or sample"
            )

    @property
    def width(self) -> int:
        """Beginnings of a context that are kept at once: beams, or 1."""
        return (self.n_beams or self.n) if self.mode == "beam" else 1

    def settings(self) -> dict[str, Any]:
        """What `generate` needs to know of it."""
        said: dict[str, Any] = {"do_sample": self.mode == "sample", "num_return_sequences": self.n}
        if self.mode == "sample":
            said |= {"temperature": float(self.temperature), "top_k": 0, "top_p": 1.0}
        if self.mode == "beam":
            said |= {"num_beams": self.width, "length_penalty": 0.0, "early_stopping": "never"}
        return said


def decode_items(
    model: nn.Module,
    catalog: Catalog,
    tokens: Tokens,
    contexts_B: Sequence[Sequence[int]],
    how: Decoding,
    batch_size: int = 256,
) -> list[list[str]]:
    """Lets the teacher write items after contexts that end with the marker; whatever it prefers, they are items.

    Args:
        model: the teacher; wrappers are seen through.
        catalog: built with the model's tokenizer.
        tokens: that tokenizer and its marker.
        contexts_B: token ids: prompt, reasoning and marker.
        how: greedily, by draws or by beams, and how many.
        batch_size: sequences decoded at once.

    Returns:
        B lists of item ids: n draws, or up to n different items, best first.

    Raises:
        ValueError: a context does not end with the marker or does not fit the model, or the model knows fewer tokens
            than the catalog.
    """
    policy = causal_lm(model)
    config = policy.config.get_text_config()
    limits = {"n_tokens": config.vocab_size, "max_length": config.max_position_embeddings}
    check_fit(catalog.tree, tokens, contexts_B, **limits)
    settings = GenerationConfig(
        max_new_tokens=int(catalog.tree.depth.max()),
        eos_token_id=tokens.eos_id,
        pad_token_id=tokens.tokenizer.pad_token_id,
        **how.settings(),
    )
    order = sorted(range(len(contexts_B)), key=lambda i: len(contexts_B[i]))  # little padding
    n_contexts = max(1, batch_size // max(how.n, how.width))
    items: dict[int, list[str]] = {}
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with inference(model), torch.random.fork_rng(devices=devices), own_settings_aside(policy):
        torch.manual_seed(how.seed)
        for start in range(0, len(order), n_contexts):
            batch = order[start : start + n_contexts]
            ids, mask = left_padded([contexts_B[i] for i in batch], tokens.tokenizer.pad_token_id, policy.device)
            constraint = CatalogConstraint(catalog.tree, tokens, prompt_width=ids.shape[1])
            sequences = policy.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=settings,
                logits_processor=LogitsProcessorList([constraint]),
            )
            found = items_written(catalog.tree, sequences[:, ids.shape[1] :].cpu().numpy()).reshape(len(batch), how.n)
            for i, row in zip(batch, found.tolist(), strict=True):
                if how.mode == "beam":
                    # Where fewer beginnings exist than beams, `generate` fills up with copies and impossible rows.
                    row = [item for item in dict.fromkeys(row) if item >= 0]
                assert min(row, default=-1) >= 0, "constrained decoding wrote what is no item"
                items[i] = [catalog.item_ids[item] for item in row]
    return [items[i] for i in range(len(contexts_B))]
