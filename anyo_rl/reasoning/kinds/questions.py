"""What examples are asked about candidates, and which answers are right and taught.

What a training example is shown was named without its user's fold, and targets are never put in: an example whose
target is no candidate teaches nothing here, and is left out of training and validation. On test all examples count.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anyo_rl.data.schema import EXAMPLE_ID, RATING, TARGET_ID, TIMESTAMP, TRAIN, USER_ID, DataError
from anyo_rl.data.task import Task
from anyo_rl.evidence.candidates import NONE
from anyo_rl.evidence.lists import Lists
from anyo_rl.ranking.order import windows
from anyo_rl.reasoning.kinds.candidates import NO, YES, Liked, Listed, Question, answers_of
from anyo_rl.run.settings import UsageError

AT_ONCE = 4096  # examples whose candidates are asked for together


class Questions(Protocol):
    """Whatever asks examples about candidates."""

    def of(self, example: Mapping[str, Any]) -> Question:
        """The question to an example, of its columns."""

    def usable(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of the row numbers of examples, those that have a right answer; asks for what `of` needs on the way."""

    @property
    def answer_ids(self) -> tuple[str, ...]:
        """All answers that there are."""


@dataclass(frozen=True)
class GivenQuestions:
    """Questions that were made elsewhere, by example id.

    Attributes:
        questions: of each example.
        answer_ids: all answers that there are.
    """

    questions: Mapping[str, Question]
    answer_ids: tuple[str, ...]

    def of(self, example: Mapping[str, Any]) -> Question:
        """See `Questions`."""
        return self.questions[example[EXAMPLE_ID]]

    def usable(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Questions`."""
        return places


@dataclass(frozen=True, eq=False)
class Candidates:
    """The candidates of a task's examples, asked for once.

    Attributes:
        task: the data.
        lists: names them.
        listed: how many.
        seed: of orders and draws, each of which belongs to its example.
    """

    task: Task
    lists: Lists
    listed: Listed
    seed: int
    _known: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = field(default_factory=dict)

    @cached_property
    def item_ids(self) -> list[str]:
        """Of the catalog."""
        ids: list[str] = self.task.interactions.items["item_id"].to_list()
        return ids

    def ask_for(self, example_ids: Sequence[str]) -> None:
        """Asks for the candidates of examples, some at a time.

        Raises:
            UsageError: an example has none.
        """
        wanted = [example for example in example_ids if example not in self._known]
        for start in range(0, len(wanted), AT_ONCE):
            ids = wanted[start : start + AT_ONCE]
            found = self.lists.incoming(ids, self.listed.n_candidates)
            for row, example in enumerate(ids):
                real = found.items_R_K[row] != NONE
                if not real.any():
                    raise UsageError(f"nobody names a candidate of example {example!r}: take another source")
                items = tuple(self.item_ids[item] for item in found.items_R_K[row, real])
                self._known[example] = items, tuple(found.scores_R_K[row, real].tolist())

    def of(self, example_id: str) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """The candidates of an example, the best first, and their scores."""
        if example_id not in self._known:
            self.ask_for([example_id])
        return self._known[example_id]

    def rng(self, example_id: str, turn: int = 0) -> np.random.Generator:
        """Draws that belong to an example."""
        return np.random.default_rng([self.seed, turn, zlib.crc32(example_id.encode())])

    def examples(self, places: NDArray[np.int64]) -> pl.DataFrame:
        """Examples by their row numbers, with their candidates asked for."""
        found = self.task.examples[places].select(EXAMPLE_ID, TARGET_ID)
        self.ask_for(found[EXAMPLE_ID].to_list())
        return found


def shown_order(candidates: Candidates, example_id: str, n: int, turn: int = 0) -> list[int]:
    """The order in which a prompt shows n candidates: as they come in, or one that is drawn."""
    if not candidates.listed.shuffled:
        return list(range(n))
    return [int(place) for place in candidates.rng(example_id, turn).permutation(n)]


@dataclass(frozen=True, eq=False)
class OrderQuestions:
    """Candidates to be put in order.

    An example is asked about one of the windows that have its target, drawn once.

    Attributes:
        candidates: of the examples.
        whole: whether SFT teaches the whole order, which is written then; else its first number alone.
    """

    candidates: Candidates
    whole: bool = False

    @cached_property
    def answer_ids(self) -> tuple[str, ...]:
        """See `Questions`."""
        return tuple(answers_of(False, self.candidates.listed)["item_id"])

    def usable(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Questions`: those whose target is a candidate."""
        rows = self.candidates.examples(places).iter_rows()
        return places[[target in self.candidates.of(example)[0] for example, target in rows]]

    def of(self, example: Mapping[str, Any]) -> Question:
        """See `Questions`."""
        example_id, target, listed = example[EXAMPLE_ID], example[TARGET_ID], self.candidates.listed
        items, scores = self.candidates.of(example_id)
        window = range(min(len(items), listed.width))
        if target in items:
            place = items.index(target)
            having = [one for one in windows(len(items), listed.window, listed.stride) if place in one]
            window = having[int(self.candidates.rng(example_id, turn=1).integers(len(having)))]
        order = [window[at] for at in shown_order(self.candidates, example_id, len(window))]
        number = {place: str(at + 1) for at, place in enumerate(order)}
        right = items.index(target) if target in items else None
        taught = list(window)  # as they come in
        if right is not None and listed.learns == "clicks":
            taught = [right, *(place for place in window if place != right)]
        return Question(
            listed=tuple(items[place] for place in order),
            target=None if right is None else number[right],
            learned=tuple(number[place] for place in taught[: None if self.whole else 1]),
            scores=tuple(scores[place] for place in order) if listed.scores else (),
        )


@dataclass(frozen=True, eq=False)
class LikedQuestions:
    """Whether a user likes an item.

    With ratings it is the item chosen next, liked or not. Without them it is that item for one half of the examples,
    and for the other one that the user did not choose, which may be one that would have been liked.

    Attributes:
        candidates: of the examples.
        liked: what counts as liked.
    """

    candidates: Candidates
    liked: Liked

    @property
    def answer_ids(self) -> tuple[str, ...]:
        """See `Questions`."""
        return (YES, NO)

    @cached_property
    def ratings(self) -> Mapping[str, float]:
        """Example id → rating of its target.

        Raises:
            DataError: the log has no ratings.
        """
        task = self.candidates.task
        frame = task.interactions.frame
        if RATING not in frame.columns or task.args.split == "given":
            raise DataError(
                f"least_rating is {self.liked.least_rating} and {task.interactions.name} has no ratings of events: "
                "leave least_rating out, so that items are sampled that the user did not choose"
            )
        events = frame.select(USER_ID, pl.col("item_id").alias(TARGET_ID), TIMESTAMP, RATING)
        events = events.unique([USER_ID, TARGET_ID, TIMESTAMP], keep="last", maintain_order=True)
        rated = task.examples.select(EXAMPLE_ID, USER_ID, TARGET_ID, TIMESTAMP).join(
            events, on=[USER_ID, TARGET_ID, TIMESTAMP], how="inner"
        )
        return dict(rated.drop_nulls(RATING).select(EXAMPLE_ID, RATING).iter_rows())

    def usable(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Questions`: those with a rating, if ratings count; of training examples as many as there are shots."""
        examples = self.candidates.examples(places)
        if self.liked.least_rating is not None:
            places = places[[example in self.ratings for example in examples[EXAMPLE_ID]]]
        return self._shots(places)

    def of(self, example: Mapping[str, Any]) -> Question:
        """See `Questions`."""
        if self.liked.least_rating is not None:
            liked = self.ratings.get(example[EXAMPLE_ID], 0.0) >= self.liked.least_rating
            return _asked(example[TARGET_ID], liked)
        chosen, other = self.pair(example)
        return chosen if self.candidates.rng(example[EXAMPLE_ID]).random() < 0.5 else other

    def pair(self, example: Mapping[str, Any]) -> tuple[Question, Question]:
        """The questions about the item chosen and about one that was not: of an example without ratings."""
        example_id, target = example[EXAMPLE_ID], example[TARGET_ID]
        task, rng = self.candidates.task, self.candidates.rng(example_id, turn=2)
        past = {*task.past.before(example_id), target}
        pool: Sequence[str] = ()
        if self.liked.negatives == "candidates":
            pool = [item for item in self.candidates.of(example_id)[0] if item not in past]
        if not pool:
            pool = [item for item in self.candidates.item_ids if item not in past] or self.candidates.item_ids
        return _asked(target, True), _asked(pool[int(rng.integers(len(pool)))], False)

    def asked_on_test(self, example: Mapping[str, Any]) -> tuple[Question, ...]:
        """All questions to an example, alike many for all: by its rating, or both of its pair."""
        return self.pair(example) if self.liked.least_rating is None else (self.of(example),)

    def _shots(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of training examples as many as there are shots, of those with rationales if these are enough."""
        n, task = self.liked.n_shots, self.candidates.task
        if n is None or not len(places) or task.examples["split"][int(places[0])] != TRAIN:
            return places
        ids = task.examples[EXAMPLE_ID].gather(places)
        reasoned = places[[example in task.rationales for example in ids]]
        pool = reasoned if len(reasoned) >= n else places
        drawn: NDArray[np.int64] = np.sort(np.random.default_rng(self.candidates.seed).permutation(pool)[:n])
        return drawn


def _asked(item: str, liked: bool) -> Question:
    answer = YES if liked else NO
    return Question((item,), answer, (answer,))
