"""A sequence-aware item-kNN, the baseline that tables are measured against.

It is fitted on training sequences of item indices (0..N-1, oldest first, repeats allowed) and scores whole histories.
The similarity is sparse; the only dense array is the (B, N) float32 block of scores that is asked for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from anyo_rl.data.sequences import HeldOut
from anyo_rl.students.choice import Choice, choose_on_validation
from anyo_rl.students.protocol import Histories, Scores, event_arrays, history_weights, user_counts


@dataclass(frozen=True)
class ItemKNN:
    """A fitted item-kNN: `similarity[i, j]` is what item i in a history says for item j as the next one.

    Attributes:
        similarity: (N, N) sparse, at most `neighbours` entries a row.
        popularity: (N,) number of training users of each item; breaks ties, far below any similarity.
        history_decay: Weight of an item in the history, per item that came after it.
    """

    similarity: sparse.csr_array
    popularity: NDArray[np.float64]
    history_decay: float

    @property
    def n_items(self) -> int:
        """Size N of the catalog."""
        return self.similarity.shape[0]

    def scores(self, histories: Histories) -> Scores:
        """Scores (B, N) float32 after each history; an item that is there twice counts once, where it was last.

        An empty history, and all items that no neighbour speaks for, are ordered by popularity.

        Raises:
            ValueError: If an item index is outside the catalog.
        """
        weights_B_N = history_weights(histories, self.n_items, self.history_decay)
        sums_B_N = weights_B_N @ self.similarity
        sums_B_N.data = sums_B_N.data.astype(np.float32)  # half the memory of the block; `astype` would sort it first
        scores: Scores = sums_B_N.toarray()
        scores += self._tie_break_N
        return scores

    @cached_property
    def _tie_break_N(self) -> Scores:
        """Popularity, scaled to less than a thousandth of the smallest similarity."""
        smallest = float(self.similarity.data.min()) if self.similarity.nnz else 1.0
        most = max(float(self.popularity.max(initial=0.0)), 1.0)
        return (self.popularity / most * smallest * 1e-3).astype(np.float32)


def _co_occurrence(
    items: NDArray[np.int64],
    lengths: NDArray[np.int64],
    n_items: int,
    *,
    gap_decay: float,
    backward: float,
    window: int,
) -> sparse.csr_array:
    """C[i, j]: over each user's pairs of i before j in the window, the sum of gap_decay**(items between them).

    And `backward` times the same for j before i.
    """
    users = np.repeat(np.arange(len(lengths)), lengths)
    counts = sparse.csr_array((n_items, n_items), dtype=np.float64)
    for gap in range(1, min(window, int(lengths.max(initial=1)) - 1) + 1):
        weight = gap_decay ** (gap - 1)
        if weight < 1e-4:
            break
        same_user = users[:-gap] == users[gap:]
        pairs = (items[:-gap][same_user], items[gap:][same_user])
        # One gap at a time: the pairs held at once are never more than the events.
        counts = counts + sparse.csr_array((np.full(len(pairs[0]), weight), pairs), shape=(n_items, n_items))
    return sparse.csr_array(counts + backward * counts.T) if backward else counts


def _keep_largest(matrix: sparse.csr_array, k: int) -> sparse.csr_array:
    """The `k` largest entries of each row; of equal ones, those of the lower column."""
    matrix.sort_indices()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    place = np.arange(len(order)) - matrix.indptr[:-1].repeat(np.diff(matrix.indptr))
    kept = order[place < k]
    return sparse.csr_array((matrix.data[kept], (rows[kept], matrix.indices[kept])), shape=matrix.shape)


@dataclass(frozen=True)
class KnnSettings:
    """How an item-kNN counts and normalises.

    Attributes:
        neighbours: most entries kept per item.
        history_decay: weight in (0, 1] of a history's item, per item after it; near 0 only the last item counts.
        gap_decay: weight in (0, 1] of a pair, per item between the two.
        backward: weight in [0, 1] of "j before i" as a reason for j after i; 0 counts in the order of time only.
        source_power: exponent in [0, 1] on the count of the item in the history.
        target_power: exponent in [0, 1] on the count of the item that is scored.
        shrinkage: added to the counts, so that rare items need more than one witness.
        window: most positions between the two items of a pair: bounds time and memory on long histories.

    Raises:
        ValueError: a setting is out of range.
    """

    neighbours: int = 200
    history_decay: float = 0.8
    gap_decay: float = 0.8
    backward: float = 0.5
    source_power: float = 0.5
    target_power: float = 0.0
    shrinkage: float = 0.0
    window: int = 50

    def __post_init__(self) -> None:
        shares, decays = ("backward", "source_power", "target_power"), ("history_decay", "gap_decay")
        wrong = [f"{name}={getattr(self, name)}" for name in shares if not 0 <= getattr(self, name) <= 1]
        wrong += [f"{name}={getattr(self, name)}" for name in decays if not 0 < getattr(self, name) <= 1]
        if wrong or self.neighbours < 1 or self.window < 1 or self.shrinkage < 0:
            counts = f"neighbours={self.neighbours}, window={self.window}, shrinkage={self.shrinkage}"
            raise ValueError(
                f"found {', '.join(wrong) or counts}, expected powers and `backward` in [0, 1], decays in (0, 1], "
                f"neighbours and window >= 1, shrinkage >= 0"
            )


# What `choose_item_knn` tries: 9 fits, each with three weights of the history.
KNN_GRID = [
    KnnSettings(backward=backward, target_power=target_power, history_decay=history_decay)
    for backward, target_power, history_decay in product((0.0, 0.5, 1.0), (0.0, 0.3, 0.6), (0.3, 0.6, 0.9))
]


def fit_item_knn(sequences: Histories, n_items: int, settings: KnnSettings = KnnSettings()) -> ItemKNN:
    """Item-kNN on decayed, directed co-occurrence, normalised by item counts.

    similarity[i, j] = C[i, j] / ((n_i + shrinkage)**source_power * (n_j + shrinkage)**target_power), where n is how
    many users have an item and C counts pairs of one user's events, those close together more. Both powers at 0.5,
    `gap_decay` 1 and `backward` 1 give the cosine; `source_power` 1 gives the conditional probability, and
    `target_power` what it holds against popular items (Deshpande & Karypis 2004). Direction and decay are those of
    sequential rules (Ludewig & Jannach 2018). An item bought again is its own neighbour.

    Args:
        sequences: training sequences of item indices, one per user, oldest first.
        n_items: size of the catalog N.
        settings: how pairs are counted and normalised.

    Raises:
        ValueError: an item index is outside the catalog.
    """
    items, lengths = event_arrays(sequences, n_items, "sequences")
    counts = user_counts(items, lengths, n_items)
    similarity = _co_occurrence(
        items, lengths, n_items, gap_decay=settings.gap_decay, backward=settings.backward, window=settings.window
    )
    scale = (
        np.maximum(counts, 1.0) + settings.shrinkage
    )  # an item without events has no pairs: its scale is never used
    similarity = (
        sparse.diags_array(scale**-settings.source_power)
        @ similarity
        @ sparse.diags_array(scale**-settings.target_power)
    )
    return ItemKNN(_keep_largest(sparse.csr_array(similarity), settings.neighbours), counts, settings.history_decay)


def choose_item_knn(
    sequences: Histories, n_items: int, validation: HeldOut, grid: Sequence[KnnSettings] = KNN_GRID
) -> Choice[KnnSettings]:
    """Chooses settings on validation; neighbours that differ in the history's weights alone are counted once.

    Args:
        sequences: as in `fit_item_knn`.
        n_items: size of the catalog N.
        validation: never the test set.
        grid: what to try, those of the same neighbours together.

    Raises:
        ValueError: an item index is outside the catalog, or there are no validation examples.
    """
    counted: dict[KnnSettings, ItemKNN] = {}

    def fit(settings: KnnSettings) -> ItemKNN:
        alike = replace(settings, history_decay=1.0)
        if alike not in counted:
            counted.clear()  # `neighbours` numbers for each item
            counted[alike] = fit_item_knn(sequences, n_items, alike)
        return replace(counted[alike], history_decay=settings.history_decay)

    return choose_on_validation(fit, grid, validation)
