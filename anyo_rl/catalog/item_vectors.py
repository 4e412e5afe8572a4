"""Vectors of items: what added tokens start from, and what semantic ids are computed of.

They come from titles, from who chose what, or from both; the main process makes them once, into the run folder.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from transformers import PreTrainedModel

from anyo_rl.catalog.semantic_ids import SemanticIds
from anyo_rl.encoders.collaborative import collaborative_vectors
from anyo_rl.encoders.hidden_states import minilm_encoder
from anyo_rl.encoders.titles import ItemEncoder, title_vectors
from anyo_rl.run.files import whole_file
from anyo_rl.teacher.tokens import Tokens

ITEM_VECTORS = "item_vectors.npy"
VectorKind = Literal["mean", "text", "collaborative", "both"]


def item_vectors(
    kind: VectorKind,
    titles: Sequence[str],
    encoder: ItemEncoder,
    load: Callable[[], tuple[PreTrainedModel, Tokens]],
    sequences: Sequence[Sequence[int]],
) -> np.ndarray:
    """(N, D) float32 vectors of items.

    Args:
        kind: `mean` and `text` are those of titles as they are; `collaborative`, see `collaborative_vectors`; `both`,
            the two side by side, the titles' first, each of mean 0 and of length 1 on average.
        titles: of the N items.
        encoder: whose vectors of titles: all-MiniLM's, or means of the teacher's own token vectors.
        load: gives the teacher; called for these alone.
        sequences: items of each training user, by row of the item table.

    Raises:
        ValueError: there is no training event to make collaborative ones of.
        ModuleNotFoundError: all-MiniLM is not installed.
    """
    parts = []
    if kind != "collaborative":
        by_teacher = encoder == "teacher"
        parts += [title_vectors(*load(), titles) if by_teacher else minilm_encoder()(list(titles)).cpu().numpy()]
    if kind in ("collaborative", "both"):
        parts += [collaborative_vectors(sequences, len(titles))]
    return parts[0] if len(parts) == 1 else np.concatenate([_level(part) for part in parts], axis=1)


def kept_vectors(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The vectors of a file, which are made and written where it is not there; other processes keep away meanwhile."""
    if not file.is_file():
        vectors_N_D = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as opened:
            np.save(opened, vectors_N_D, allow_pickle=False)
    return np.load(file, mmap_mode="r", allow_pickle=False)


def code_vectors(ids: SemanticIds, item_ids: Sequence[str], vectors_N_D: np.ndarray) -> np.ndarray:
    """(C, D) float32: of each code (`SemanticIds.tokens`) the mean over the items that have it."""
    place = {code: row for row, code in enumerate(ids.tokens())}
    pairs = [(place[code], row) for row, item_id in enumerate(item_ids) for code in ids.codes[item_id]]
    code_P, item_P = np.array(pairs).T
    totals_C_D = np.zeros((len(place), vectors_N_D.shape[1]), dtype=np.float32)
    np.add.at(totals_C_D, code_P, vectors_N_D[item_P])
    return totals_C_D / np.maximum(np.bincount(code_P, minlength=len(place)), 1)[:, None].astype(np.float32)


def _level(vectors_N_D: np.ndarray) -> np.ndarray:
    """Vectors of mean 0, their length 1 on average."""
    moved_N_D = vectors_N_D - vectors_N_D.mean(0)
    return moved_N_D / max(float(np.linalg.norm(moved_N_D, axis=1).mean()), 1e-9)
