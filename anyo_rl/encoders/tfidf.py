"""Vectors of titles from their words alone: TF-IDF, made dense by a truncated singular value decomposition.

Latent semantic analysis (Deerwester et al. 1990): no weights to download, and a second for a catalog of ten thousand.
"""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import svds

WORD = re.compile(r"\w+")


def tfidf_vectors(texts: Sequence[str], dim: int = 256) -> NDArray[np.float32]:
    """(N, D) float32 vectors of length 1, whose products are cosines; zeros for a text without a word.

    A word counts 1 + log(times it is there), less the more texts have it: log((1 + N) / (1 + n)) + 1.

    Args:
        texts: titles, say.
        dim: most dimensions D; with fewer words or texts there are fewer, and the cosines are those of TF-IDF itself.

    Raises:
        ValueError: there is no text.
    """
    if not texts:
        raise ValueError("found no text, expected one at least")
    words: dict[str, int] = {}
    places = [[words.setdefault(word, len(words)) for word in WORD.findall(text.lower())] for text in texts]
    lengths = [len(row) for row in places]
    columns = np.fromiter((place for row in places for place in row), dtype=np.int64, count=sum(lengths))
    rows = np.repeat(np.arange(len(texts)), lengths)
    # Duplicates are summed: how often a text has a word.
    counts = sparse.csr_array((np.ones(len(columns)), (rows, columns)), shape=(len(texts), max(len(words), 1)))
    counts.sum_duplicates()
    texts_with = np.bincount(counts.indices, minlength=counts.shape[1])
    counts.data = 1 + np.log(counts.data)
    weighted = counts @ sparse.diags_array(np.log((1 + len(texts)) / (1 + texts_with)) + 1)
    weighted = sparse.csr_array(weighted)
    if min(weighted.shape) <= dim:
        return _of_length_one(weighted.toarray())
    lengths_N = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)))
    weighted = sparse.diags_array(1 / np.maximum(lengths_N, 1e-12)) @ weighted
    # A start of its own, so that the same texts give the same vectors.
    start = np.random.default_rng(0).normal(size=min(weighted.shape))
    left, values, _ = svds(sparse.csr_array(weighted), k=dim, v0=start)
    return _of_length_one(left * values)


def _of_length_one(vectors_N_D: NDArray[np.float64]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors_N_D, axis=1, keepdims=True)
    # What is as short as rounding noise has no direction.
    return np.where(lengths > 1e-9, vectors_N_D / np.maximum(lengths, 1e-9), 0.0).astype(np.float32)
