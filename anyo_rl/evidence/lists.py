"""The candidates that a teacher is shown, in the order in which they come in: by evidence, or by one retriever.

What a training example meets never saw its user, and a target is never put in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from anyo_rl.data.schema import EXAMPLE_ID
from anyo_rl.data.sequences import held_out
from anyo_rl.evidence.candidates import NONE, Items, top_list
from anyo_rl.evidence.opened import Evidence
from anyo_rl.evidence.reweighing import RetrieverWeights
from anyo_rl.metrics.ranking import target_ranks
from anyo_rl.students.protocol import rows_at_once


@dataclass(frozen=True)
class Incoming:
    """Candidates of R examples.

    Attributes:
        items_R_K: item indices, the best first, `NONE` where there are fewer.
        scores_R_K: theirs, higher is better, -inf where there is none.
    """

    items_R_K: Items
    scores_R_K: NDArray[np.float32]

    def first(self, k: int) -> "Incoming":
        """The first ones of each."""
        return Incoming(self.items_R_K[:, :k], self.scores_R_K[:, :k])


class Lists(Protocol):
    """Whatever names candidates."""

    def incoming(self, example_ids: Sequence[str], k: int) -> Incoming:
        """The first `k` candidates of any examples."""

    def target_ranks(self, example_ids: Sequence[str]) -> NDArray[np.int64]:
        """1-based ranks (R,) of the targets among the whole catalog, where the incoming order is kept."""


@dataclass(frozen=True)
class EvidenceLists:
    """The candidates of an evidence run, as its ranker orders them.

    Attributes:
        evidence: with scores of training examples, where these are asked for.
    """

    evidence: Evidence

    def incoming(self, example_ids: Sequence[str], k: int) -> Incoming:
        """See `Lists`."""
        items_R_C, scores_R_C = self.evidence.candidates(example_ids), self.evidence.log_scores(example_ids)
        order_R_K = np.argsort(-scores_R_C, axis=1, kind="stable")[:, :k]
        return _padded(
            np.take_along_axis(items_R_C, order_R_K, axis=1), np.take_along_axis(scores_R_C, order_R_K, axis=1), k
        )

    def target_ranks(self, example_ids: Sequence[str]) -> NDArray[np.int64]:
        """See `Lists`."""
        return self.evidence.target_ranks(example_ids)


@dataclass(frozen=True)
class RetrieverLists:
    """The top list of one retriever, which was fitted without the fold of a training example's user.

    Attributes:
        weights: its scores.
    """

    weights: RetrieverWeights

    def incoming(self, example_ids: Sequence[str], k: int) -> Incoming:
        """See `Lists`."""
        found = []
        for part in self._parts(example_ids):
            scores_R_N, _, excluded = self._scores(part)
            for row, out in enumerate(excluded):
                scores_R_N[row, out] = -np.inf
            items_R_K = top_list(scores_R_N, k)
            scores_R_K = np.take_along_axis(scores_R_N, np.maximum(items_R_K, 0), axis=1)
            found.append(_padded(items_R_K, np.where(items_R_K == NONE, np.float32(-np.inf), scores_R_K), k))
        if not found:
            return Incoming(np.empty((0, k), np.int32), np.empty((0, k), np.float32))
        items, scores = ([getattr(one, name) for one in found] for name in ("items_R_K", "scores_R_K"))
        return Incoming(np.concatenate(items), np.concatenate(scores))

    def target_ranks(self, example_ids: Sequence[str]) -> NDArray[np.int64]:
        """See `Lists`."""
        found = [np.zeros(0, np.int64)]
        for part in self._parts(example_ids):
            scores_R_N, targets, excluded = self._scores(part)
            # Of equal scores the lower index is first, as in the list.
            own_R = scores_R_N[np.arange(len(targets)), targets]
            tied_R_N = (scores_R_N == own_R[:, None]) & (np.arange(scores_R_N.shape[1]) > np.array(targets)[:, None])
            scores_R_N[tied_R_N] = -np.inf
            found.append(target_ranks(scores_R_N, targets, excluded))
        return np.concatenate(found)

    def _parts(self, example_ids: Sequence[str]) -> list[Sequence[str]]:
        at_once = rows_at_once(len(self.weights.index))
        return [example_ids[start : start + at_once] for start in range(0, len(example_ids), at_once)]

    def _scores(self, example_ids: Sequence[str]) -> tuple[NDArray[np.float32], list[int], list[list[int]]]:
        """Scores of the whole catalog, targets, and what each ranking leaves out but for the target."""
        task, index = self.weights.task, self.weights.index
        asked = pl.DataFrame({EXAMPLE_ID: list(example_ids)}, schema={EXAMPLE_ID: pl.String})
        rows = asked.join(task.examples, on=EXAMPLE_ID, how="left", maintain_order="left")
        of_rows = held_out(task, rows, index)
        scores_R_N = np.array(self.weights.of(example_ids), dtype=np.float32)
        return scores_R_N, of_rows.targets, of_rows.excluded


def _padded(items_R_k: Items, scores_R_k: NDArray[np.floating], k: int) -> Incoming:
    short = ((0, 0), (0, k - items_R_k.shape[1]))
    items_R_K = np.pad(items_R_k, short, constant_values=NONE).astype(np.int32)
    scores_R_K = np.pad(scores_R_k.astype(np.float32), short, constant_values=-np.inf)
    return Incoming(items_R_K, np.where(items_R_K == NONE, np.float32(-np.inf), scores_R_K))
