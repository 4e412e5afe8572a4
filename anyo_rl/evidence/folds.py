"""Cross-fitting: what a training example meets was fitted without its user.

Users lie in folds. A retriever that gives evidence to the users of a fold is fitted on the users of all other folds;
one whose evidence is to teach the ranker that scores another fold is fitted without both. Held-out examples, whose
targets no retriever has seen, meet retrievers of all training users.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anyo_rl.run.settings import UsageError


def folds_of(users: Iterable[str], n_folds: int, seed: int) -> dict[str, int]:
    """User → fold: drawn by the seed from the users' names alone, so that nobody's events matter; sizes are equal.

    Raises:
        UsageError: there are fewer than two folds, or fewer users than folds.

    >>> sorted(folds_of("edcba", 2, seed=0).values())
    [0, 0, 0, 1, 1]
    """
    names = sorted(set(users))
    if not 2 <= n_folds <= len(names):
        raise UsageError(f"n_folds is {n_folds}: expected 2 to {len(names)}, the number of training users")
    order = np.random.default_rng(seed).permutation(len(names))
    return {names[user]: place % n_folds for place, user in enumerate(order.tolist())}


@dataclass(frozen=True)
class CrossFit:
    """Training users in folds.

    Attributes:
        sequences: user → training sequence, by item index.
        folds: user → fold.
    """

    sequences: Mapping[str, Sequence[int]]
    folds: Mapping[str, int]

    @classmethod
    def of(cls, sequences: Mapping[str, Sequence[int]], n_folds: int, seed: int) -> "CrossFit":
        """Draws the folds; raises as `folds_of` does."""
        return cls(sequences, folds_of(sequences, n_folds, seed))

    @property
    def n_folds(self) -> int:
        """How many folds there are."""
        return max(self.folds.values()) + 1

    def without(self, *left_out: int) -> list[Sequence[int]]:
        """The sequences of the users who are in none of these folds."""
        return [sequence for user, sequence in self.sequences.items() if self.folds[user] not in left_out]
