"""Evidence of histories that are no examples of the data, under names of their own: of what somebody asks."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from anyo_rl.data.sequences import HeldOut
from anyo_rl.evidence.candidates import Items, over_catalog
from anyo_rl.evidence.features import gather
from anyo_rl.evidence.make import Maker
from anyo_rl.evidence.opened import Evidence
from anyo_rl.metrics.ranking import target_ranks


class AskedEvidence:
    """What `Evidence` says of such histories; it stands in its place beside a teacher (`OfExamples`).

    Args:
        evidence: of the same catalog.
        names: of the histories, each its own.
        asked: the histories, what their rankings leave out, and targets where they are known (else any item).
    """

    def __init__(self, evidence: Evidence, names: Sequence[str], asked: HeldOut) -> None:
        self.maker: Maker = evidence.maker
        self._asked = asked
        self._row = {name: row for row, name in enumerate(names)}
        block = gather(asked, self.maker.full, self.maker.how)
        self._candidates_R_K = block.candidates_R_K
        self._log_scores_R_K = evidence.ranker.log_scores(block.candidates_R_K, block.features_R_K_X)

    def candidates(self, names: Sequence[str]) -> Items:
        """See `Evidence.candidates`."""
        return self._candidates_R_K[self._rows(names)]

    def log_scores(self, names: Sequence[str]) -> NDArray[np.float32]:
        """See `Evidence.log_scores`."""
        return self._log_scores_R_K[self._rows(names)]

    def target_ranks(self, names: Sequence[str]) -> NDArray[np.int64]:
        """See `Evidence.target_ranks`."""
        return self._ranks_R[self._rows(names)]

    @cached_property
    def _ranks_R(self) -> NDArray[np.int64]:
        first_R_N = np.asarray(self.maker.full.first.scores(self._asked.histories))
        scores_R_N = over_catalog(first_R_N, self._candidates_R_K, self._log_scores_R_K)
        return target_ranks(scores_R_N, self._asked.targets, self._asked.excluded)

    def _rows(self, names: Sequence[str]) -> list[int]:
        return [self._row[name] for name in names]
