"""Settings of kinds that are asked about candidates: which ones a prompt shows, and what SFT learns of them."""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from anyo_rl.ranking.order import windows
from anyo_rl.run.settings import Bounds, UsageError, check_bounds

Source = Literal["evidence", "item_knn", "popularity", "ease", "sasrec"]
Learns = Literal["clicks", "evidence"]
Negatives = Literal["candidates", "catalog"]
YES, NO = "yes", "no"


@dataclass(frozen=True)
class Listed:
    """Candidates, and how a teacher gets to see them.

    Attributes:
        candidates_from: who names them; the run's evidence where it has one, else item-kNN, if `None`.
        n_candidates: how many are reranked; all others stay behind them in their order.
        window: how many a prompt shows at most.
        stride: how far a window is in front of the one before it.
        shuffled: whether a prompt shows them in an order of its own in place of the incoming one.
        scores: whether a prompt tells the source's score of each.
        learns: the order that SFT teaches: the target and behind it the others as they come in (`clicks`), or all as
            they come in (`evidence`).
    """

    candidates_from: Source | None = None
    n_candidates: int = 20
    window: int = 20
    stride: int = 10
    shuffled: bool = False
    scores: bool = False
    learns: Learns = "clicks"

    def __post_init__(self) -> None:
        check_bounds(self, {"n_candidates": Bounds(2, 10_000), "window": Bounds(2, 1000)})
        windows(self.n_candidates, self.window, self.stride)
        if self.learns == "evidence" and not self.shuffled:
            raise UsageError(
                "learns is evidence and shuffled is false: the order to learn is then the order that is shown, and "
                "there is nothing to learn. Set shuffled to true, or learns to clicks"
            )

    @property
    def width(self) -> int:
        """Candidates of a prompt, at most."""
        return min(self.n_candidates, self.window)


@dataclass(frozen=True)
class Liked:
    """What counts as a liked item, and what as another.

    Attributes:
        least_rating: ratings from here on say yes and others no. Without it the item really chosen says yes, and an
            item that the user did not choose says no.
        negatives: where such an item is drawn from.
        n_shots: training examples, drawn by the seed; all if `None`.
    """

    least_rating: float | None = None
    negatives: Negatives = "candidates"
    n_shots: int | None = None

    def __post_init__(self) -> None:
        check_bounds(self, {"n_shots": Bounds(1)})

    @property
    def told(self) -> str:
        """How yes and no were told apart, for tables."""
        if self.least_rating is not None:
            return f"liked from a rating of {self.least_rating:g}"
        return f"the item chosen and one sampled from the {self.negatives}"


@dataclass(frozen=True)
class Question:
    """What an example is asked besides its history.

    Attributes:
        listed: ids of the candidates as they are numbered, or of the one item in question.
        target: the right answer, an id of the answers; `None` where none is.
        learned: answers in the order that SFT teaches.
        scores: the source's score of each candidate, where prompts tell it.
    """

    listed: tuple[str, ...]
    target: str | None = None
    learned: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()


def answers_of(yes_no: bool, listed: Listed) -> pl.DataFrame:
    """All answers that there are, as the item table of a small catalog: numbers, written as `[1]`, or yes and no.

    Args:
        yes_no: whether they are yes and no.
        listed: its candidates.
    """
    if yes_no:
        return pl.DataFrame({"item_id": [YES, NO], "title": [YES, NO]})
    numbers = [str(place + 1) for place in range(listed.width)]
    return pl.DataFrame({"item_id": numbers, "title": [f"[{number}]" for number in numbers]})
