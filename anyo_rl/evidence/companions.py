"""Which items are chosen by the same users: counts that words can tell, cross-fitted as all evidence is.

The count of two items is the number of training users who chose both. A training example is shown counts of the users
of all other folds, so that neither its target nor anything else of its user is in them.
"""

from collections.abc import Collection, Mapping
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from anyo_rl.data.sequences import sequences_by_user
from anyo_rl.data.task import Task
from anyo_rl.evidence.folds import CrossFit

ROWS = 4096  # of counts that are remembered


class Companions:
    """Counts of items that the same training users chose.

    Args:
        task: the data. Nothing is counted before it is asked for.
        n_folds: of training users; as many as there are, if there are fewer.
        seed: of the folds.
    """

    def __init__(self, task: Task, n_folds: int = 5, seed: int = 0) -> None:
        self._task, self._n_folds, self._seed = task, n_folds, seed
        self._row = lru_cache(ROWS)(self._counted)
        self._popularity = lru_cache(self._counted_alone)

    @cached_property
    def _ids(self) -> list[str]:
        ids: list[str] = self._task.interactions.items["item_id"].to_list()
        return ids

    @cached_property
    def _index(self) -> dict[str, int]:
        return {item_id: item for item, item_id in enumerate(self._ids)}

    @cached_property
    def _crossed(self) -> CrossFit:
        sequences = sequences_by_user(self._task, self._index)
        return CrossFit.of(sequences, min(self._n_folds, len(sequences)), self._seed)

    @cached_property
    def _chosen(self) -> tuple[sparse.csr_array, sparse.csc_array]:
        """Which user chose what, once each: (U, N), by row and by column."""
        sets = [sorted(set(sequence)) for sequence in self._crossed.sequences.values()]
        items = np.array([item for each in sets for item in each], dtype=np.int64)
        starts = np.cumsum([0, *map(len, sets)])
        by_user = sparse.csr_array((np.ones(len(items), np.int64), items, starts), shape=(len(sets), len(self._ids)))
        return by_user, sparse.csc_array(by_user)

    @cached_property
    def _fold_U(self) -> NDArray[np.int64]:
        return np.array([self.folds[user] for user in self._crossed.sequences])

    def _counted_alone(self, fold: int) -> NDArray[np.int64]:
        """(N,) how many users of all folds but one chose each item."""
        return np.asarray(self._chosen[0][np.flatnonzero(self._fold_U != fold)].sum(axis=0)).ravel()

    @cached_property
    def folds(self) -> Mapping[str, int]:
        """User → fold, of training users."""
        return self._crossed.folds

    def _counted(self, item: int, fold: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The companions of an item among users of all folds but one (-1: of all), and their counts; the best first.

        In the order of the count over the root of the companion's own: what everybody chooses says little.
        """
        by_user, by_item = self._chosen
        users = by_item.indices[by_item.indptr[item] : by_item.indptr[item + 1]]
        counts_N = np.asarray(by_user[users[self._fold_U[users] != fold]].sum(axis=0)).ravel()
        counts_N[item] = 0
        there = np.flatnonzero(counts_N)
        order = np.lexsort((there, -counts_N[there] / np.sqrt(self._popularity(fold)[there])))
        return there[order], counts_N[there[order]]

    def of(
        self, item_id: str, user_id: str, *, training: bool, most: int, fewest: int = 1, without: Collection[str] = ()
    ) -> list[tuple[str, int]]:
        """The items that other users chose together with an item, and how many did.

        Args:
            item_id: the item.
            user_id: who asks.
            training: whether for an example that is trained on: its user's fold is then left out.
            most: how many, at most.
            fewest: users who chose both, or it is not told.
            without: items that are not told.
        """
        fold = self.folds[user_id] if training else -1
        items, counts = self._row(self._index[item_id], fold)
        left_out = set(without)
        found: list[tuple[str, int]] = []
        for item, count in zip(items.tolist(), counts.tolist(), strict=True):
            if len(found) == most:
                break
            if count >= fewest and self._ids[item] not in left_out:
                found.append((self._ids[item], count))
        return found
