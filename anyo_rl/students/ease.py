"""EASE: a linear model of items from items, in closed form (Steck 2019, arXiv 1905.03375).

It looks at which items a user has, and not at their order. The weights B are I − P · diag(1 / diag P) with
P = (XᵀX + λI)⁻¹ and X the users' items: what one item says of another that no third one explains.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from anyo_rl.data.sequences import HeldOut
from anyo_rl.students.choice import Choice, choose_on_validation
from anyo_rl.students.protocol import Histories, Scores, history_weights

MOST_ITEMS = 20_000  # its weights are N² numbers: 1.6 GB of float32 there, and the inverse takes minutes


@dataclass(frozen=True)
class Ease:
    """A fitted EASE.

    Attributes:
        weights: (N, N) float32; `weights[i, j]` is what item i in a history says for item j. The diagonal is 0.
        history_decay: weight of an item in the history, per item that came after it; 1 is the paper's.
    """

    weights: NDArray[np.float32]
    history_decay: float

    @property
    def n_items(self) -> int:
        """Size N of the catalog."""
        return len(self.weights)

    def scores(self, histories: Histories) -> Scores:
        """Scores (B, N) float32 after each history; an item that is there twice counts once, where it was last.

        Raises:
            ValueError: an item index is outside the catalog.
        """
        weights = history_weights(histories, self.n_items, self.history_decay)
        scores: Scores = np.asarray(weights.astype(np.float32) @ self.weights)
        return scores


@dataclass(frozen=True)
class EaseSettings:
    """How an EASE is fitted and read.

    Attributes:
        l2: λ, added to the diagonal; above 0.
        history_decay: weight in (0, 1] of a history's item, per item after it; 1 is the paper's.

    Raises:
        ValueError: a setting is out of its range.
    """

    l2: float = 300.0
    history_decay: float = 1.0

    def __post_init__(self) -> None:
        if self.l2 <= 0 or not 0 < self.history_decay <= 1:
            raise ValueError(
                f"found l2={self.l2}, history_decay={self.history_decay}, expected l2 > 0, the decay in (0, 1]"
            )


# What `choose_on_validation` tries: an inverse for each λ.
EASE_GRID = [EaseSettings(l2, decay) for l2 in (30.0, 100.0, 300.0, 1000.0) for decay in (0.6, 0.8, 1.0)]


@dataclass(frozen=True)
class EaseGram:
    """The item-by-item counts that fits of other settings share.

    Attributes:
        gram: (N, N) float64, how many users have both items.
    """

    gram: NDArray[np.float64]

    @classmethod
    def of(cls, sequences: Histories, n_items: int) -> "EaseGram":
        """Counts the users of training sequences.

        Raises:
            ValueError: there are more than `MOST_ITEMS` items, or an index is outside the catalog.
        """
        if n_items > MOST_ITEMS:
            raise ValueError(
                f"found {n_items} items, expected at most {MOST_ITEMS}: EASE needs N² numbers, leave it out"
            )
        users = history_weights(sequences, n_items, 1.0)
        return cls((users.T @ users).toarray())

    def fit(self, settings: EaseSettings) -> Ease:
        """The weights in closed form."""
        return Ease(self._weights(settings.l2), settings.history_decay)

    def _weights(self, l2: float) -> NDArray[np.float32]:
        inverse = linalg.inv(self.gram + l2 * np.eye(len(self.gram)), overwrite_a=True, check_finite=False)
        inverse /= -np.diag(inverse)
        np.fill_diagonal(inverse, 0.0)
        return inverse.astype(np.float32)


def choose_ease(gram: EaseGram, grid: Sequence[EaseSettings], validation: HeldOut) -> Choice[EaseSettings]:
    """Chooses settings on validation, with one inverse for each λ."""
    weights: dict[float, NDArray[np.float32]] = {}

    def fit(settings: EaseSettings) -> Ease:
        if settings.l2 not in weights:
            weights.clear()  # N² numbers each
            weights[settings.l2] = gram._weights(settings.l2)
        return Ease(weights[settings.l2], settings.history_decay)

    return choose_on_validation(fit, grid, validation)
