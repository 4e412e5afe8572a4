"""The `match` ranker: the item that was written, right or wrong.

A written item is at rank 1 and **everything that was not written ties behind it**. Ties count against the target, so
a target that was not written is last: its rank is the number of items in the ranking (N on the whole catalog without
masking). A completion without an item, or with one that the catalog does not have, ranks nothing: everything ties and
the target is last as well. The rank is all or nothing on purpose; `embedding` and `likelihood` give a finer one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.completion import parse
from anyo_rl.ranking.protocol import Ranking, check_lengths, competing_items


class MatchRanker:
    """Ranks by the item that a completion names.

    Args:
        catalog: its items are named by title or semantic id, which is unique.
    """

    kind = "match"

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def written_id(self, completion: str) -> str | None:
        """The id of the item that a completion names; `None` when it names none that the catalog has."""
        return self.catalog.find(parse(completion).item)

    def rank(
        self,
        contexts_B: Sequence[str],
        target_ids_B: Sequence[str],
        *,
        top_k: int = 10,
        excluded_B: Sequence[Collection[str]] | None = None,
        candidates_B: Sequence[Collection[str]] | None = None,
    ) -> Ranking:
        """Ranks completion texts; see `anyo_rl.ranking.protocol.Ranker.rank` for the arguments.

        The top list holds the written item, with score 1.0, when it is in the ranking; else it is empty.
        """
        check_lengths(len(contexts_B), target_ids_B=target_ids_B, excluded_B=excluded_B, candidates_B=candidates_B)
        ranks_B = np.empty(len(contexts_B), dtype=np.int64)
        top_ids_B_K: list[list[str]] = []
        for b, (completion, target) in enumerate(zip(contexts_B, target_ids_B, strict=True)):
            competing = competing_items(
                self.catalog.index,
                target,
                excluded_B[b] if excluded_B is not None else None,
                candidates_B[b] if candidates_B is not None else None,
            )
            written = self.written_id(completion)
            placed = written is not None and competing.has(self.catalog.index[written])
            ranks_B[b] = 1 if placed and written == target else competing.last_rank
            top_ids_B_K.append([written][:top_k] if placed and written is not None else [])
        return Ranking(ranks_B, top_ids_B_K, [[1.0] * len(row) for row in top_ids_B_K])
