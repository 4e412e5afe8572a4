"""The contract of a ranker: contexts and targets in, `Ranking` out.

Every kind gives a rank by the same rules, so that they can stand in one table:

- ranks are 1-based, among the whole catalog, and **ties count against the target**;
- items are named by id; two items with the same title are two items;
- `excluded_B` (history masking) takes items out of the ranking, but never the target;
- `candidates_B` (retrieve, then rerank) keeps only these items. A target that is not among them ties with everything
  else that was not retrieved, so it is last in the catalog: rank N, less what is excluded.

What a context is belongs to the kind: token ids up to the marker for `likelihood`, the completion's text for
`embedding` and `match`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """The answer of a ranker for B contexts.

    Attributes:
        ranks_B: int64, shape (B,), 1-based rank of the target; ties count against it. 0 where no target is known, from
            a ranker that allows for it.
        top_ids_B_K: for each context the best item ids, best first. Rows may be shorter than K, where fewer items
            have a place of their own (a `match` ranker knows one at most).
        top_scores_B_K: their scores, same lengths, higher is better. Comparable within a row only.
        log_probs_B: float, shape (B,), log p(target), where the ranker is a distribution; `None` elsewhere.
        lowest_B, highest_B: int64, shape (B,), a bracket of the rank, from a ranker that may stop early.
        top_exact_B: bool, shape (B,), whether the top items are certain, from a ranker that may stop early.
        complete_B: bool, shape (B,), whether no budget ended the search, from a ranker that may stop early.
        n_nodes_B: int64, shape (B,), tree nodes that were evaluated for each context, where they were counted.
        allows_unknown: whether there may be rows without a known target.
    """

    ranks_B: np.ndarray
    top_ids_B_K: list[list[str]]
    top_scores_B_K: list[list[float]]
    log_probs_B: np.ndarray | None = None
    lowest_B: np.ndarray | None = None
    highest_B: np.ndarray | None = None
    top_exact_B: np.ndarray | None = None
    complete_B: np.ndarray | None = None
    n_nodes_B: np.ndarray | None = None
    allows_unknown: bool = False

    def __post_init__(self) -> None:
        n = len(self.ranks_B)
        lengths = {"top_ids_B_K": len(self.top_ids_B_K), "top_scores_B_K": len(self.top_scores_B_K)}
        for name in ("log_probs_B", "lowest_B", "highest_B", "top_exact_B", "complete_B", "n_nodes_B"):
            if getattr(self, name) is not None:
                lengths[name] = len(getattr(self, name))
        wrong = {name: length for name, length in lengths.items() if length != n}
        if wrong:
            raise ValueError(f"a Ranking of {n} ranks needs {n} rows in every field, found {wrong}")
        if n and int(np.min(self.ranks_B)) < (0 if self.allows_unknown else 1):
            raise ValueError(f"ranks are 1-based, found {int(np.min(self.ranks_B))}")


class Ranker(Protocol):
    """Anything with this method ranks; there is nothing to inherit from."""

    def rank(
        self,
        contexts_B: Sequence[Any],
        target_ids_B: Sequence[str],
        *,
        top_k: int = 10,
        excluded_B: Sequence[Collection[str]] | None = None,
        candidates_B: Sequence[Collection[str]] | None = None,
    ) -> Ranking:
        """Ranks the target of each context among the catalog, and names the `top_k` best items.

        Args:
            contexts_B: what the ranker reads, one per completion.
            target_ids_B: the item that the user really chose, one per completion.
            top_k: how many items to name, at most.
            excluded_B: item ids to take out of each ranking; ids outside the catalog are passed over.
            candidates_B: item ids to keep in each ranking; `None` keeps the whole catalog.
        """
        ...


@dataclass(frozen=True)
class Competing:
    """Which items compete in one ranking, as positions in the catalog: a mask would be as long as the catalog.

    Attributes:
        removed: ascending, all that do not, where there are no candidates.
        kept: ascending, all that do, where there are candidates; `None` elsewhere.
        has_target: whether the target is one of them.
        last_rank: the target's rank when everything ties.
    """

    removed: tuple[int, ...]
    kept: tuple[int, ...] | None
    has_target: bool
    last_rank: int

    def has(self, item: int) -> bool:
        """Whether an item competes."""
        return item not in self.removed if self.kept is None else item in self.kept

    def mask(self, n_items: int) -> np.ndarray:
        """The same as a bool mask, shape (N,)."""
        mask_N = np.full(n_items, self.kept is None)
        mask_N[list(self.removed if self.kept is None else self.kept)] = self.kept is not None
        return mask_N


def competing_items(
    index: Mapping[str, int],
    target_id: str | None,
    excluded: Collection[str] | None = None,
    candidates: Collection[str] | None = None,
) -> Competing:
    """Which items compete in one ranking.

    The target keeps its place against `excluded`, not against `candidates`: among these it ranks last where it is none
    of them, behind the whole catalog less what is excluded. Excluded or candidate ids that the catalog does not have
    are passed over: a log holds items that can no longer be recommended.

    Args:
        index: item id to position in the catalog, 0..N-1.
        target_id: the item that is ranked; `None` where no item is.
        excluded: item ids to take out.
        candidates: item ids to keep; `None` keeps all.

    Raises:
        ValueError: the target is not in the catalog.
    """
    if target_id is not None and target_id not in index:
        raise ValueError(
            f"target {target_id!r} is not one of the {len(index)} items of the catalog: "
            "rebuild the catalog with it, or drop the example"
        )
    removed = {index[item] for item in (excluded or ()) if item in index and item != target_id}
    last = len(index) - len(removed)
    if candidates is None:
        return Competing(tuple(sorted(removed)), None, target_id is not None, last)
    kept = {index[item] for item in candidates if item in index} - removed
    has_target = target_id is not None and index[target_id] in kept
    return Competing((), tuple(sorted(kept)), has_target, len(kept) if has_target else last)


def check_lengths(n_contexts: int, **columns: Sized | None) -> None:
    """Refuses a column that is not as long as the contexts, by a `ValueError` that names it."""
    for name, column in columns.items():
        if column is not None and len(column) != n_contexts:
            raise ValueError(f"{n_contexts} contexts but {len(column)} rows in {name}: give one per context")
