"""The evidence ranker: boosted trees that order candidates by their features, trained on the order (lambdarank).

LambdaMART (Burges 2010, MSR-TR-2010-82) of LightGBM. A group is a training example whose target is a candidate; all
others drop out of the loss.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anyo_rl.evidence.candidates import NONE, Items, places, ranks_at
from anyo_rl.evidence.softening import Softening, choose_softening
from anyo_rl.evidence.tables import Table
from anyo_rl.metrics.gains import ndcg
from anyo_rl.run.files import read_json, readable, write_whole
from anyo_rl.run.settings import UsageError

if TYPE_CHECKING:
    import lightgbm

MOST_ROWS = 12_000_000  # candidates that a ranker learns from: 600 MB of features
AT_ONCE = 2_000  # groups that are scored at once
MODEL, CARD = "ranker.txt", "ranker.json"


@dataclass(frozen=True)
class RankerSettings:
    """How a ranker is trained.

    Attributes:
        leaves: of a tree.
        learning_rate: of boosting.
        most_rounds: trees, at most.
        patience: trees without a better validation NDCG@10 before it stops.
        seed: of LightGBM, and of the draw where there are more than `MOST_ROWS`.
    """

    leaves: int = 15
    learning_rate: float = 0.05
    most_rounds: int = 1000
    patience: int = 50
    seed: int = 0


@dataclass(frozen=True)
class Groups:
    """Candidates of examples whose target is among them, one example after the other.

    Attributes:
        features_P_X: of each candidate.
        labels_P: 1 for the target.
        sizes_R: candidates of each example.
    """

    features_P_X: NDArray[np.float32]
    labels_P: NDArray[np.float32]
    sizes_R: NDArray[np.int64]

    @classmethod
    def of(cls, parts: Sequence[tuple[Table, NDArray[np.bool_]]], seed: int = 0) -> "Groups":
        """Those of some rows of tables; of more than `MOST_ROWS` candidates, a draw by the seed.

        Args:
            parts: tables, and which of their rows are asked for.
            seed: of the draw.
        """
        width = max((table.candidates_R_K.shape[1] for table, _ in parts), default=1)
        kept = [np.flatnonzero(table.hit_R & asked_R) for table, asked_R in parts]
        n_groups = sum(map(len, kept))
        if n_groups * width > MOST_ROWS:
            share = MOST_ROWS / (n_groups * width)
            generator = np.random.default_rng(seed)
            kept = [rows[generator.random(len(rows)) < share] for rows in kept]
        features, labels, sizes = [], [], []
        for (table, _), rows in zip(parts, kept, strict=True):
            candidates_R_K = table.candidates_R_K[rows]
            real_R_K = candidates_R_K != NONE
            features.append(table.features_R_K_X[rows][real_R_K])
            labels.append((candidates_R_K == table.targets_R[rows][:, None])[real_R_K].astype(np.float32))
            sizes.append(real_R_K.sum(axis=1))
        return cls(np.concatenate(features), np.concatenate(labels), np.concatenate(sizes))

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.sizes_R)


@dataclass(frozen=True)
class EvidenceRanker:
    """A fitted ranker.

    Attributes:
        booster: LightGBM's.
        names: of the features, in the order of its columns.
        settings: it was trained with.
        rounds: trees.
        positions: how many of the last examples of each training user it learned from.
        softening: how scores become probabilities, chosen on validation: lambdarank learns an order, and no scale.
    """

    booster: "lightgbm.Booster"
    names: tuple[str, ...]
    settings: RankerSettings = field(default_factory=RankerSettings)
    rounds: int = 0
    positions: int = 0
    softening: Softening = field(default_factory=Softening)

    def scores(self, candidates_R_K: Items, features_R_K_X: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores (R, K) of candidates, higher is better; -inf where there is none."""
        found_R_K = np.full(candidates_R_K.shape, -np.inf)
        for start in range(0, len(found_R_K), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            real_R_K = candidates_R_K[part] != NONE
            rows_P_X = features_R_K_X[part][real_R_K]
            if len(rows_P_X):
                found_R_K[part][real_R_K] = self.booster.predict(rows_P_X, num_iteration=self.rounds)
        return found_R_K

    def log_scores(self, candidates_R_K: Items, features_R_K_X: NDArray[np.float32]) -> NDArray[np.float32]:
        """Log-probabilities over the candidates of each row, (R, K) float32; -inf where there is none."""
        return self.softening.log_probs(self.scores(candidates_R_K, features_R_K_X))

    def gains(self) -> dict[str, float]:
        """Each feature's share of what the splits gained in training."""
        gain_X = self.booster.feature_importance("gain", iteration=self.rounds)
        return dict(zip(self.names, (gain_X / max(gain_X.sum(), 1e-12)).tolist(), strict=True))

    def save(self, folder: Path) -> None:
        """Writes LightGBM's text and a card, which comes last."""
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / MODEL, self.booster.model_to_string(num_iteration=self.rounds))
        trained = {"rounds": self.rounds, "positions": self.positions, "softening": asdict(self.softening)}
        card = {"features": self.names, "settings": asdict(self.settings), **trained}
        write_whole(folder / CARD, json.dumps(card, indent=2))

    @classmethod
    def load(cls, folder: Path) -> "EvidenceRanker":
        """Reads what `save` wrote.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        if not (folder / CARD).is_file():
            raise UsageError(f"found no ranker in {folder}: run recipes/rank_evidence.py")
        lgb = boosting()
        with readable(folder / CARD):
            card = read_json(folder / CARD)
            settings = RankerSettings(**card["settings"])
            booster = lgb.Booster(model_str=(folder / MODEL).read_text())
            softening = Softening(**card["softening"])
            return cls(booster, tuple(card["features"]), settings, card["rounds"], card["positions"], softening)


def boosting() -> Any:
    """LightGBM.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import lightgbm
    except ImportError as error:
        raise UsageError("LightGBM is not installed: pip install 'anyo-rl[evidence]'") from error
    return lightgbm


