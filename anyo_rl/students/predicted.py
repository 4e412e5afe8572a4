"""What a student says after some states, made as far as a loss asks for it."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyo_rl.run.settings import UsageError
from anyo_rl.students import settings as limits
from anyo_rl.students.losses import binary_cross_entropy, log_sum_by_sample
from anyo_rl.students.settings import FitSettings


@dataclass(frozen=True)
class Predicted:
    """A student's log-probabilities after R states.

    Attributes:
        model: a student.
        hidden_R_D: its states.
        targets_R: the items after them.
        settings: the loss, and how many items are drawn.
    """

    model: nn.Module
    hidden_R_D: Tensor
    targets_R: Tensor
    settings: FitSettings

    @property
    def n_items(self) -> int:
        """Size N of the catalog."""
        n_items: int = self.model.n_items  # type: ignore[assignment]
        return n_items

    @property
    def whole(self) -> bool:
        """Whether all items are looked at."""
        return self.n_items <= limits.FULL_SOFTMAX and self.settings.loss != "sampled"

    def losses(self) -> Tensor:
        """−log p(target), or the binary loss of the settings: (R,)."""
        if self.settings.loss in ("bce", "gbce"):
            calibration = self.settings.calibration if self.settings.loss == "gbce" else 0.0
            return binary_cross_entropy(self._target_R, self._others_R_n, self.n_items, calibration)
        if not self.whole:
            return log_sum_by_sample(self._target_R, self._others_R_n, self.n_items) - self._target_R
        losses_R = F.nll_loss(self._log_probs_R_N, self.targets_R, reduction="none")
        if not self.settings.label_smoothing:
            return losses_R
        return torch.lerp(losses_R, -self._log_probs_R_N.mean(1), self.settings.label_smoothing)

    def log_probs(self, rows_r: Tensor, items_r_K: Tensor) -> Tensor:
        """Log-probabilities of some items after some of the states: (r, K)."""
        if self.whole:
            return self._log_probs_R_N[rows_r].gather(1, items_r_K)
        logits_r_K = torch.einsum("rd,rkd->rk", self.hidden_R_D[rows_r], self._vectors_N_D[items_r_K])
        return logits_r_K - log_sum_by_sample(self._target_R, self._others_R_n, self.n_items)[rows_r, None]

    def top_items(self, rows_r: Tensor, k: int) -> Tensor:
        """The student's own k top items after some of the states, without a gradient: (r, k).

        Raises:
            UsageError: not all items are looked at.
        """
        if not self.whole:
            raise UsageError(
                f"the student's own top items are asked for (consistency, or within union), and of {self.n_items} "
                f"items a sample is looked at: that takes softmax, and a catalog of {limits.FULL_SOFTMAX:,} at most"
            )
        return self._log_probs_R_N.detach()[rows_r].topk(min(k, self.n_items)).indices

    @cached_property
    def _log_probs_R_N(self) -> Tensor:
        return F.log_softmax(self.model.item_logits(self.hidden_R_D), dim=1)  # type: ignore[operator]

    @cached_property
    def _vectors_N_D(self) -> Tensor:
        vectors_N_D: Tensor = self.model.item_vectors  # type: ignore[assignment]
        return vectors_N_D

    @cached_property
    def _target_R(self) -> Tensor:
        return (self.hidden_R_D * self._vectors_N_D[self.targets_R]).sum(-1)

    @cached_property
    def _others_R_n(self) -> Tensor:
        """Logits of items drawn alike for all rows, −inf where one is the row's own target."""
        drawn_n = torch.randint(self.n_items, (self.settings.n_negatives,), device=self.hidden_R_D.device)
        return (self.hidden_R_D @ self._vectors_N_D[drawn_n].T).masked_fill(
            drawn_n == self.targets_R[:, None], -torch.inf
        )
