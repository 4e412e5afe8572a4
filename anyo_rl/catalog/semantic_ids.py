"""Semantic ids: a few codes for each item, alike for items that are alike, as the alternative to its title.

TIGER ("Recommender Systems with Generative Retrieval", arXiv 2305.05065) quantises a vector of each item level by
level: the nearest centroid, then the nearest centroid of what that one leaves over, and so on. Items that share all
their codes are numbered by one more code.

Departures: the codebooks are those of residual k-means (faiss), each trained on what the levels before it leave over,
and not of a trained autoencoder (RQ-VAE); and only items that do share their codes get the number, where TIGER's
experiments give one to every item: a code that is always 0 would be trained for nothing.

A code is written `<a_12>`: a letter for the level, then the centroid. `anyo_rl.teacher.tokens` makes it one token.

An *item token* is a semantic id of one code that no other item has: `<i_12>` for the item in row 12 of the item table.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from anyo_rl.run.settings import UsageError
from anyo_rl.teacher.tokens import CODE

logger = logging.getLogger(__name__)

MOST_CODES = 256
MOST_LEVELS = 8
MOST_ITEM_TOKENS = 100_000  # each takes a row of the vocabulary, and of every softmax over it


@dataclass(frozen=True)
class SemanticIds:
    """The codes of a catalog's items, no two the same.

    Attributes:
        codes: item id to its codes (`("<a_60>", "<b_159>", "<c_203>")`).
        n_collisions: items whose codes an earlier item had already; they and the earlier one were numbered.
    """

    codes: Mapping[str, tuple[str, ...]]
    n_collisions: int

    @property
    def kind(self) -> Literal["item", "semantic_id"]:
        """`item` where each item has one code, which is then its own."""
        return "item" if all(len(codes) == 1 for codes in self.codes.values()) else "semantic_id"

    def tokens(self) -> list[str]:
        """Every code that occurs, by level and number."""
        found = {code for codes in self.codes.values() for code in codes}
        return sorted(found, key=lambda code: (code[1], int(code[3:-1])))


def quantise(vectors_N_D: np.ndarray, *, n_levels: int = 3, n_codes: int = 256, seed: int = 0) -> np.ndarray:
    """Codes of item vectors by residual k-means; the same vectors and seed give the same codes.

    Args:
        vectors_N_D: (N, D) item vectors, of any scale: distances are Euclidean.
        n_levels: L, 1 to 8.
        n_codes: centroids of a level, a power of two from 2 to N.
        seed: of the centroids' starting points.

    Returns:
        (N, L) int32 codes, 0 to `n_codes - 1`. Items with the same vector have the same codes.

    Raises:
        ValueError: an argument is out of its range, or a vector holds NaN or infinity.
        ImportError: faiss is not installed.
    """
    vectors_N_D = np.ascontiguousarray(vectors_N_D, dtype=np.float32)
    if vectors_N_D.ndim != 2 or 0 in vectors_N_D.shape:
        raise UsageError(f"item vectors have shape {vectors_N_D.shape}; expected (N, D), neither of them 0")
    if not np.isfinite(vectors_N_D).all():
        row = int((~np.isfinite(vectors_N_D).all(1)).argmax())
        raise UsageError(f"the vector in row {row} holds NaN or infinity: embed that item again")
    n_items, width = vectors_N_D.shape
    if not 1 <= n_levels <= MOST_LEVELS:
        raise UsageError(f"n_levels is {n_levels}: expected 1 to {MOST_LEVELS}")
    if n_codes < 2 or n_codes & (n_codes - 1):
        raise UsageError(f"n_codes is {n_codes}: expected a power of two, 2 or more")
    if n_codes > n_items:
        raise UsageError(f"n_codes is {n_codes}, more than the {n_items} items: lower it")
    faiss = _faiss()
    n_bits = n_codes.bit_length() - 1
    quantizer = faiss.ResidualQuantizer(width, n_levels, n_bits)
    quantizer.train_type = quantizer.Train_default
    # Level by level, as in the paper: with a beam an item's first code would no longer be its nearest centroid.
    quantizer.max_beam_size = 1
    quantizer.cp.seed = seed
    quantizer.cp.niter = 25
    quantizer.cp.nredo = 3  # a single start is often a poor one
    quantizer.cp.min_points_per_centroid = 1  # small catalogs are no reason for a warning
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # sums in another order could move an item to another centroid
    try:
        quantizer.train(vectors_N_D)
        packed = quantizer.compute_codes(vectors_N_D)
    finally:
        faiss.omp_set_num_threads(threads)
    return faiss.unpack_bitstrings(packed, n_levels, n_bits).astype(np.int32)


def codebook_size(n_items: int) -> int:
    """A codebook size for N items: 256 as in TIGER, or fewer, so that a code is shared by 8 items on average."""
    return min(MOST_CODES, max(2, 1 << max(n_items // 8, 1).bit_length() - 1))


def computed_ids(item_ids: Sequence[str], codes_N_L: np.ndarray) -> SemanticIds:
    """Semantic ids from codes: `<a_…>` for the first level, `<b_…>` for the second, and numbers where items share all.

    Args:
        item_ids: N ids.
        codes_N_L: (N, L) codes, as `quantise` gives them.
    """
    letters = [chr(ord("a") + level) for level in range(codes_N_L.shape[1])]
    rows = [tuple(f"<{letter}_{code}>" for letter, code in zip(letters, row, strict=True)) for row in codes_N_L]
    return _numbered(item_ids, rows)


def item_tokens(item_ids: Sequence[str]) -> SemanticIds:
    """One code for each item, in the order of the item table.

    Args:
        item_ids: N ids, no two the same.

    Raises:
        UsageError: there are too many to be tokens of a vocabulary.
    """
    if len(item_ids) > MOST_ITEM_TOKENS:
        raise UsageError(
            f"item_tokens is item and the catalog has {len(item_ids):,} items, which would be as many added tokens; "
            f"expected {MOST_ITEM_TOKENS:,} at most: set item_tokens to semantic_id, or raise k_core"
        )
    return SemanticIds({item_id: (f"<i_{row}>",) for row, item_id in enumerate(item_ids)}, 0)


def published_ids(items: pl.DataFrame, column: str) -> SemanticIds:
    """Semantic ids that the item table brings, as `<a_12><b_3><c_45>` in a column.

    Args:
        items: the item table.
        column: where each of its items has its semantic id.

    Raises:
        ValueError: there is no such column, or an item has no id there, or one that is not written like this.
    """
    if column not in items.columns:
        raise UsageError(f"the item table has no column {column!r}: set semantic_id_column to one of {items.columns}")
    ids = items["item_id"].to_list()
    return _numbered(ids, parse_ids(dict(zip(ids, items[column].to_list(), strict=True)), f"column {column!r}"))


def parse_ids(texts: Mapping[str, object], place: str) -> list[tuple[str, ...]]:
    """Splits ids that are written in a row into their codes.

    Args:
        texts: item id to `<a_12><b_3><c_45>`; white space between codes does not matter.
        place: where they come from, for errors.

    Raises:
        ValueError: one is missing or not written like this.
    """
    rows, bad = [], []
    for item_id, text in texts.items():
        folded = "".join(text.split()) if isinstance(text, str) else ""
        codes = tuple(match.group() for match in CODE.finditer(folded))
        rows.append(codes)
        if not codes or "".join(codes) != folded:
            bad.append((item_id, text))
    if bad:
        item_id, text = bad[0]
        raise UsageError(
            f"{place}: item {item_id!r} has the semantic id {text!r} ({len(bad)} such of {len(texts)} items); "
            f"expected codes in a row, each a letter and a number, as in <a_12><b_3><c_45>"
        )
    return rows


def _numbered(item_ids: Sequence[str], rows: Sequence[tuple[str, ...]]) -> SemanticIds:
    """Appends 0, 1, 2, … at a level of their own to codes that several items have, in the order of the items."""
    counts = Counter(rows)
    n_collisions = len(rows) - len(counts)
    if n_collisions:
        # A letter that no id uses, so that no numbered id is another item's.
        letter = chr(max(ord(code[1]) for row in counts for code in row) + 1)
        if letter > "z":
            raise UsageError(
                f"{n_collisions} items have the codes of another one, and no letter is left after <z_…> to number them"
            )
        seen: Counter[tuple[str, ...]] = Counter()
        numbered = []
        for row in rows:
            numbered.append((*row, f"<{letter}_{seen[row]}>") if counts[row] > 1 else row)
            seen[row] += 1
        n_shared = sum(count for count in counts.values() if count > 1)
        logger.info(
            "%d of %d semantic ids were taken: the %d items that share one have a number appended",
            n_collisions,
            len(rows),
            n_shared,
        )
        rows = numbered
    return SemanticIds(dict(zip(item_ids, rows, strict=True)), n_collisions)


def write_ids(ids: SemanticIds) -> str:
    """Semantic ids as the text of a JSON file; `read_ids` reads it."""
    codes = {item_id: "".join(codes) for item_id, codes in ids.codes.items()}
    return json.dumps({"n_collisions": ids.n_collisions, "codes": codes}, indent=1)


def read_ids(file: Path) -> SemanticIds:
    """Reads what `write_ids` wrote.

    Raises:
        ValueError: it holds something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        texts, n_collisions = dict(found["codes"]), int(found["n_collisions"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{file}: expected n_collisions, and codes by item id, as JSON ({error!r})") from error
    return SemanticIds(dict(zip(texts, parse_ids(texts, str(file)), strict=True)), n_collisions)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "semantic ids are computed with faiss, which is not installed: pip install 'anyo-rl[semantic]', or name a "
            "column of published ids with semantic_id_column"
        ) from error
    return faiss
