"""Retrievers: students and baselines that are fitted in seconds and score the whole catalog, under names.

The first of the names orders what no candidate is. Views of item-kNN share one fit where they read one similarity.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anyo_rl.data.sequences import HeldOut
from anyo_rl.run.settings import UsageError
from anyo_rl.students.ease import EASE_GRID, MOST_ITEMS, EaseGram, EaseSettings, choose_ease
from anyo_rl.students.fit import fit_student
from anyo_rl.students.item_knn import ItemKNN, KnnSettings, choose_item_knn, fit_item_knn
from anyo_rl.students.popularity import Popularity, fit_popularity
from anyo_rl.students.protocol import Histories, Scorer, Scores
from anyo_rl.students.sasrec import SASRec
from anyo_rl.students.settings import FitSettings

POPULARITY, TEXT, SASREC, EASE = "popularity", "text", "sasrec", "ease"
KNN = "item_knn"
MEANINGS = {
    KNN: "item-kNN over the history, as chosen on validation",
    "item_knn_last": "the same counts, asked for the last item alone; older ones break ties",
    "item_knn_long": "the same counts, asked for a long history: each item weighs .95 of the one after it",
    "item_knn_directed": "item-kNN that counts what came after, and never what came before",
    EASE: "EASE, as chosen on validation",
    SASREC: "SASRec, as long as was best on validation",
    POPULARITY: "training users who have the item",
    TEXT: "cosine of the title with that of the last item",
}
NAMES = tuple(MEANINGS)
VIEWS = {"item_knn_last": 1e-6, "item_knn_long": 0.95}  # how much an item weighs of the one after it


@dataclass(frozen=True)
class TextSimilarity:
    """Scores by the cosine with the last item; nothing is like an empty history.

    Attributes:
        vectors_N_D: float32, of length 1 or 0.
    """

    vectors_N_D: NDArray[np.float32]

    @property
    def n_items(self) -> int:
        """Size N of the catalog."""
        return len(self.vectors_N_D)

    def scores(self, histories: Histories) -> Scores:
        """Cosines (B, N) float32."""
        last_B = np.array([history[-1] if history else -1 for history in histories], dtype=np.int64)
        vectors_B_D = np.where(last_B[:, None] >= 0, self.vectors_N_D[last_B], np.float32(0))
        scores: Scores = vectors_B_D @ self.vectors_N_D.T
        return scores


@dataclass(frozen=True)
class SasrecSettings:
    """How the retriever SASRec is trained.

    Attributes:
        epochs: how many; chosen on validation once, so that fits without a fold need no held-out example of its users.
        learning_rate: of its training.
        dropout: see `SASRec`.
        dim: width of its item vectors.
        batch_size: sequences in one step.
    """

    epochs: int = 0
    learning_rate: float = 1e-3
    dropout: float = 0.3
    dim: int = 64
    batch_size: int = 32

    def fit(self, sequences: Histories, n_items: int, seed: int, validation: HeldOut | None = None) -> SASRec:
        """Trains one; for as long as is best on validation where that is given."""
        training = FitSettings(learning_rate=self.learning_rate, batch_size=self.batch_size)
        if validation is None:
            training = replace(training, max_epochs=self.epochs)
        shape: Any = {"dropout": self.dropout, "dim": self.dim}
        return fit_student(SASRec, sequences, n_items, training, validation=validation, seed=seed, **shape)


@dataclass(frozen=True)
class RetrieverSettings:
    """Which retrievers, and how they are fitted: all that is chosen on validation.

    Attributes:
        names: some of `NAMES`; the first one orders what is no candidate.
        item_knn: of all its views.
        ease: of EASE.
        sasrec: of SASRec.
        seed: of what draws.
    """

    names: tuple[str, ...] = (KNN, *VIEWS, "item_knn_directed", POPULARITY, TEXT)
    item_knn: KnnSettings = field(default_factory=lambda: KnnSettings(history_decay=0.6))
    ease: EaseSettings = field(default_factory=EaseSettings)
    sasrec: SasrecSettings = field(default_factory=SasrecSettings)
    seed: int = 0

    def as_json(self) -> Mapping[str, object]:
        """Ready for JSON."""
        return {**asdict(self), "names": list(self.names)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "RetrieverSettings":
        """What `as_json` gave."""
        return cls(
            tuple(raw["names"]),
            KnnSettings(**raw["item_knn"]),
            EaseSettings(**raw["ease"]),
            SasrecSettings(**raw["sasrec"]),
            raw["seed"],
        )


@dataclass(frozen=True)
class Fitted:
    """Retrievers that were fitted on the same users.

    Attributes:
        scorers: name → retriever; the first orders what is no candidate.
        popularity: of the same users.
        n_users: how many they are.
    """

    scorers: Mapping[str, Scorer]
    popularity: Popularity
    n_users: int

    @property
    def n_items(self) -> int:
        """Size N of the catalog."""
        return self.popularity.n_items

    @property
    def first(self) -> Scorer:
        """The retriever that orders what is no candidate."""
        return next(iter(self.scorers.values()))

    @cached_property
    def log_popularity_N(self) -> NDArray[np.float32]:
        """Log of the share of users who have an item, of whom there is one more: the same scale for any number."""
        return np.log((self.popularity.counts + 1) / (self.n_users + 1)).astype(np.float32)


Fit = Callable[[Histories], Fitted]  # fits all retrievers on training sequences


def fit_retrievers(
    sequences: Histories, n_items: int, settings: RetrieverSettings, vectors_N_D: NDArray[np.float32] | None = None
) -> Fitted:
    """Fits all retrievers on the same sequences.

    Args:
        sequences: one list of item indices per user, oldest first.
        n_items: size of the catalog.
        settings: which, and how.
        vectors_N_D: of the titles, for the retriever `text`.

    Raises:
        UsageError: there are no sequences, or the text is asked for without vectors.
    """
    if not sequences:
        raise UsageError("no user is left to fit retrievers on: take fewer folds, or a longer log")
    popularity = fit_popularity(sequences, n_items)
    scorers: dict[str, Scorer] = {}
    knn: ItemKNN | None = None
    for name in settings.names:
        if name == POPULARITY:
            scorers[name] = popularity
        elif name == TEXT:
            if vectors_N_D is None:
                raise UsageError("the retriever text needs vectors of titles, and text is none: leave it out")
            scorers[name] = TextSimilarity(vectors_N_D)
        elif name == EASE:
            scorers[name] = EaseGram.of(sequences, n_items).fit(settings.ease)
        elif name == SASREC:
            scorers[name] = settings.sasrec.fit(sequences, n_items, settings.seed)
        elif name == "item_knn_directed" and settings.item_knn.backward:
            scorers[name] = fit_item_knn(sequences, n_items, replace(settings.item_knn, backward=0.0))
        else:
            knn = knn or fit_item_knn(sequences, n_items, settings.item_knn)
            scorers[name] = replace(knn, history_decay=VIEWS[name]) if name in VIEWS else knn
    return Fitted(scorers, popularity, len(sequences))


def choose_retrievers(
    start: RetrieverSettings, sequences: Histories, n_items: int, validation: HeldOut, known: Sequence[str] = ()
) -> RetrieverSettings:
    """Chooses settings on validation, with retrievers of all training users.

    Args:
        start: names and seed, and settings that are known.
        sequences: of all training users.
        n_items: size of the catalog.
        validation: the examples to choose by.
        known: names of those whose settings stand already: `item_knn`, `ease`.

    Raises:
        UsageError: EASE is asked for and there are too many items.
    """
    found = start
    if any(name.startswith(KNN) for name in start.names) and KNN not in known:
        found = replace(found, item_knn=choose_item_knn(sequences, n_items, validation).settings)
    if EASE in start.names and n_items > MOST_ITEMS:
        raise UsageError(f"ease is asked for, and there are {n_items} items: it takes {MOST_ITEMS} at most")
    if EASE in start.names and EASE not in known:
        found = replace(found, ease=choose_ease(EaseGram.of(sequences, n_items), EASE_GRID, validation).settings)
    if SASREC in start.names:
        model = start.sasrec.fit(sequences, n_items, start.seed, validation)
        found = replace(found, sasrec=replace(start.sasrec, epochs=model.report.best_epoch))
    return found
