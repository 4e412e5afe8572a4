"""The `order` ranker: written orders of numbered candidates.

The target's rank is its place in the order, as it was repaired (`anyo_rl.ranking.order`). An answer that names no
candidate leaves them as they came in and says so: trainers take it for one that does not parse.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from anyo_rl.catalog.catalog import Catalog
from anyo_rl.data.completion import parse
from anyo_rl.ranking.order import Order, read_order
from anyo_rl.ranking.protocol import Ranking, check_lengths


@dataclass(frozen=True)
class OrderRanking(Ranking):
    """A ranking by written orders.

    Attributes:
        orders_B: how each was read.
    """

    about: ClassVar[str] = "order"  # what `told` tells of, in logs

    orders_B: list[Order] = field(default_factory=list)

    def told(self) -> dict[str, float]:
        """Means for logs; see `told`."""
        return told(self.orders_B)


def told(orders: Sequence[Order]) -> dict[str, float]:
    """What there is to know of orders: shares that came as they were, needed no mending, or named nothing; and means.

    Returns:
        `as_it_came`, `whole` and `unread` are shares of the orders; `missing`, `repeated` and `unknown` are numbers of
        an order on average. Empty where there are no orders.
    """
    if not orders:
        return {}
    found = {"as_it_came": [one.as_it_came for one in orders], "whole": [one.whole for one in orders]}
    found |= {"unread": [not one.named for one in orders]}
    numbers = {name: [getattr(one, name) for one in orders] for name in ("missing", "repeated", "unknown")}
    return {name: float(np.mean(values)) for name, values in (found | numbers).items()}


class OrderRanker:
    """Ranks by the orders that completions end with.

    Args:
        answers: the numbers, as a catalog.
    """

    kind = "order"

    def __init__(self, answers: Catalog) -> None:
        self.catalog = answers

    def rank(
        self,
        contexts_B: Sequence[str],
        target_ids_B: Sequence[str],
        *,
        top_k: int = 10,
        excluded_B: Sequence[Collection[str]] | None = None,
        candidates_B: Sequence[Collection[str]] | None = None,
    ) -> OrderRanking:
        """Ranks completion texts; see `anyo_rl.ranking.protocol.Ranker.rank` for the arguments.

        The candidates of each are the first numbers that are not excluded. The top list is the order, or empty where
        no candidate is named.

        Raises:
            ValueError: what is excluded is not the last numbers, a target is no number that is left, or there are
                candidate sets, of which a list knows nothing.
        """
        check_lengths(len(contexts_B), target_ids_B=target_ids_B, excluded_B=excluded_B)
        if candidates_B is not None:
            raise ValueError("orders are of all candidates that were shown: leave candidates_B out")
        numbers = self.catalog.item_ids
        orders, ranks, top = [], [], []
        for b, (text, target) in enumerate(zip(contexts_B, target_ids_B, strict=True)):
            out = set(excluded_B[b]) if excluded_B is not None else set()
            n = len(numbers) - len(out & set(numbers))
            if out & set(numbers[:n]) or target not in numbers[:n]:
                raise ValueError(f"of {len(numbers)} numbers {sorted(out)} are left out, and {target} is the target")
            order = read_order(parse(text).item, n)
            orders.append(order)
            ranks.append(1 + order.places.index(self.catalog.index[target]))
            top.append([numbers[place] for place in order.places[:top_k]] if order.named else [])
        scores = [[1.0 / (1 + place) for place in range(len(row))] for row in top]
        return OrderRanking(np.array(ranks, dtype=np.int64), top, scores, orders_B=orders)
