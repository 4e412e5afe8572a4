"""Rankers of what a teacher writes: for GRPO, which is rewarded for the item it wrote, and for evaluation."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.encoders.hidden_states import HiddenStateEncoder, minilm_encoder, teacher_encoder
from anyo_rl.encoders.titles import ItemEncoder
from anyo_rl.encoders.vector_file import shared_vectors
from anyo_rl.ranking.embedding.ranker import EmbeddingRanker
from anyo_rl.ranking.match import MatchRanker
from anyo_rl.ranking.orders import OrderRanker
from anyo_rl.run.memory import free_memory
from anyo_rl.run.settings import UsageError

RankerKind = Literal["likelihood", "match", "embedding", "order"]


def written_ranker(
    kind: RankerKind,
    catalog: Catalog,
    item_encoder: ItemEncoder,
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    folder: Path,
) -> MatchRanker | EmbeddingRanker | OrderRanker | None:
    """The ranker of what the teacher writes; `None` where the answer is read off instead (`likelihood`).

    With `embedding` the target's rank is its place by distance from the item that was written: a near miss is worth
    more than a far one. Titles are embedded once, by the teacher that training starts from or by all-MiniLM, by all
    processes together on their devices; what is written under the catalog's constraint is one of them, so nothing is
    embedded while training.

    Args:
        kind: what a rank is made of: the policy, equality, distance, or a written order.
        catalog: whose items may be written; the candidates' numbers, where an order of these is.
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
    if kind == "order":
        return OrderRanker(catalog)
    device = PartialState().device
    if item_encoder == "minilm":
        encoder = minilm_encoder(device)
    else:
        model, tokenizer = load()
        encoder = teacher_encoder(model.to(device), tokenizer)
        del model
    ranker = grounding(catalog, encoder, folder)
    del encoder
    free_memory()
    return ranker


def grounding(catalog: Catalog, encoder: HiddenStateEncoder, folder: Path, *, free: bool = False) -> EmbeddingRanker:
    """Ranks items by their distance from the one that was written.

    Args:
        catalog: whose items they are.
        encoder: what embeds titles; where nothing is written freely it is not kept.
        folder: where the file of the titles' vectors lies or is to lie, for all processes, which call this together.
        free: whether what is written may be any text. Where it is a title it has that title's very vector.
    """
    device = PartialState().device
    vectors_N_D = shared_vectors(encoder, catalog.titles, folder)
    unknown = encoder if free else None  # else the closure would keep its weights

    def vectors(names_B: list[str]) -> torch.Tensor:
        return known_vectors(catalog, vectors_N_D, names_B, unknown)

    return EmbeddingRanker(catalog.item_ids, vectors_N_D, vectors, device=device)


def known_vectors(
    catalog: Catalog, vectors_N_D: torch.Tensor, names_B: list[str], encoder: HiddenStateEncoder | None = None
) -> torch.Tensor:
    """(B, D) vectors of items by the names that completions give them.

    Args:
        catalog: of the items.
        vectors_N_D: theirs.
        names_B: what was written.
        encoder: embeds names that no item has.

    Raises:
        ValueError: a name is not in the catalog, and nothing embeds it.
    """
    found = [catalog.find(name) for name in names_B]
    unknown = [name for name, item in zip(names_B, found, strict=True) if item is None]
    if unknown and encoder is None:
        raise UsageError(f"{unknown[0]!r} is no item of the catalog: this ranker is for constrained completions")
    vectors_B_D = vectors_N_D.new_empty(len(names_B), vectors_N_D.shape[1])
    known_B = torch.tensor([item is not None for item in found], dtype=torch.bool)
    vectors_B_D[known_B] = vectors_N_D[catalog.indices([item for item in found if item is not None])]
    if unknown and encoder is not None:
        vectors_B_D[~known_B] = encoder(unknown).cpu()
    return vectors_B_D
