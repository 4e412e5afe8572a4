"""What evidence is worth: recall of the retrievers, what each feature brings, and how far it drifts."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from anyo_rl.data.sequences import HeldOut
from anyo_rl.evidence.candidates import NONE, recall, top_list, union
from anyo_rl.evidence.features import features_of, gather
from anyo_rl.evidence.make import Maker
from anyo_rl.evidence.ranker import EvidenceRanker, table_ndcg
from anyo_rl.evidence.tables import Table
from anyo_rl.students.protocol import rows_at_once

MOST_GROUPS = 2000  # that features are permuted in
MOST_VALUES = 200_000  # that distributions are compared by
UNION = "union"


@dataclass(frozen=True)
class Worth:
    """What one feature is worth.

    Attributes:
        name: of the feature.
        meaning: in a line.
        cost: in a line.
        gain: its share of what the splits gained in training.
        permuted: how much of validation NDCG@10 is lost where it is exchanged among users and candidates.
        drift: Kolmogorov-Smirnov distance, 0 to 1, of training evidence from validation evidence.
        fold_drift: the same of validation evidence by retrievers without a fold from that by full ones: what
            cross-fitting adds to the drift.
    """

    name: str
    meaning: str
    cost: str
    gain: float
    permuted: float
    drift: float
    fold_drift: float


def worth(
    maker: Maker, ranker: EvidenceRanker, validation: Table, train: Sequence[Table], drift: Sequence[Table]
) -> list[Worth]:
    """What each feature is worth.

    Args:
        maker: of the evidence.
        ranker: learned from all training users.
        validation: its evidence.
        train: of training examples.
        drift: of the validation examples that were made twice.
    """
    gains, lost = ranker.gains(), permuted_losses(ranker, validation)
    again = [validation.rows[example] for table in drift for example in table.example_ids]
    twice = values_of([validation], np.sort(again))
    pairs = [(values_of(train), values_of([validation])), (values_of(drift), twice)]
    by_feature = [[distance(a_P_X[:, x], b_P_X[:, x]) for x in range(len(ranker.names))] for a_P_X, b_P_X in pairs]
    features = {one.name: one for one in features_of(maker.settings.names, maker.how.vectors_N_D is not None)}
    return [
        Worth(name, features[name].meaning, features[name].cost, gains[name], lost[name], moved, by_folds)
        for name, moved, by_folds in zip(ranker.names, *by_feature, strict=True)
    ]


def values_of(tables: Sequence[Table], rows: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
    """Features (P, X) of the candidates of tables; of many rows, those of every n-th."""
    found = []
    for table in tables:
        of_table = np.arange(len(table)) if rows is None else rows
        step = max(1, len(of_table) * table.candidates_R_K.shape[1] * len(tables) // MOST_VALUES)
        real_R_K = table.candidates_R_K[of_table[::step]] != NONE
        found.append(table.features_R_K_X[of_table[::step]][real_R_K])
    return np.concatenate(found)


def distance(a_P: NDArray[np.floating], b_P: NDArray[np.floating]) -> float:
    """Kolmogorov-Smirnov distance of two samples, without what is missing; NaN where one has no value.

    >>> distance(np.array([1.0, 2.0, np.nan]), np.array([2.0, 3.0]))
    0.5
    """
    a_P, b_P = a_P[~np.isnan(a_P)], b_P[~np.isnan(b_P)]
    if not len(a_P) or not len(b_P):
        return float("nan")
    return float(ks_2samp(a_P, b_P, method="asymp").statistic)


def permuted_losses(ranker: EvidenceRanker, table: Table, seed: int = 0) -> dict[str, float]:
    """Share of NDCG@10 that is lost where a feature's values are exchanged among examples and candidates.

    Of examples whose target is a candidate, `MOST_GROUPS` at most: the others' NDCG is 0 either way.
    """
    generator = np.random.default_rng(seed)
    rows = np.flatnonzero(table.hit_R)
    rows = np.sort(generator.permutation(rows)[:MOST_GROUPS])
    some = replace_rows(table, rows)
    features_R_K_X = np.array(some.features_R_K_X)
    before = float(table_ndcg(ranker.scores(some.candidates_R_K, features_R_K_X), some).mean())
    lost = {}
    for place, name in enumerate(ranker.names):
        own_R_K = features_R_K_X[..., place].copy()
        mixed_R_K = generator.permuted(own_R_K[generator.permutation(len(rows))], axis=1)
        features_R_K_X[..., place] = mixed_R_K
        after = float(table_ndcg(ranker.scores(some.candidates_R_K, features_R_K_X), some).mean())
        features_R_K_X[..., place] = own_R_K
        lost[name] = 1 - after / before if before > 0 else float("nan")
    return lost


def replace_rows(table: Table, rows: NDArray[np.integer]) -> Table:
    """Some rows of a table, in memory."""
    return replace(
        table,
        example_ids=[table.example_ids[row] for row in rows],
        targets_R=table.targets_R[rows],
        candidates_R_K=np.array(table.candidates_R_K[rows]),
        features_R_K_X=np.array(table.features_R_K_X[rows]),
    )


def recalls(maker: Maker, asked: HeldOut, ks: Sequence[int]) -> dict[str, list[float]]:
    """Recall@K on held-out examples: of each retriever alone, and of the union.

    Args:
        maker: whose retrievers of all training users are asked.
        asked: the examples.
        ks: numbers of candidates, each 1 or more; candidate sets are made of as many.
    """
    most, at_once = max(ks), rows_at_once(maker.full.n_items)
    hits: dict[str, dict[int, list[float]]] = {}
    for start in range(0, len(asked), at_once):
        part = asked[start : start + at_once]
        targets, lists = np.array(part.targets), {}
        for name, scorer in maker.full.scorers.items():
            found_R_N = np.array(scorer.scores(part.histories), dtype=np.float32)
            for row, items in enumerate(part.excluded):
                found_R_N[row, items] = -np.inf
            lists[name] = top_list(found_R_N, most)
        for k in ks:
            unions = {UNION: union([lists[name][:, :k] for name in maker.how.lists], k)}
            for name, list_R_K in (lists | unions).items():
                hits.setdefault(name, {}).setdefault(k, []).append(len(targets) * recall(list_R_K, targets, k))
    return {name: [sum(of_k[k]) / len(asked) for k in ks] for name, of_k in hits.items()}


def request_ms(maker: Maker, asked: HeldOut, n: int = 200) -> tuple[float, float]:
    """Median and 95th percentile of the milliseconds that the features of one request take, of some held-out users."""
    times = []
    for row in range(min(n, len(asked))):
        began = time.perf_counter()
        gather(asked[row : row + 1], maker.full, maker.how)
        times.append(1000 * (time.perf_counter() - began))
    return float(np.median(times)), float(np.quantile(times, 0.95))
