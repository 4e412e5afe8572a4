"""Rankers for GRPO in which the teacher writes the item, and is rewarded for the item it wrote."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.encoders.hidden_states import minilm_encoder, teacher_encoder
from anyo_rl.encoders.titles import ItemEncoder
from anyo_rl.encoders.vector_file import shared_vectors
from anyo_rl.ranking.embedding.ranker import EmbeddingRanker
from anyo_rl.ranking.match import MatchRanker
from anyo_rl.ranking.protocol import Ranker
from anyo_rl.run.memory import free_memory
from anyo_rl.run.settings import UsageError

RankerKind = Literal["likelihood", "match", "embedding"]


def written_ranker(
    kind: RankerKind,
    catalog: Catalog,
    item_encoder: ItemEncoder,
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    folder: Path,
) -> Ranker | None:
    """The ranker of what the teacher writes; `None` where the answer is read off instead (`likelihood`).

    With `embedding` the target's rank is its place by distance from the item that was written: a near miss is worth
    more than a far one. Titles are embedded once, by the teacher that training starts from or by all-MiniLM, by all
    processes together on their devices; what is written under the catalog's constraint is one of them, so nothing is
    embedded while training.

    Args:
        kind: what a rank is made of: the policy, equality, or distance.
        catalog: whose items may be written.
        item_encoder: what embeds titles.
        load: gives the teacher that training starts from, whole, and its tokenizer; called for its embeddings alone.
        folder: where the vectors' file lies or is to lie, for all processes.

    Raises:
        ModuleNotFoundError: all-MiniLM is not installed.
    """
    if kind == "likelihood":
        return None
    if kind == "match":
        return MatchRanker(catalog)
    device = PartialState().device
    if item_encoder == "minilm":
        encoder = minilm_encoder(device)
    else:
        model, tokenizer = load()
        encoder = teacher_encoder(model.to(device), tokenizer)
        del model
    vectors_N_D = shared_vectors(encoder, catalog.titles, folder)
    del encoder
    free_memory()
    return EmbeddingRanker(
        catalog.item_ids, vectors_N_D, lambda names: known_vectors(catalog, vectors_N_D, names), device=device
    )


def known_vectors(catalog: Catalog, vectors_N_D: torch.Tensor, names_B: list[str]) -> torch.Tensor:
    """(B, D) vectors of items by the names that completions give them.

    Raises:
        ValueError: a name is not in the catalog.
    """
    found = [catalog.find(name) for name in names_B]
    unknown = [name for name, item in zip(names_B, found, strict=True) if item is None]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no item of the catalog: this ranker is for constrained completions")
    return vectors_N_D[catalog.indices([item for item in found if item is not None])]
