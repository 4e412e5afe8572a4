"""Vectors of titles from a teacher's own embeddings, which any teacher has."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from transformers import PreTrainedModel

from anyo_rl.teacher.tokens import Tokens

ItemEncoder = Literal["teacher", "minilm"]  # what embeds titles


@torch.no_grad()
def title_vectors(model: PreTrainedModel, tokens: Tokens, titles: Sequence[str]) -> np.ndarray:
    """(N, D) float32: the mean of the teacher's own vectors of each title's tokens. Any teacher can give them."""
    table = model.get_input_embeddings().weight
    vectors = []
    for title in titles:
        ids = tokens.tokenizer.encode(f" {tokens.safe_text(title) or '?'}", add_special_tokens=False)
        vectors.append(table[ids].float().mean(0).cpu().numpy())
    return np.stack(vectors)