def train_ranker(
    train: Groups,
    names: Sequence[str],
    settings: RankerSettings = RankerSettings(),
    *,
    validation: Groups | None = None,
    rounds: int | None = None,
) -> EvidenceRanker:
    """Trains a ranker, either as long as is best on validation, or for a number of rounds.

    Args:
        train: of training users, with evidence that never saw them.
        names: of the features.
        settings: how.
        validation: to stop by.
        rounds: trees, where there is no validation.

    Raises:
        UsageError: there is no group to learn from.
    """
    if not len(train) or (validation is not None and not len(validation)):
        raise UsageError("no target is among its candidates, so there is nothing to learn from: take more candidates")
    lgb = boosting()
    parameters = {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [10],
        "num_leaves": settings.leaves,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
        "data_random_seed": settings.seed,
        "feature_fraction_seed": settings.seed,
        # The same trees from the same data: so that a run that was killed ends with the same bytes.
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    data = lgb.Dataset(train.features_P_X, train.labels_P, group=train.sizes_R, feature_name=list(names))
    if validation is None:
        booster = lgb.train(parameters, data, num_boost_round=rounds or settings.most_rounds)
        return EvidenceRanker(booster, tuple(names), settings, booster.current_iteration())
    held = lgb.Dataset(validation.features_P_X, validation.labels_P, group=validation.sizes_R, reference=data)
    stop = lgb.early_stopping(settings.patience, verbose=False)
    booster = lgb.train(parameters, data, settings.most_rounds, valid_sets=[held], callbacks=[stop])
    return EvidenceRanker(booster, tuple(names), settings, booster.best_iteration)


def table_ndcg(scores_R_K: NDArray[np.floating], table: Table, k: int = 10) -> NDArray[np.float64]:
    """NDCG@k of each row of a table by scores of its candidates; 0 where the target is none of them.

    With candidates first, a rank among them is the rank among the whole catalog, so that this is exact for all `k` up
    to the number of candidates. Of equal scores the earlier candidate is first.
    """
    place_R = places(table.candidates_R_K, table.targets_R)
    return np.where(place_R != NONE, ndcg(ranks_at(scores_R_K, place_R), k), 0.0)


def choose_ranker(
    train: Sequence[tuple[Table, NDArray[np.integer]]],
    validation: Table,
    positions: Sequence[int],
    settings: RankerSettings = RankerSettings(),
) -> tuple[EvidenceRanker, list[tuple[int, int, float]]]:
    """Trains a ranker for each number of last positions, and keeps the one that is best on validation, softened there.

    Args:
        train: tables of training users, and of each row how many examples of its user come after it.
        validation: to stop and to choose by.
        positions: numbers to try.
        settings: how.

    Returns:
        The ranker, and of each that was tried: positions, rounds, and validation NDCG@10 over all examples.
    """
    held = Groups.of([(validation, np.ones(len(validation), dtype=bool))], settings.seed)
    best: tuple[float, EvidenceRanker] | None = None
    trials = []
    for n in positions:
        groups = Groups.of([(table, later_R < n) for table, later_R in train], settings.seed)
        ranker = replace(train_ranker(groups, validation.names, settings, validation=held), positions=n)
        scores_R_K = ranker.scores(validation.candidates_R_K, validation.features_R_K_X)
        trials.append((n, ranker.rounds, float(table_ndcg(scores_R_K, validation).mean())))
        if best is None or trials[-1][2] > best[0]:
            softening = choose_softening(scores_R_K, validation.candidates_R_K, validation.targets_R)
            best = trials[-1][2], replace(ranker, softening=softening)
    assert best is not None, "there is a number to try"
    return best[1], trials
