"""Whether the answer is an item that can be recommended: in the catalog, and not in the history."""

from __future__ import annotations

from typing import Any


class ValidItemReward:
    """1.0 for an item of the catalog that the user does not have yet, 0.0 for any other answer.

    With a ranker of written items (`match`, `embedding`) that is the item that was written. With `likelihood` it is
    the item ranked first, which is always in the catalog: only the history says anything there, and with
    `mask_history` nothing does. With that, what the user chose before the history that is shown counts too.

    Args:
        allow_history: counts items of the history as valid, for data in which users choose an item again.

    >>> ValidItemReward()(item_id=["a", "b", None], history=[["b"], ["b"], []])
    [1.0, 0.0, 0.0]
    """

    def __init__(self, allow_history: bool = False) -> None:
        self.allow_history = allow_history
        self.__name__ = "valid_item"

    def __call__(
        self,
        item_id: list[str | None],
        history: list[list[str]],
        excluded: list[list[str]] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """One reward per completion.

        Args:
            item_id: the item that was written or is ranked first; `None` where there is none in the catalog.
            history: item ids before the target, as far back as a teacher is shown.
            excluded: item ids that rankings leave out; `None` for none.
            **kwargs: the other columns, not used.
        """
        return [
            float(item is not None and (self.allow_history or (item not in shown and item not in older)))
            for item, shown, older in zip(item_id, history, excluded or [[] for _ in item_id], strict=True)
        ]
